"""The staleness budget: when a snapshot is due, and what happens when the index grows too old."""

import logging
from types import SimpleNamespace

import pytest

from realm_hf.refresh.base import RefreshError, RefreshHealth
from realm_hf.refresh.schedule import RefreshScheduler
from realm_hf.refresh.swap import SwapCoordinator
from realm_hf.runs.snapshot_schedule import SnapshotSchedule

ALONE = SimpleNamespace(process_index=0, num_processes=1)
EMBEDDER = SimpleNamespace()


class StubRefresher:
    """A refresher whose builds end when the test says so."""

    def __init__(self, mode="async"):
        self.mode = mode
        self.submitted: list[int] = []
        self.built: list[int] = []
        self.served = -1
        self.stopped = False
        self.polls_until_built: int | None = None
        self.building = False

    def start(self):
        pass

    def build(self, step, embedder):
        self.built.append(step)
        return self.info(step)

    def submit(self, step, embedder):
        self.submitted.append(step)
        if self.mode == "sync":
            self.built.append(step)

    def poll(self):
        if self.polls_until_built is not None:
            self.polls_until_built -= 1
            if self.polls_until_built == 0:
                self.built.append(self.submitted[-1])
        newest = max(self.built, default=-1)
        return self.info(newest) if newest > self.served else None

    def mark_served(self, info):
        self.served = info.snapshot_step

    def check_health(self):
        return RefreshHealth(mode=self.mode, building=self.building, last_error="the disk is full")

    def wait(self, timeout):
        return self.poll()

    def stop(self):
        self.stopped = True

    @staticmethod
    def info(step):
        return SimpleNamespace(name=f"step-{step}", snapshot_step=step)


def open_generation(name):
    info = StubRefresher.info(int(name.removeprefix("step-")))
    return SimpleNamespace(name=name, info=info, close=lambda: None)


def driver(refresher, **settings) -> RefreshScheduler:
    refresh = RefreshScheduler(refresher, SwapCoordinator(ALONE, open_generation), poll_seconds=0.001, **settings)
    refresh.start(0, EMBEDDER)
    return refresh


def test_a_snapshot_is_submitted_at_every_multiple_of_refresh_steps():
    refresher = StubRefresher()
    refresh = driver(refresher, refresh_steps=4)
    for step in range(1, 14):
        refresh.after_step(step, EMBEDDER)
    assert refresher.submitted == [4, 8, 12]
    assert refresh.staleness(13) == 13


def test_a_schedule_says_when_snapshots_are_submitted():
    refresher = StubRefresher()
    refresh = driver(refresher, refresh_steps=SnapshotSchedule.parse("0-4:2,4-:5"), max_staleness=5)
    for step in range(1, 20):
        refresh.after_step(step, EMBEDDER)
    assert refresher.submitted == [2, 4, 9, 14, 19]
    with pytest.raises(ValueError, match="max_staleness is 4 steps but a snapshot is taken only every 5"):
        driver(refresher, refresh_steps=SnapshotSchedule.parse("0-4:2,4-:5"), max_staleness=4)


def test_sync_swaps_at_the_very_step():
    refresh = driver(StubRefresher("sync"), refresh_steps=4)
    swaps = {step: refresh.after_step(step, EMBEDDER) for step in range(1, 10)}
    assert {step: swap.name for step, swap in swaps.items() if swap} == {4: "step-4", 8: "step-8"}
    assert refresh.staleness(9) == 1


def test_off_never_submits_and_has_no_budget():
    refresher = StubRefresher("off")
    refresh = driver(refresher, refresh_steps=2, max_staleness=2, on_stale="wait")
    assert all(refresh.after_step(step, EMBEDDER) is None for step in range(1, 9))
    assert refresher.submitted == []


def test_resuming_serves_the_named_generation_and_builds_none():
    refresher = StubRefresher()
    refresh = RefreshScheduler(refresher, SwapCoordinator(ALONE, open_generation), refresh_steps=4)
    assert refresh.start(9, EMBEDDER, "step-6").staleness_steps == 3
    assert refresher.built == []
    assert refresher.served == 6


def test_continue_warns_once_a_generation(caplog):
    refresh = driver(StubRefresher(), refresh_steps=2, max_staleness=3)
    with caplog.at_level(logging.WARNING, "realm_hf"):
        for step in range(1, 8):
            assert refresh.after_step(step, EMBEDDER) is None
    assert [record.getMessage() for record in caplog.records] == [
        "step 4: step-0 is 4 steps old (max_staleness=3); training goes on with it"
    ]


def test_wait_goes_on_as_soon_as_a_fresh_generation_is_served():
    refresher = StubRefresher()
    refresh = driver(refresher, refresh_steps=2, max_staleness=3, on_stale="wait")
    for step in (1, 2, 3):
        assert refresh.after_step(step, EMBEDDER) is None
    refresher.polls_until_built = 5
    swap = refresh.after_step(4, EMBEDDER)
    assert (swap.name, swap.step) == ("step-4", 4)
    assert refresh.staleness(4) == 0
    assert refresh.waited_seconds > 0
    assert refresher.submitted == [2, 4]


def test_wait_does_not_wait_for_a_snapshot_that_is_too_old_itself():
    """After a resume nothing has been submitted: somebody must, or the wait would have no end."""
    refresher = StubRefresher()
    refresh = RefreshScheduler(
        refresher, SwapCoordinator(ALONE, open_generation), refresh_steps=10, max_staleness=10, on_stale="wait"
    )
    refresh.start(25, EMBEDDER, "step-3")
    refresher.polls_until_built = 5
    assert refresh.after_step(26, EMBEDDER).name == "step-26"
    assert refresher.submitted == [26]


def test_a_wait_ends_when_it_is_interrupted():
    refresh = driver(StubRefresher(), refresh_steps=2, max_staleness=2, on_stale="wait")
    asked = iter([False, False, True])
    refresh.after_step(1, EMBEDDER)
    refresh.after_step(2, EMBEDDER)
    assert refresh.after_step(3, EMBEDDER, interrupted=lambda: next(asked)) is None


def test_a_wait_for_which_nobody_works_ends_in_words():
    refresh = driver(StubRefresher(), refresh_steps=2, max_staleness=2, on_stale="wait", wait_timeout=0.05)
    for step in (1, 2):
        refresh.after_step(step, EMBEDDER)
    with pytest.raises(RefreshError, match=r"Step 3: the index is 3 steps old .*in vain: nobody has been seen.*full"):
        refresh.after_step(3, EMBEDDER)


def test_a_wait_lasts_as_long_as_somebody_builds():
    refresher = StubRefresher()
    refresh = driver(refresher, refresh_steps=2, max_staleness=2, on_stale="wait", wait_timeout=0.05)
    for step in (1, 2):
        refresh.after_step(step, EMBEDDER)
    refresher.building = True
    refresher.polls_until_built = 300
    assert refresh.after_step(3, EMBEDDER).name == "step-2"
    assert refresh.waited_seconds > 0.05


def test_a_wait_ends_when_one_generation_after_the_other_cannot_be_opened():
    refresher = StubRefresher()
    refresh = driver(refresher, refresh_steps=2, max_staleness=2, on_stale="wait", wait_timeout=0.02)
    for step in (1, 2):
        refresh.after_step(step, EMBEDDER)
    refresher.building, refresher.built = True, [0, 2]

    def broken(name):
        raise OSError(f"{name} is truncated")

    refresh.coordinator._open_generation = broken
    with pytest.raises(RefreshError, match=r"\d+ newer ones could not be opened, the last .*step-2 is truncated"):
        refresh.after_step(3, EMBEDDER)


def test_sync_on_stale_builds_with_the_weights_of_now():
    refresher = StubRefresher()
    refresh = driver(refresher, refresh_steps=4, max_staleness=5, on_stale="sync")
    swaps = {step: refresh.after_step(step, EMBEDDER) for step in range(1, 9)}
    assert {step: swap.name for step, swap in swaps.items() if swap} == {6: "step-6"}
    assert refresher.built == [0, 6]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"refresh_steps": 0}, "refresh_steps is 0, but must be at least 1"),
        ({"refresh_steps": 10, "max_staleness": 9}, "a snapshot is taken only every 10"),
        ({"refresh_steps": 10, "on_stale": "cry"}, "on_stale is 'cry'"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RefreshScheduler(StubRefresher(), SwapCoordinator(ALONE, open_generation), **settings)


def test_stopping_ends_the_builder_and_closes_the_generation():
    refresher = StubRefresher()
    refresh = driver(refresher, refresh_steps=4)
    refresh.stop()
    assert refresher.stopped
    assert refresh.coordinator.generation is None
