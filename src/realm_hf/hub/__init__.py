"""The Hugging Face Hub: what is published, how it is read, and how far a stranger is believed."""
