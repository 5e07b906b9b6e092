"""Questions in, answers out: reading what was retrieved, judging answers, predictions, the transformers pipeline."""
