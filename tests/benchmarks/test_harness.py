"""The harness of the benchmarks, without its timings."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from harness.alternation import alternate, half_interquartile_range
from harness.rows import Row, read_results, table, timed_row, write_results


def row(kind, ours=2.0, peer=3.0, goal=1.4, name="work"):
    return Row(name, ours, peer, "s", goal, kind, "peer", 0.1, 0.2, "a note")


def test_the_ratio_of_each_kind_says_what_its_goal_is_compared_with():
    assert row("speedup").ratio == 1.5
    assert row("at_most").ratio == row("at_least").ratio == pytest.approx(2 / 3)
    assert row("speedup").reached and not row("speedup", goal=1.6).reached
    assert row("at_most", goal=0.7).reached and not row("at_most", goal=0.6).reached
    assert row("at_least", goal=0.6).reached and not row("at_least", goal=0.7).reached


@pytest.mark.parametrize(("kind", "ratio"), [("speedup", 2.0), ("at_most", 0.5)])
def test_a_machine_that_slows_down_between_rounds_does_not_change_the_ratio(kind, ratio):
    # Twice as fast as the peer in every round; the medians of the sides are those of different rounds.
    ours, peer = iter([0.0, 1.0, 8.0, 3.0]), iter([0.0, 2.0, 16.0, 6.6])
    found = alternate(lambda: next(ours), lambda: next(peer), 3)
    row = timed_row(found, 1e3, name="work", beside="peer", unit="ms", goal=1.0, kind=kind)
    assert row.ratio == pytest.approx(ratio) and row.ours == 3000 and row.peer == 6600
    assert row.rounds == ((1000, 2000), (8000, 16000), (3000, 6600)) and 0 < row.ratio_spread < 0.06
    assert f"| {ratio:g} ± " in table([row])


def test_the_sides_take_turns_and_warm_ups_are_thrown_away():
    called, seconds = [], iter(range(100))

    def side(name):
        def run():
            called.append(name)
            return float(next(seconds))

        return run

    found = alternate(side("ours"), side("peer"), 3)
    assert called == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert found.ours_rounds == (2.0, 5.0, 6.0) and found.peer_rounds == (3.0, 4.0, 7.0)
    assert found.ours == 5.0 and found.peer == 4.0


def test_rounds_go_on_until_the_ratio_is_settled_or_there_are_enough_of_them():
    def rounds_taken(ratios):
        seconds = iter(ratios)
        return len(alternate(lambda: next(seconds), lambda: 1.0, 3, most_rounds=9, warm_up=0).ours_rounds)

    assert rounds_taken([1.0, 1.01, 1.0]) == 3
    assert rounds_taken([1.0, 2.0, 1.0, 1.0, 1.0, 1.0]) == 5
    assert rounds_taken([1.0, 2.0] * 5) == 9


def test_the_same_side_twice_keeps_its_figures_apart():
    seconds = iter([0.0, 0.0, 1.0, 2.0])
    found = alternate(lambda: next(seconds), lambda: next(seconds), 1)
    assert (found.ours, found.peer) == (1.0, 2.0)


def test_no_round_is_refused():
    with pytest.raises(ValueError, match="rounds is 0"):
        alternate(lambda: 0.0, lambda: 0.0, 0)


def test_the_spread_is_half_of_the_middle_half():
    assert half_interquartile_range([5.0, 1.0, 2.0, 4.0, 3.0]) == 1.0
    assert half_interquartile_range([7.0]) == 0.0


def test_results_come_back_for_the_same_machine_and_commit_only(tmp_path):
    file, machine = tmp_path / "results.json", {"cpu": "x", "commit": "abc"}
    found = alternate(lambda: 1.0, lambda: 2.0, 2)
    timed = timed_row(found, 1, name="timed", beside="peer", unit="s", goal=1.0, kind="speedup")
    rows = [row("speedup"), row("at_most", name="other"), timed]
    write_results(rows, file, machine)
    assert read_results(file, machine) == rows
    assert read_results(file, machine | {"commit": "abd"}) == []
    assert read_results(tmp_path / "none.json", machine) == []
    assert len(file.read_text().splitlines()) == 2 + len(rows)


def test_the_table_says_where_a_goal_is_missed():
    lines = table([row("speedup"), row("at_most", goal=0.5)]).splitlines()
    assert len(lines) == 4
    assert "| 1.5 | at least 1.4 | yes |" in lines[2]
    assert "at most 0.5 | **no** |" in lines[3]
