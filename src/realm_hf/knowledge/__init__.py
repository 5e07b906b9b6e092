"""What a retriever knows: passages, an index and embeddings, with edits in front of them; as files."""
