"""Tasks that many workers share: each is done once, whoever is killed, stopped or slow."""

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from realm_hf.storage import tasks as module
from realm_hf.storage.tasks import Claim, SharedTasks


def write_number(claim: Claim) -> dict[str, int]:
    (claim.work / "number.txt").write_text(str(claim.task**2))
    return {"square": claim.task**2}


def test_one_worker_does_all_tasks_and_says_what_they_are(tmp_path):
    tasks = SharedTasks(tmp_path, 3, durable=True)
    assert tasks.run(write_number)
    assert tasks.done() == {0, 1, 2}
    assert [tasks.read_part(task)["square"] for task in range(3)] == [0, 1, 4]
    assert (tasks.part(2) / "number.txt").read_text() == "4"
    assert tasks.run(lambda _: pytest.fail("all is done")), "whoever comes later finds it done"


def test_a_task_that_fails_is_free_again(tmp_path):
    def fail(claim: Claim) -> None:
        raise ValueError(f"task {claim.task} is wrong")

    with pytest.raises(ValueError, match="task 0 is wrong"):
        SharedTasks(tmp_path, 2).run(fail)
    tasks = SharedTasks(tmp_path, 2)
    assert tasks.run(write_number) and tasks.done() == {0, 1}


def test_a_damaged_part_is_made_again(tmp_path):
    tasks = SharedTasks(tmp_path, 2)
    tasks.run(write_number)
    (tasks.part(1) / "number.txt").write_text("7")
    with pytest.raises(OSError, match="is damaged"):
        tasks.read_part(1)
    made = []
    tasks.run(lambda claim: made.append(claim.task) or write_number(claim))
    assert made == [1] and tasks.read_part(1)["square"] == 1


def test_a_removed_directory_ends_the_waiting(tmp_path):
    owner = SharedTasks(tmp_path / "tasks", 1)
    assert owner.claim() is not None
    waiting = SharedTasks(tmp_path / "tasks", 1)
    assert not waiting.run(write_number, idle=lambda: (tmp_path / "tasks").rename(tmp_path / "gone"))


def test_one_who_was_taken_over_publishes_nothing(tmp_path):
    now = [0.0]
    slow = SharedTasks(tmp_path, 1)
    claim = slow.claim()
    claim.work.mkdir()
    watcher = SharedTasks(tmp_path, 1, stale_seconds=10, clock=lambda: now[0])
    assert watcher.claim() is None
    now[0] = 9.0
    os.utime(claim.place)  # a beat
    assert watcher.claim() is None
    now[0] = 18.0
    assert watcher.claim() is None, "9 seconds since the beat was seen"
    now[0] = 20.0
    taken = watcher.claim()
    assert taken.path.name == "0.2" and claim.is_lost()
    claim.work.mkdir(exist_ok=True)  # as a library makes missing directories
    (claim.work / "number.txt").write_text("wrong")
    assert not slow.publish(claim, {}) and not slow.done()
    taken.work.mkdir()
    write_number(taken)
    assert watcher.publish(taken, {"square": 0})
    assert watcher.read_part(0)["square"] == 0


class Killed(BaseException):
    """What a worker that was killed meets at its next call of the file system."""


class Schedule:
    """
    Lets one of several threads run at a time, and chooses anew before each call of the file system.

    A worker may be killed, or sleep for so long that the others take it for dead.
    """

    def __init__(self, seed: int, workers: int, harm: bool):
        self.chance, self.harm = random.Random(seed), harm
        self.baton = threading.Condition()
        self.alive = list(range(workers))
        self.asleep: dict[int, int] = {}
        self.killed: set[int] = set()
        self.turn = 0
        self.ticks = 0
        self.disturbed = False

    def step(self) -> None:
        """Called by the worker that runs, before what others may see."""
        me = getattr(threading.current_thread(), "number", None)
        if me is None:
            return  # the test's own thread
        with self.baton:
            if me in self.killed:
                raise Killed
            self.ticks += 1
            if self.harm and self.chance.random() < 0.01:
                self.disturbed = True
                if len(self.alive) > 1 and self.chance.random() < 0.3:
                    self.killed.add(me)
                    self.leave(me)
                    raise Killed
                self.asleep[me] = self.ticks + 400
            self.choose()
            self.baton.wait_for(lambda: self.turn == me)

    def choose(self) -> None:
        awake = [worker for worker in self.alive if self.asleep.get(worker, 0) <= self.ticks]
        if not awake and self.alive:
            self.ticks = min(self.asleep[worker] for worker in self.alive)
            awake = [worker for worker in self.alive if self.asleep[worker] <= self.ticks]
        self.turn = self.chance.choice(awake) if awake else -1
        self.baton.notify_all()

    def leave(self, me: int) -> None:
        self.alive.remove(me)
        self.choose()


def run_schedule(root: Path, seed: int, monkeypatch, harm: bool) -> tuple[Counter, Counter, bool]:
    """Three workers, four tasks; how often each task was begun and published, and whether anybody was disturbed."""
    schedule = Schedule(seed, workers=3, harm=harm)
    begun, published, at_work = Counter(), Counter(), {}
    errors: list[BaseException] = []

    def before(function):
        def stepped(*args, **kwargs):
            schedule.step()
            return function(*args, **kwargs)

        return stepped

    class SharedTasksUnderTest(SharedTasks):
        def publish(self, claim, facts):
            done = super().publish(claim, facts)
            published[claim.task] += done
            return done

        def _do(self, claim, work):
            at_work[threading.current_thread()] = claim
            super()._do(claim, work)
            del at_work[threading.current_thread()]

    def work(mine: Claim) -> dict[str, int]:
        begun[mine.task] += 1
        for _ in range(3):
            schedule.step()
            # By `os`, which takes no step: nothing happens meanwhile.
            with_place = [
                claim for claim in at_work.values() if claim.task == mine.task and os.access(claim.place, os.F_OK)
            ]
            assert len(with_place) <= 1, with_place
            if mine in with_place:
                os.utime(mine.place, ns=(schedule.ticks, schedule.ticks))
        return write_number(mine)

    def worker(number: int) -> None:
        threading.current_thread().number = number
        try:
            with schedule.baton:
                schedule.baton.wait_for(lambda: schedule.turn == number)
            tasks = SharedTasksUnderTest(root, 4, stale_seconds=120, clock=lambda: float(schedule.ticks))
            tasks.run(work)
        except Killed:
            return
        except BaseException as error:  # noqa: BLE001 - raised by the test
            errors.append(error)
        with schedule.baton:
            schedule.leave(number)

    with monkeypatch.context() as patch:
        for name in ("rename", "mkdir", "stat", "iterdir"):
            patch.setattr(Path, name, before(getattr(Path, name)))
        patch.setattr(module.shutil, "rmtree", before(module.shutil.rmtree))
        patch.setattr(module, "_Beat", type("NoBeat", (), {"__init__": lambda *_: None, "stop": lambda _: None}))
        patch.setattr(module.time, "sleep", lambda _: schedule.step())
        threads = [threading.Thread(target=worker, args=(number,), daemon=True) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "nobody goes on"
    if errors:
        raise errors[0]
    return begun, published, schedule.disturbed


@pytest.mark.parametrize("harm", [False, True], ids=["undisturbed", "killed and stopped"])
def test_whatever_the_schedule_each_task_is_published_once(tmp_path, monkeypatch, harm, full):
    seeds = 1000 if full else 25
    disturbed = 0
    for seed in range(seeds):
        root = tmp_path / str(seed)
        begun, published, was_disturbed = run_schedule(root, seed, monkeypatch, harm)
        assert all(published[task] <= 1 for task in range(4)), published
        tasks = SharedTasks(root, 4)
        assert [tasks.read_part(task)["square"] for task in range(4)] == [0, 1, 4, 9]
        if not was_disturbed:
            assert set(begun.values()) == {1}, f"nobody died, but a task was begun twice: {begun}"
        disturbed += was_disturbed
    assert disturbed == 0 if not harm else disturbed > seeds // 4


def test_workers_killed_at_random_moments_leave_nothing_to_do_twice(tmp_path):
    """Processes on one machine: a death is seen at once, and what was finished stays."""
    chance = random.Random(0)
    log = tmp_path / "log"

    def work(claim: Claim) -> None:
        time.sleep(0.01)
        write_number(claim)

    class Logged(SharedTasks):
        def publish(self, claim, facts):
            if done := super().publish(claim, facts):
                with log.open("a") as file:
                    file.write(f"{claim.task}\n")
            return done

    def start() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                Logged(tmp_path / "tasks", 60).run(work)
            finally:
                os._exit(0)
        return pid

    living = [start() for _ in range(3)]
    for _ in range(10):
        time.sleep(chance.uniform(0.0, 0.06))
        victim = living.pop(chance.randrange(3))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        living.append(start())
    for pid in living:
        os.waitpid(pid, 0)
    assert SharedTasks(tmp_path / "tasks", 60).done() == set(range(60))
    times = Counter(log.read_text().split())
    assert set(times.values()) == {1} and len(times) >= 60 - 10, "one killed between the two lines logs nothing"


def test_where_nobody_knows_how_many_there_are_tasks_end_where_one_says_so(tmp_path):
    done = []

    def until_five(claim: Claim) -> dict[str, int] | None:
        if claim.task >= 5:
            tasks.end_at(5)
            return None
        done.append(claim.task)
        return write_number(claim)

    tasks = SharedTasks(tmp_path, None)
    with pytest.raises(ValueError, match="nobody knows yet"):
        tasks.numbers()
    ahead = SharedTasks(tmp_path, None).claim()
    assert ahead.task == 0, "somebody has the first and is slow"
    assert SharedTasks(tmp_path, None).claim().task == 1
    for claim in (ahead, Claim(1, ahead.path.with_name("1.1"))):
        claim.take_place()
    assert tasks.run(until_five)
    assert done == [0, 1, 2, 3, 4] and tasks.numbers() == range(5) == range(len(tasks.done()))
    late = SharedTasks(tmp_path, None)
    assert late.run(lambda _: pytest.fail("all is done")) and late.count == 5
