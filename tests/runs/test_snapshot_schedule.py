"""When a snapshot is due: every so many steps, or by a schedule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_hf.runs.snapshot_schedule import SnapshotSchedule


def due(schedule: SnapshotSchedule, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if schedule.is_due(step)]


def test_a_part_counts_from_its_start():
    assert due(SnapshotSchedule.parse("0-10:5,10-:4"), 20) == [5, 10, 14, 18]


def test_the_end_of_a_part_is_due_so_that_no_gap_is_longer_than_the_longest_interval():
    assert due(SnapshotSchedule.parse("0-9:5,9-:10"), 30) == [5, 9, 19, 29]


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 60), st.integers(1, 400))
def test_one_part_is_every_so_many_steps(interval, step):
    assert SnapshotSchedule.every(interval).is_due(step) == (step % interval == 0)
    assert SnapshotSchedule.parse(f"0-:{interval}") == SnapshotSchedule.every(interval)


schedules = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=4).map(
    lambda parts: SnapshotSchedule(
        tuple(sum(length for length, _ in parts[:place]) for place in range(len(parts))),
        tuple(interval for _, interval in parts),
    )
)


@settings(deadline=None)  # a busy machine is no failure
@given(schedules, st.integers(1, 150))
def test_parts_count_the_snapshots_of_a_run_and_gaps_are_bounded(schedule, steps):
    parts = schedule.parts(steps)
    taken = due(schedule, steps)
    assert sum(length for length, _, _ in parts) == steps
    assert sum(snapshots for _, _, snapshots in parts) == len(taken)
    gaps = [after - before for before, after in zip([0, *taken], [*taken, steps], strict=True)]
    assert max(gaps) <= schedule.longest
    assert schedule.shortest == min(schedule.intervals)


@settings(deadline=None)  # a busy machine is no failure
@given(schedules.filter(lambda schedule: len(schedule.starts) > 1))
def test_what_is_written_is_read_again(schedule):
    assert SnapshotSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no such part"),
        ("500", "'500' is no such part"),
        ("0-10:2,,10-:3", "'' is no such part"),
        ("0-10:-2,10-:3", "'0-10:-2' is no such part"),
        ("5-10:2,10-:3", "'5-10:2' must begin at 0"),
        ("0-10:2,11-:3", "'11-:3' must begin at 10"),
        ("0-:2,10-:3", "'10-:3' follows a part without an end"),
        ("0-10:2,10-10:1,10-:1", "'10-10:1' ends before it begins"),
        ("0-10:0,10-:1", "the interval of '0-10:0' must be at least 1 step"),
        ("0-10:2", "it ends at step 10; the last part has no end"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_part_at_fault(text, message):
    with pytest.raises(ValueError, match="refresh_schedule is ") as refused:
        SnapshotSchedule.parse(text)
    assert message in str(refused.value)
    assert "such as 0-1000:250,1000-:1000" in str(refused.value)
