"""The tiny corpora are built once a session; the programs and helpers live in tests/fixtures."""

import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures"
if str(FIXTURES) not in sys.path:
    sys.path.insert(0, str(FIXTURES))


@pytest.fixture(scope="session")
def countries(tmp_path_factory):
    from tiny_worlds import country_passages

    return country_passages(tmp_path_factory.mktemp("countries"))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Folder with `passages` and `sentences` of the fact world."""
    from tiny_worlds import fact_world

    folder = tmp_path_factory.mktemp("world")
    fact_world(folder)
    return folder
