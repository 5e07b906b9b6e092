"""Index generations: passages as embeddings with an index, in directories that appear complete or never."""
