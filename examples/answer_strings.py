"""When a text holds an answer: what recall by answer string compares."""

import re


def normalise(text: str) -> str:
    """Lower case, letters and digits only, one space between words and around the whole."""
    return " " + " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split()) + " "
