"""Two gloo ranks search an index of which each holds half: at random without a hang, until one of them dies."""

import json
import signal

import pytest
from launching import start_ranks

pytestmark = pytest.mark.multiprocess


def test_random_searches_find_what_one_index_finds_and_a_dead_rank_ends_them_in_words(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    ranks = start_ranks(tmp_path, run, 2, program="search_program", schedules=60)
    assert ranks[0].wait(240) == 0, ranks[0].output
    assert ranks[1].wait(60) == -signal.SIGKILL, ranks[1].output
    told = json.loads((run / "told.json").read_text())
    assert told["searched"] > 100
    words, seconds = told["without the other"]
    assert words.startswith(
        "LostRank: Another rank is lost: it ended, or did not come to the search that all ranks make together within"
    )
    assert seconds < 30
