"""Sentences with their salient spans: the queries of pre-training."""
