"""Passages -> embeddings -> FAISS index -> store of immutable generations.

Nothing is imported here: importing `faiss_index` changes settings of FAISS, and reading a fingerprint should not.
"""
