"""`realm-hf`: the command line."""
