"""The two-phase swap on one rank: nobody waits, readers keep what they read. `test_two_ranks.py` has the other
half.
"""

import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from realm_hf.refresh.swap import SwapCoordinator, SwapFailed

ALONE = SimpleNamespace(process_index=0, num_processes=1)


@dataclass
class Opened:
    """An open generation of which only what the coordinator reads is there."""

    name: str
    closed: bool = False
    info: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(snapshot_step=10))

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


class Shelf:
    """Opens generations when told to, and remembers them."""

    def __init__(self):
        self.opened: dict[str, Opened] = {}
        self.may_open = threading.Event()
        self.may_open.set()

    def __call__(self, name: str) -> Opened:
        self.may_open.wait(10)
        if "broken" in name:
            raise OSError(f"{name} is truncated")
        self.opened[name] = Opened(name)
        return self.opened[name]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def tick_until_swap(coordinator, proposal, first_step):
    for step in range(first_step, first_step + 1000):
        swap = coordinator.tick(proposal, step)
        if swap is not None:
            return swap
        time.sleep(0.002)
    raise AssertionError("no swap in 1000 steps")


def test_a_proposal_is_served_some_steps_later(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    shelf.may_open.clear()
    assert coordinator.tick("one", 11) is None
    assert coordinator.tick("one", 12) is None
    assert coordinator.pending == "one"
    assert coordinator.generation is None
    shelf.may_open.set()
    swap = tick_until_swap(coordinator, "one", 13)
    assert swap.generation is shelf.opened["one"] is coordinator.generation
    assert (swap.name, swap.proposed_at_step) == ("one", 11)
    assert swap.staleness_steps == swap.step - 10
    assert swap.pending_seconds >= swap.open_seconds > 0


def test_a_served_generation_is_not_opened_again(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    first = coordinator.swap_now("one", 0)
    for step in range(1, 20):
        assert coordinator.tick("one", step) is None
        assert coordinator.pending is None
    assert coordinator.generation is first.generation


def test_a_later_proposal_waits_until_the_pending_one_is_settled(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    shelf.may_open.clear()
    coordinator.tick("one", 1)
    coordinator.tick("two", 2)
    assert coordinator.pending == "one"
    shelf.may_open.set()
    assert tick_until_swap(coordinator, "two", 3).name == "one"
    assert tick_until_swap(coordinator, "two", 1003).name == "two"


def test_the_old_generation_is_closed_only_after_its_last_reader(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    coordinator.swap_now("one", 0)
    old = shelf.opened["one"]
    with coordinator.reading() as held, coordinator.reading():
        assert held is old
        coordinator.swap_now("two", 1)
        with coordinator.reading() as now:
            assert now is shelf.opened["two"]
        assert not old.closed
    assert old.closed
    assert not shelf.opened["two"].closed
    coordinator.close()
    assert shelf.opened["two"].closed


def test_readers_in_threads_never_hold_a_closed_generation(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    coordinator.swap_now("0", 0)
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            with coordinator.reading() as generation:
                time.sleep(0.001)
                if generation.closed:
                    wrong.append(generation.name)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 60):
        coordinator.swap_now(str(number), number)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [opened.closed for opened in shelf.opened.values()] == [True] * 59 + [False]


def test_a_generation_that_cannot_be_opened_is_quarantined_and_the_old_one_serves_on(shelf):
    quarantined: list[tuple[str, str]] = []
    coordinator = SwapCoordinator(ALONE, shelf, quarantine=lambda name, why: quarantined.append((name, why)))
    coordinator.swap_now("one", 0)
    with pytest.raises(SwapFailed, match=r"broken-two could not be opened .*rank 0: OSError: broken-two is truncated"):
        coordinator.swap_now("broken-two", 5)
    assert quarantined == [("broken-two", "rank 0: OSError: broken-two is truncated")]
    assert coordinator.generation is shelf.opened["one"]
    assert coordinator.pending is None
    assert [failure.step for failure in coordinator.failures] == [5]
    assert coordinator.swap_now("three", 6).name == "three"


def test_a_quarantine_that_finds_no_room_does_not_end_training(shelf, caplog):
    def full(name, why):
        raise OSError(28, "the file system is full")

    coordinator = SwapCoordinator(ALONE, shelf, quarantine=full)
    coordinator.swap_now("one", 0)
    with pytest.raises(SwapFailed, match="broken-two could not be opened"):
        coordinator.swap_now("broken-two", 5)
    assert "could not be put into quarantine" in caplog.text
    assert coordinator.swap_now("three", 6).name == "three"


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, Panic])
def test_an_opening_that_ends_by_more_than_an_error_counts_as_failed(kind):
    def open_generation(name):
        raise kind("the end")

    coordinator = SwapCoordinator(ALONE, open_generation)
    for step in range(1, 1000):
        coordinator.tick("one", step)
        if coordinator.failures:
            break
        time.sleep(0.002)
    assert [failure.reasons for failure in coordinator.failures] == [{0: f"{kind.__name__}: the end"}]


def test_an_opening_without_an_end_counts_as_failed_after_its_time(shelf, caplog, monkeypatch):
    monkeypatch.setattr("realm_hf.refresh.swap._WAIT_NOTE_SECONDS", 0.02)
    coordinator = SwapCoordinator(ALONE, shelf, open_timeout=0.2)
    shelf.may_open.clear()
    with pytest.raises(SwapFailed, match=r"rank 0: not opened within 0 s: does the file system answer\?"):
        coordinator.swap_now("one", 3)
    assert "for all ranks to open generation one" in caplog.text
    shelf.may_open.set()
    deadline = time.monotonic() + 5
    while not ("one" in shelf.opened and shelf.opened["one"].closed) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shelf.opened["one"].closed, "what comes too late is closed"
    assert coordinator.generation is None


def test_swap_now_settles_what_is_pending_first(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    coordinator.tick("one", 1)
    assert coordinator.swap_now("two", 2).name == "two"
    assert shelf.opened["one"].closed


def test_swapping_to_what_is_served_is_an_error_and_not_a_hang(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    coordinator.swap_now("one", 0)
    with pytest.raises(SwapFailed, match="one is served already"):
        coordinator.swap_now("one", 1)


def test_reading_before_the_first_generation_is_an_error(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    with pytest.raises(RuntimeError, match="No index generation is served yet"), coordinator.reading():
        pass


def test_closing_drops_an_opening_that_finishes_later(shelf):
    coordinator = SwapCoordinator(ALONE, shelf)
    shelf.may_open.clear()
    coordinator.tick("one", 1)
    coordinator.close()
    shelf.may_open.set()
    deadline = time.monotonic() + 5
    while not ("one" in shelf.opened and shelf.opened["one"].closed) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shelf.opened["one"].closed
