"""What finds salient spans, and the names that choose a tagger."""
