"""Two processes (gloo), one of which fails, hangs, stops or dies: the other hears of it in words, and soon."""

import json
from pathlib import Path

import pytest
from launching import start_programs

pytestmark = pytest.mark.multiprocess


def both(folder: Path, how: str) -> list[dict[str, tuple[str, float]]]:
    """What each rank was told, and after how many seconds; at the end rank 1 stops, or it dies at once."""
    workers = start_programs("lost_ranks_worker", [folder, how], folder)
    try:
        assert workers[0].wait(timeout=180) == 0, workers[0].output
    finally:
        for worker in workers:
            worker.kill()
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return both(tmp_path_factory.mktemp("stopped"), "stops")


def test_a_build_may_take_longer_than_the_ranks_wait_for_one_another(stopped):
    told = [rank["a build longer than the timeout"] for rank in stopped]
    assert [words for words, _ in told] == ["all is well"] * 2
    assert min(seconds for _, seconds in told) > 2.8, "the rank that has nothing to do waits for the other"


def test_what_one_rank_fails_with_ends_the_work_of_the_other(stopped):
    words, seconds = stopped[0]["one fails"]
    assert "embedding failed (rank 1: OSError: [Errno 28] the disk is full)" in words
    assert seconds < 10
    assert stopped[1]["one fails"][0] == "OSError: [Errno 28] the disk is full"


def test_a_build_after_a_failed_one_is_like_any_other(stopped):
    assert [rank["and the next build"][0] for rank in stopped] == ["all is well"] * 2


def test_a_rank_that_makes_no_progress_is_given_up(stopped):
    words, seconds = stopped[0]["one hangs"]
    assert "Rank 1 has made no progress with embedding for 1 s" in words
    assert seconds < 3.9


def test_a_stopped_rank_is_missed_at_the_swap_and_in_a_build(stopped):
    words, seconds = stopped[0]["a swap without it"]
    assert words.startswith(
        "LostRank: Another rank is lost: it ended, or did not come to the swap's meeting at step 12 "
    )
    assert "within 2 s" in words and "resume from the newest checkpoint" in words
    assert seconds < 30
    words, seconds = stopped[0]["a build without it"]
    assert words.startswith("LostRank:") and "a meeting beside embedding" in words
    assert seconds < 30


def test_a_rank_that_dies_is_missed_at_the_swap_and_in_a_build(tmp_path):
    (rank,) = both(tmp_path, "dies")
    assert rank["a swap without it"][0].startswith("LostRank:")
    assert rank["a build without it"][0].startswith("LostRank:")
