"""The builder killed, stopped and orphaned: training goes on, the builder comes back, no partial generation is ever
seen.

Reduced by default to 3 kills; `--full` (`make faults`) has 20.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import Program
from refreshing import next_generation

from realm_hf import RealmConfig, RealmEmbedder
from realm_hf.data.passages.build import passages_from_rows
from realm_hf.generations.store import GenerationStore
from realm_hf.refresh.builder_process import GUARDED_START, builder_environment
from realm_hf.refresh.modes import AsyncRefresher
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.snapshots import collect_snapshots, write_snapshot
from realm_hf.storage.directories import FileLock

pytestmark = pytest.mark.multiprocess

ALONE = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))

TRAINER = """
import os, subprocess, sys, time
command = [sys.executable, "-m", "realm_hf.refresh.builder_server", sys.argv[1]]
server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
if os.fork() == 0:
    time.sleep(600)  # a data loader worker: it holds a copy of our end of the builder's standard input
server.stdin.write(b"build builder-orphan\\n")
server.stdin.flush()
print(server.pid, server.stdout.readline().decode().split()[2], flush=True)
time.sleep(600)
"""


LOADING_TRAINER = """
import os, sys, time
from realm_hf.refresh.builder_process import BuilderProcess
from realm_hf.runs.directory import RunDirectory
os.environ["PYTHONPATH"] = sys.argv[2]  # the builder will load for ever
builder = BuilderProcess(RunDirectory.open(sys.argv[1]))
if os.fork() == 0:
    time.sleep(600)  # a data loader worker
print(builder.pid, flush=True)
time.sleep(600)
"""

ENDLESS_LIBRARY = """
import pathlib, time
pathlib.Path(__file__).with_name("loading").touch()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def slow_passages(tokenizer, tmp_path_factory):
    """A corpus that takes a second or so to embed, so that there is a middle of a build to be killed in."""
    from datasets import Dataset

    rows = {
        "title": [f"Place {number}" for number in range(600)],
        "text": [f"The river {number} lies in the north. It has {number * 7} people." for number in range(600)],
    }
    folder = tmp_path_factory.mktemp("passages") / "store"
    return passages_from_rows(Dataset.from_dict(rows), tokenizer, folder, max_length=64)


@pytest.fixture(scope="module")
def slow_embedder() -> RealmEmbedder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    return RealmEmbedder(RealmConfig(vocab_size=2048, retriever_proj_size=16, **sizes)).eval()


@pytest.fixture
def slow_run(tmp_path, slow_passages, tokenizer) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", passages=slow_passages, tokenizer=tokenizer)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for_build(refresher: AsyncRefresher) -> int:
    """The pid of the build that is going on, once there is one."""
    deadline = time.monotonic() + 60
    while (pid := refresher.check_health().builder_pid) is None:
        refresher.poll()
        assert time.monotonic() < deadline, refresher.check_health()
        time.sleep(0.005)
    return pid


def assert_all_are_whole(refresher: AsyncRefresher) -> None:
    for info in refresher.store.list():
        with refresher.store.open(info.name, verify="sha256") as generation:
            assert len(generation.index) == 600


def test_a_builder_killed_at_random_moments_comes_back(slow_run, slow_embedder, full):
    kills = 20 if full else 3
    chance = random.Random(0)
    with slow_run.lock():
        refresher = AsyncRefresher(slow_run, ALONE, retry_seconds=0.02, max_failures=None, keep_generations=2)
        refresher.start()
        refresher.submit(1, slow_embedder)
        info = next_generation(refresher, 120)
        refresher.mark_served(info)
        longest_poll, failed = 0.0, 0
        for number in range(kills):
            step = 10 + number
            refresher.submit(step, slow_embedder)
            build = wait_for_build(refresher)
            time.sleep(chance.uniform(0.0, 1.3 * info.build_seconds))
            # Now and then the server that forks the builders dies too.
            target = refresher._builder.pid if number % 4 == 1 else build
            with contextlib.suppress(ProcessLookupError):  # a quick build may be over
                os.kill(target, signal.SIGKILL)
            served, deadline = info, time.monotonic() + 120
            while (newer := refresher.poll()) is None:
                started = time.monotonic()
                time.sleep(0.01)  # a training step, with the old generation
                refresher.poll()
                longest_poll = max(longest_poll, time.monotonic() - started)
                assert time.monotonic() < deadline, refresher.check_health()
                failed = max(failed, refresher.check_health().failures)
            assert newer.snapshot_step == step > served.snapshot_step
            assert_all_are_whole(refresher)
            refresher.mark_served(newer)
            info = newer
        assert failed >= 1, "no kill hit a build: the test proves nothing"
        assert longest_poll < 1.0, "the training loop must not wait for a builder"
        refresher.stop()
    assert list(slow_run.heartbeats.iterdir()) == []
    refresher.store.collect()
    assert not list(slow_run.index.glob(".tmp-*")), "what killed builders left behind is removed"


def test_a_builder_that_hangs_is_killed_and_replaced(slow_run, slow_embedder):
    with slow_run.lock():
        refresher = AsyncRefresher(slow_run, ALONE, heartbeat_timeout=60, retry_seconds=0.02)
        refresher.start()
        refresher.submit(1, slow_embedder)
        build = wait_for_build(refresher)
        os.kill(build, signal.SIGSTOP)
        refresher.heartbeat_timeout = 2.0  # only now: a busy machine may take longer to load the libraries
        deadline = time.monotonic() + 30
        while refresher.check_health().failures == 0:
            assert refresher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        refresher.heartbeat_timeout = 60
        while not is_gone(build):  # the signal was sent; a busy machine delivers it a moment later
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "No progress for 2 s" in refresher.check_health().last_error
        info = next_generation(refresher, 120)
        assert info.snapshot_step == 1
        assert info.builder_pid != build
        refresher.stop()


def is_leased(path: Path) -> bool:
    try:
        FileLock(path, exclusive=True, wait=False).release()
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def builder_at_work(run: RunDirectory) -> Iterator[Program]:
    """A builder of its own, as "external" has them, stopped in its build of step 1, however quick it is."""
    words = [str(run.root), "--once", "--name", "slow", "--threads", "1"]
    builder = Program("builder_program", [words], run.root.parent / "builder.out", {})
    try:
        deadline = time.monotonic() + 60
        while not is_leased(run.snapshots / "step-1-e0" / "snapshot.json"):
            assert builder.returncode is None and time.monotonic() < deadline, builder.output
            time.sleep(0.002)
        builder.stop()
        yield builder
    finally:
        builder.kill()


def test_a_snapshot_is_kept_while_a_builder_works_from_it(slow_run, slow_embedder):
    write_snapshot(slow_run, slow_embedder, 1, 0)
    with builder_at_work(slow_run) as builder:
        write_snapshot(slow_run, slow_embedder, 2, 0)
        assert collect_snapshots(slow_run) == []
        builder.go_on()
        assert builder.wait(120) == 0, builder.output
    assert [info.snapshot_step for info in GenerationStore(slow_run.index).list()] == [1]
    assert collect_snapshots(slow_run) == ["step-1-e0"]


def test_the_lease_of_a_killed_builder_ends_with_it(slow_run, slow_embedder):
    write_snapshot(slow_run, slow_embedder, 1, 0)
    with builder_at_work(slow_run) as builder:
        write_snapshot(slow_run, slow_embedder, 2, 0)
        builder.kill()
    assert GenerationStore(slow_run.index).list() == []
    assert collect_snapshots(slow_run) == ["step-1-e0"]


def test_builders_end_with_a_trainer_that_is_killed(slow_run, slow_embedder):
    """Also when a worker that the dead trainer had forked still holds the other end of their standard input."""
    write_snapshot(slow_run, slow_embedder, 1, 0)
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(slow_run.root)],
        stdout=subprocess.PIPE,
        text=True,
        env=builder_environment(1),
        start_new_session=True,
    )
    try:
        assert trainer.stdout is not None
        server, build = map(int, trainer.stdout.readline().split())
        assert not is_gone(server)
        assert not is_gone(build)
        trainer.kill()
        deadline = time.monotonic() + 10
        while not (is_gone(server) and is_gone(build)):
            assert time.monotonic() < deadline, (is_gone(server), is_gone(build))
            time.sleep(0.02)
    finally:
        os.killpg(trainer.pid, signal.SIGKILL)
        trainer.communicate()


def test_a_builder_that_loads_ends_with_its_trainer(slow_run, tmp_path):
    (tmp_path / "transformers.py").write_text(ENDLESS_LIBRARY)
    command = [sys.executable, "-c", LOADING_TRAINER, str(slow_run.root), str(tmp_path)]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    server = None
    try:
        assert trainer.stdout is not None
        server = int(trainer.stdout.readline())
        deadline = time.monotonic() + 60
        while not (tmp_path / "loading").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        trainer.kill()
        deadline = time.monotonic() + 10
        while not is_gone(server):
            assert time.monotonic() < deadline, "the builder outlives its trainer"
            time.sleep(0.02)
    finally:
        os.killpg(trainer.pid, signal.SIGKILL)
        trainer.communicate()
        if server is not None and not is_gone(server):
            os.kill(server, signal.SIGKILL)


def test_a_builder_whose_trainer_died_before_its_first_instruction_ends_at_once(tmp_path):
    command = [sys.executable, *GUARDED_START, "1", str(tmp_path)]  # process 1 is no parent of it
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")
