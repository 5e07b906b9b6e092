"""Checkpoints of transformers 4's REALM port: their records, embeddings and names, read without running their code."""
