"""The models (configuration, tokenizer, towers, encoder, reader), their losses, and how batches reach them."""
