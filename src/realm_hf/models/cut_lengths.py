"""Where texts are cut by default. Apart from the configuration, so that options can be shown without torch."""

__all__ = ["MAX_PASSAGE_LENGTH", "MAX_QUERY_LENGTH"]

MAX_QUERY_LENGTH = 64
"""Where queries and questions are cut by default: wordpieces, special tokens included (released with 96)."""
MAX_PASSAGE_LENGTH = 288
"""Where passages are cut by default: wordpieces, title and special tokens included (section 4.3 of the paper)."""
