"""Questions in, answers out: answering, evidence, scores of a benchmark, predictions, the transformers pipeline."""
