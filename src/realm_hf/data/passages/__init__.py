"""Passages: documents cut, tokenized once, and stored as memory-mapped arrays."""
