"""A small corpus in our own words, and the stores built from it once."""

import pytest
from datasets import Dataset

from realm_hf.data import PassageStore, build_passages

ARTICLES = [
    {
        "title": "France",
        "text": "France is a country in western Europe. Its capital is Paris. The country has 67 million people.\n\n"
        "In 1789 the people of Paris took the old prison. King Louis XVI was tried in December 1792. He died on 21 "
        "January 1793. The republic did not last. General Bonaparte took power in 1799, and made himself the head "
        "of the state. After the war of 1870 a new republic was made.",
    },
    {"title": "", "text": "  \n "},
    {
        "title": "Nile",
        "text": "The Nile is a river of Africa. It runs north for 6,650 km through Sudan and Egypt. "
        'Dr. J. B. Smith called it "the life of Egypt." The water comes from Lake Victoria.',
    },
    {"title": "Short", "text": "One line only."},
    {"title": "Copy", "text": "one line -- ONLY"},
]


@pytest.fixture(scope="session")
def articles() -> Dataset:
    return Dataset.from_list(ARTICLES)


@pytest.fixture(scope="session")
def passages(articles, tokenizer, tmp_path_factory) -> PassageStore:
    """The articles in passages of at most 40 wordpieces."""
    return build_passages(articles, tokenizer, tmp_path_factory.mktemp("data") / "passages", max_length=40)
