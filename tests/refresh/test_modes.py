"""The refresh modes: what is built, what is served, what happens when a build fails or the trainer is replaced."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launching import Program
from refreshing import next_generation

from realm_hf import RealmConfig, RealmEmbedder
from realm_hf.generations.embedding import embed_passages
from realm_hf.generations.store import GenerationInfo
from realm_hf.refresh.base import RefreshError
from realm_hf.refresh.build import builds_of
from realm_hf.refresh.builder import Builder
from realm_hf.refresh.builder_process import BuilderProcess, builder_environment, mark_failed, prune_logs
from realm_hf.refresh.modes import AsyncRefresher, ExternalRefresher, make_refresher
from realm_hf.refresh.schedule import RefreshScheduler
from realm_hf.refresh.swap import SwapCoordinator
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.heartbeat import FleetMonitor, Heartbeat, HeartbeatMonitor, ProcessorMonitor
from realm_hf.runs.snapshots import load_snapshot, snapshot_name, write_snapshot

ALONE = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))


def perturb(embedder: RealmEmbedder) -> RealmEmbedder:
    """As an optimizer step would."""
    with torch.no_grad():
        for parameter in embedder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return embedder


def wait_until(condition, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def assert_rows_equal_their_snapshot(refresher, info: GenerationInfo) -> None:
    """All rows of a generation, recomputed from the snapshot it names."""
    embedder = load_snapshot(refresher.run, snapshot_name(info.snapshot_step, info.epoch))
    with refresher.store.open(info.name, verify="sha256") as generation:
        again = embed_passages(embedder, refresher.passages)
        np.testing.assert_allclose(generation.embeddings, again, atol=1e-3, rtol=0)


# Heartbeats and the builder's surroundings


def test_a_builder_does_not_take_itself_for_a_rank():
    launched = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "x",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "OMP_NUM_THREADS": "64",
        "OMP_PROC_BIND": "true",
        "PATH": "/bin",
        "RANKING": "kept",
    }
    built = builder_environment(3, launched)
    assert {name for name in built if name in launched} == {"OMP_NUM_THREADS", "PATH", "RANKING"}
    assert (built["OMP_NUM_THREADS"], built["OMP_WAIT_POLICY"], built["HF_HUB_OFFLINE"]) == ("3", "passive", "1")


def test_a_heartbeat_moves_with_work_and_stands_still_without(tmp_path):
    heartbeat = Heartbeat(tmp_path / "b.json", interval=0.02)
    try:
        assert wait_until((tmp_path / "b.json").exists, 5)
        monitor = HeartbeatMonitor(heartbeat.path)
        monitor.silent_seconds()
        time.sleep(0.3)
        idle = monitor.silent_seconds()
        assert idle > 0.2, "a thread that merely lives is no sign of work"
        heartbeat.mark("embedding", "step-1-e1", 3, 9)
        assert wait_until(lambda: monitor.silent_seconds() < 0.1, 5)
        assert monitor.beat is not None
        assert (monitor.beat.snapshot, monitor.beat.done, monitor.beat.total) == ("step-1-e1", 3, 9)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            sum(range(1000))
        time.sleep(0.05)
        assert monitor.silent_seconds() < 0.25, "processor time is work, also where nothing is marked"
    finally:
        heartbeat.stop()
    assert not heartbeat.path.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system tells no process's processor time")
@pytest.mark.multiprocess
def test_what_loads_is_not_silent_and_what_only_waits_is():
    working = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    waiting = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(0.5)"])
    try:
        at_work, idle = ProcessorMonitor(working.pid), ProcessorMonitor(waiting.pid)
        assert wait_until(lambda: idle.silent_seconds() > 1.0)
        assert wait_until(lambda: at_work.silent_seconds() < 0.05)
        assert idle.silent_seconds() > at_work.silent_seconds()
        working.kill()
        working.wait()
        assert wait_until(lambda: at_work.silent_seconds() > 0.5), "one that has ended is silent"
    finally:
        for process in (working, waiting):
            process.kill()
            process.wait()


@pytest.mark.multiprocess
def test_a_builder_that_loads_for_longer_than_the_timeout_is_not_killed(run, embedder, monkeypatch):
    """Loading on a busy processor may take minutes; it is progress as long as it uses the processor."""
    refresher = AsyncRefresher(run, ALONE, heartbeat_timeout=0.0)
    refresher.start()
    monkeypatch.setattr(ProcessorMonitor, "silent_seconds", lambda _: -1.0)
    refresher.submit(1, embedder)
    assert wait_until(lambda: refresher.poll() is None and refresher.check_health().building, 30)
    assert refresher._builder.build.pid is None
    assert refresher._builder.build.monitor.silent_seconds() > 0.0
    assert refresher.poll() is None
    assert refresher.check_health().failures == 0
    monkeypatch.setattr(ProcessorMonitor, "silent_seconds", lambda _: 1.0)
    assert wait_until(lambda: refresher.poll() is None and refresher.check_health().failures == 1, 30)
    refresher.stop()


def test_a_heart_beats_again_when_the_disk_has_room_again(tmp_path, monkeypatch, caplog):
    heartbeat = Heartbeat(tmp_path / "b.json", interval=0.01)
    try:
        assert wait_until(heartbeat.path.exists, 5)
        tries = []

        def full(*arguments, **named):
            tries.append(arguments)
            full_disk()

        with monkeypatch.context() as disk:
            disk.setattr("realm_hf.runs.heartbeat.write_json", full)
            heartbeat.mark("embedding", "step-1-e1", 1, 9)
            assert wait_until(lambda: len(tries) > 3, 5), "one failure ended it"
        monitor = HeartbeatMonitor(heartbeat.path)
        assert wait_until(lambda: monitor.silent_seconds() >= 0 and monitor.beat.done == 1, 5)
    finally:
        heartbeat.stop()
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(",")[0] for line in told] == [
        "no heartbeat can be written",
        "the heartbeat is written again",
    ]


def test_a_heartbeat_is_judged_by_its_counter_and_not_by_the_files_clock(tmp_path):
    path = tmp_path / "b.json"
    beat = {"counter": 7, "host": "h", "pid": 1, "phase": "embedding", "snapshot": "step-1-e1", "done": 0, "total": 9}
    path.write_text(json.dumps(beat))
    fleet = FleetMonitor(tmp_path)
    time.sleep(0.05)
    path.write_text(json.dumps(beat))
    os.utime(path, (4e9, 4e9))
    assert fleet.silent_seconds() >= 0.05
    assert fleet.building(within_seconds=60) is None, "a file that was there before proves nothing"
    path.write_text(json.dumps(beat | {"counter": 8}))
    assert fleet.silent_seconds() < 0.05
    building = fleet.building(within_seconds=60)
    assert building is not None
    assert building.snapshot == "step-1-e1"


# sync, off, external


def test_sync_builds_at_the_step_and_proposes_only_what_is_newer(run, embedder):
    refresher = make_refresher("sync", run, ALONE)
    refresher.start()
    first = refresher.build(0, embedder)
    assert refresher.poll() == first
    refresher.mark_served(first)
    assert refresher.poll() is None
    refresher.submit(5, perturb(embedder))
    second = refresher.poll()
    assert (second.snapshot_step, second.builder_pid) == (5, os.getpid())
    assert second.embedder_fingerprint != first.embedder_fingerprint
    assert_rows_equal_their_snapshot(refresher, second)
    assert embedder.training is False
    refresher.stop()


def test_sync_is_deterministic(run, embedder):
    refresher = make_refresher("sync", run, ALONE, keep_generations=None)
    names = [refresher.build(step, embedder).name for step in (1, 2)]
    with refresher.store.open(names[0]) as one, refresher.store.open(names[1]) as two:
        assert np.array_equal(one.embeddings, two.embeddings)
    refresher.stop()


def test_building_leaves_a_training_embedder_in_training_mode(run, embedder):
    embedder.train()
    refresher = make_refresher("sync", run, ALONE)
    refresher.build(0, embedder)
    refresher.stop()
    assert embedder.training
    assert all(p.requires_grad for n, p in embedder.named_parameters() if not n.startswith("cls.predictions."))


def test_off_builds_the_first_index_and_no_other(run, embedder):
    refresher = make_refresher("off", run, ALONE)
    refresher.mark_served(refresher.build(0, embedder))
    refresher.submit(5, perturb(embedder))
    assert refresher.poll() is None
    refresher.stop()
    assert [path.name for path in run.snapshots.iterdir()] == ["step-0-e0"]


def test_an_unknown_mode_is_named(run):
    with pytest.raises(ValueError, match=r"refresh is 'later'\. Choose one of: sync, async, external, off"):
        make_refresher("later", run, ALONE)


def test_what_was_built_for_a_replaced_trainer_is_not_served(run, embedder):
    old_trainer = RunDirectory.open(run.root)
    with old_trainer.lock():
        old = make_refresher("sync", old_trainer, ALONE)
        old.build(900, embedder)
    with run.lock():
        new = make_refresher("external", run, ALONE)
        new._next_look = 0.0
        assert new.poll() is None, "step 900 of epoch 1 is not the future of a trainer that resumed under epoch 2"
        with pytest.raises(RefreshError, match=r"taken over by another trainer \(epoch 2, this one has 1\)"):
            old.submit(901, embedder)
        new.build(100, embedder)
        info = new.poll()
        assert (info.snapshot_step, info.epoch) == (100, 2)
        new.stop()
    old.stop()


def test_collection_keeps_the_served_generation_and_the_snapshot_behind_it(run, embedder):
    refresher = make_refresher("sync", run, ALONE, keep_generations=1)
    infos = []
    for step in (0, 5, 10):
        infos.append(refresher.build(step, perturb(embedder)))
        (builds_of(refresher.store) / f"step-{step}-e0-1234abcd-8").mkdir(
            parents=True
        )  # as killed builders leave them
        refresher.mark_served(infos[0])
    refresher.stop()
    assert [info.name for info in refresher.store.list()] == [infos[0].name, infos[2].name]
    assert sorted(path.name for path in run.snapshots.iterdir()) == ["step-0-e0", "step-10-e0"]
    left = sorted(path.name for path in builds_of(refresher.store).iterdir())
    assert left == ["step-0-e0-1234abcd-8", "step-10-e0-1234abcd-8"]


def test_centroids_are_reused_until_recall_falls(tmp_path, tiny_passages, tokenizer, embedder):
    run = RunDirectory.create(
        tmp_path / "run",
        passages=tiny_passages,
        tokenizer=tokenizer,
        index_factory="IVF4,Flat",
        embedding_dtype="float16",
    )
    log = run.logs / "index-recall.jsonl"
    refresher = make_refresher("sync", run, ALONE, keep_generations=None)
    refresher.build(0, embedder)
    refresher.build(5, perturb(embedder))
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(r["snapshot_step"], r["reused"]) for r in records] == [(0, False), (5, True)]
    assert all(0.2 < r["recall"] <= 1.0 for r in records)
    log.write_text(json.dumps(records[0] | {"recall": 2.0}) + "\n")
    info = refresher.build(10, perturb(embedder))
    refresher.stop()
    assert json.loads(log.read_text().splitlines()[-1])["reused"] is False
    with refresher.store.open(info.name) as generation:
        assert generation.embeddings.dtype == np.float16


def test_a_build_that_would_fill_the_disk_is_refused_before_it_embeds(run, embedder, monkeypatch):
    refresher = make_refresher("sync", run, ALONE)
    usage = SimpleNamespace(free=17 << 20)
    monkeypatch.setattr("realm_hf.generations.store.shutil.disk_usage", lambda path: usage)
    refresher.build(0, embedder)
    usage.free = 16 << 20
    monkeypatch.setattr("realm_hf.refresh.build.embed_passages", None)
    with pytest.raises(OSError, match="collect old generations or move the run directory"):
        refresher.build(1, embedder)
    refresher.stop()


def full_disk(*arguments, **named):
    raise OSError(errno.ENOSPC, "the file system is full")


def test_a_wait_survives_a_snapshot_that_finds_no_room(run, embedder, monkeypatch, caplog):
    """Nobody submits while training waits: what could not be written is written again."""
    refresher = ExternalRefresher(run, ALONE)
    refresher.retry_seconds = 0.01
    monkeypatch.setattr("realm_hf.refresh.modes._LOOK_SECONDS", 0.0)
    coordinator = SwapCoordinator(ALONE, refresher.store.open)
    refresh = RefreshScheduler(refresher, coordinator, refresh_steps=2, max_staleness=2, on_stale="wait")
    refresh.start(0, embedder)
    monkeypatch.setattr("realm_hf.refresh.store_refresher.write_snapshot", full_disk)
    looks = []
    builder = Builder(run)

    def build_beside() -> bool:
        looks.append(builder.build_newest())
        if len(looks) == 10:
            monkeypatch.undo()
        return len(looks) > 500

    for step in (1, 2):
        assert refresh.after_step(step, embedder) is None
    as_submitted = embedder.cls.dense.weight.clone()
    swap = refresh.after_step(3, perturb(embedder), interrupted=build_beside)
    builder.close()
    refresh.stop()
    assert swap is not None, "the wait had no other end than the test's own"
    assert swap.generation.info.snapshot_step == 2
    assert torch.equal(load_snapshot(run, "step-2-e0").cls.dense.weight, as_submitted)
    assert "index refresh failed (1 in a row), next try in 0 s" in caplog.text
    assert refresher.check_health().failures == 0


def test_a_disk_that_stays_full_ends_training_in_words(run, embedder, monkeypatch):
    refresher = ExternalRefresher(run, ALONE, retry_seconds=0.01, max_failures=2)
    monkeypatch.setattr("realm_hf.refresh.modes._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("realm_hf.refresh.store_refresher.write_snapshot", full_disk)
    refresher.submit(1, embedder)
    with pytest.raises(RefreshError, match=r"could not be refreshed 3 times in a row\. Last: the snapshot could not"):
        next_generation(refresher, 20)
    refresher.stop()


def test_a_full_disk_is_asked_again_after_a_pause_and_not_at_every_submission(run, embedder, monkeypatch):
    refresher = ExternalRefresher(run, ALONE, retry_seconds=60.0, max_failures=2)
    monkeypatch.setattr("realm_hf.refresh.modes._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("realm_hf.refresh.store_refresher.write_snapshot", full_disk)
    refresher.submit(1, embedder)
    assert wait_until(lambda: refresher.poll() is None and refresher.check_health().failures == 1, 20)
    for step in range(2, 12):
        refresher.submit(step, embedder)
        next_generation(refresher, 0.02)
    assert refresher.check_health().failures == 1
    refresher.stop()


def test_the_end_of_a_run_does_not_wait_for_a_disk_that_never_answers(run, embedder, monkeypatch, caplog):
    refresher = ExternalRefresher(run, ALONE)
    monkeypatch.setattr("realm_hf.refresh.store_refresher._STOP_SECONDS", 0.2)
    monkeypatch.setattr("realm_hf.refresh.store_refresher._STOP_NOTE_SECONDS", 0.1)
    answer = threading.Event()
    monkeypatch.setattr("realm_hf.refresh.store_refresher.write_snapshot", lambda *_, **__: answer.wait(60))
    refresher.submit(1, embedder)
    started = time.monotonic()
    refresher.stop()
    assert time.monotonic() - started < 30
    answer.set()
    assert "has not finished a write" in caplog.text


def test_a_trainer_that_was_replaced_hears_of_it_while_it_waits(run, embedder):
    refresher = ExternalRefresher(run, ALONE)
    refresher.submit(1, embedder)
    with RunDirectory.open(run.root).lock(), pytest.raises(RefreshError, match="taken over by another trainer"):
        next_generation(refresher, 20)
    refresher.stop()


def test_a_builder_that_fails_again_and_again_is_told_and_is_no_sign_of_work(run, embedder):
    refresher = ExternalRefresher(run, ALONE, max_failures=2)
    heartbeat = Heartbeat(run.heartbeats / "b.json", interval=0.01)
    try:
        for failures, is_building in ((2, True), (3, False)):
            heartbeat.report_failure(failures, "OSError: the disk is full")
            heartbeat.mark("embedding", "step-1-e0")
            refresher._fleet.silent_seconds()
            assert wait_until(lambda n=failures: refresher.check_health().failures == n, 10)
            assert refresher.check_health().building is is_building
        assert refresher.check_health().last_error.endswith("OSError: the disk is full")
    finally:
        heartbeat.stop()
        refresher.stop()


@pytest.mark.multiprocess
def test_external_builders_are_found_by_what_they_leave_in_the_run(run, embedder, tmp_path):
    """`--watch` builds the newest snapshot, beats while it waits, and ends in order."""
    with run.lock():
        refresher = make_refresher("external", run, ALONE)
        refresher.submit(3, embedder)
        assert refresher.poll() is None
        assert not refresher.check_health().building
        words = [str(run.root), "--watch", "--poll-seconds", "0.1"]
        builder = Program("builder_program", [words], tmp_path / "printed", {})
        try:
            info = next_generation(refresher, 60)
            assert (info.snapshot_step, info.builder_pid) == (3, builder.pid)
            assert_rows_equal_their_snapshot(refresher, info)
            assert wait_until(lambda: refresher.check_health().heartbeat_age_seconds < 2.0, 10)
            refresher.mark_served(info)
            assert next_generation(refresher, 0.5) is None, "one generation a snapshot"
            builder.terminate()
            ended = builder.wait(timeout=20)
        finally:
            builder.kill()
        refresher.stop()
    assert ended == 0, builder.output
    assert list(run.heartbeats.iterdir()) == []


# async: one builder for the tests below, which go on from one another's steps


@pytest.fixture(scope="module")
def refreshing(tmp_path_factory, tiny_passages, tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    embedder = RealmEmbedder(RealmConfig(vocab_size=2048, retriever_proj_size=16, **sizes))
    run = RunDirectory.create(tmp_path_factory.mktemp("async") / "run", passages=tiny_passages, tokenizer=tokenizer)
    with run.lock():
        refresher = AsyncRefresher(run, ALONE, heartbeat_timeout=30, retry_seconds=0.05, keep_generations=None)
        refresher.start()
        yield refresher, embedder
        refresher.stop()


def refresh_once(refresher: AsyncRefresher, step: int, embedder: RealmEmbedder) -> GenerationInfo:
    refresher.submit(step, perturb(embedder))
    info = next_generation(refresher, 60)
    assert info is not None, refresher.check_health()
    refresher.mark_served(info)
    return info


@pytest.mark.multiprocess
def test_each_generation_has_a_builder_of_its_own_and_a_newer_snapshot(refreshing):
    refresher, embedder = refreshing
    infos = [refresh_once(refresher, step, embedder) for step in (10, 20, 30)]
    assert [info.snapshot_step for info in infos] == [10, 20, 30]
    pids = {info.builder_pid for info in infos}
    assert len(pids) == 3
    assert os.getpid() not in pids
    for info in infos:
        assert_rows_equal_their_snapshot(refresher, info)
    health = refresher.check_health()
    assert (health.submitted_step, health.built_step, health.failures, health.building) == (30, 30, 0, False)


@pytest.mark.multiprocess
def test_the_server_that_forks_builders_has_one_thread(refreshing):
    refresher, embedder = refreshing
    refresh_once(refresher, 40, embedder)
    assert refresher._builder is not None
    tasks = Path(f"/proc/{refresher._builder.pid}/task")
    assert len(list(tasks.iterdir())) == 1, "a fork of a process with threads may hang"


def test_the_newest_logs_stay_and_those_of_failed_builds_longer(tmp_path):
    names = [f"builder-{number:012x}.log" for number in range(50)]
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    for name in names[40:]:
        assert mark_failed(tmp_path / name).name == f"failed-{name}"
    (tmp_path / "index-recall.jsonl").touch()
    prune_logs(tmp_path, living=tmp_path / names[39])
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {*names[:20], names[39], *(f"failed-{name}" for name in names[40:]), "index-recall.jsonl"}
    assert mark_failed(tmp_path / "never-opened.log") == tmp_path / "never-opened.log"


@pytest.mark.multiprocess
def test_older_snapshots_are_skipped(refreshing):
    refresher, embedder = refreshing
    for step in (50, 60, 70):
        refresher.submit(step, perturb(embedder))
    assert wait_until(lambda: refresher._committed_step == 70, 20)
    info = next_generation(refresher, 60)
    assert info.snapshot_step == 70
    assert not {50, 60} & {each.snapshot_step for each in refresher.store.list()}
    refresher.mark_served(info)


@pytest.mark.multiprocess
def test_failed_builds_are_retried_while_the_old_generation_serves(refreshing):
    refresher, embedder = refreshing
    passages = refresher.run.passages
    hidden = passages.with_name("hidden")
    passages.rename(hidden)
    refresher.submit(80, perturb(embedder))
    assert wait_until(lambda: refresher.poll() is None and refresher.check_health().failures >= 2, 30)
    told = refresher.check_health().last_error
    assert "ended with exit code 4" in told
    assert "passages.json is missing" in told, "the end of the builder's log is in the error"
    log = Path(re.search(r"its log (\S+) ends with", told)[1])
    assert log.name.startswith("failed-builder-") and log.exists()
    hidden.rename(passages)
    info = next_generation(refresher, 60)
    assert info.snapshot_step == 80
    assert refresher.check_health().failures == 0
    refresher.mark_served(info)


@pytest.mark.multiprocess
def test_too_many_failures_end_training_with_the_builders_words(refreshing, monkeypatch):
    refresher, embedder = refreshing
    monkeypatch.setattr(refresher, "max_failures", 1)
    passages = refresher.run.passages
    hidden = passages.with_name("hidden")
    passages.rename(hidden)
    refresher.submit(90, perturb(embedder))
    with pytest.raises(RefreshError, match=r"(?s)could not be refreshed 2 times in a row.*passages\.json is missing"):
        next_generation(refresher, 30)
    hidden.rename(passages)
    refresher.mark_served(next_generation(refresher, 60))


@pytest.mark.multiprocess
def test_a_quarantined_generation_is_built_again(refreshing):
    refresher, embedder = refreshing
    bad = refresh_once(refresher, 100, embedder)
    refresher.store.quarantine(bad.name, "rank 1: truncated")
    refresher._served = refresher.store.list()[-1]
    info = next_generation(refresher, 60)
    assert info.snapshot_step == 100
    assert info.name != bad.name
    refresher.mark_served(info)


@pytest.mark.multiprocess
def test_a_snapshot_that_finds_no_room_is_told_and_the_next_one_goes_on(refreshing, monkeypatch):
    refresher, embedder = refreshing

    def full(*arguments, **named):
        raise OSError(28, "the file system is full")

    monkeypatch.setattr("realm_hf.refresh.store_refresher.write_snapshot", full)
    monkeypatch.setattr(refresher, "retry_seconds", 1.0)
    refresher.submit(110, perturb(embedder))
    assert wait_until(lambda: refresher.poll() is None and refresher.check_health().failures == 1, 20)
    assert "the file system is full" in refresher.check_health().last_error
    refresher.submit(120, perturb(embedder))  # while the disk is given a rest: it takes the place of the other
    monkeypatch.undo()
    assert next_generation(refresher, 60).snapshot_step == 120
    refresher.mark_served(next_generation(refresher, 0))


@pytest.mark.multiprocess
def test_diverged_weights_end_training(refreshing, embedder):
    refresher, _ = refreshing
    with torch.no_grad():
        embedder.cls.dense.weight[0, 0] = float("inf")
    refresher.submit(130, embedder)
    with pytest.raises(RefreshError, match="training has diverged"):
        wait_until(lambda: refresher.poll() is not None, 20)


@pytest.mark.multiprocess
def test_submitting_does_not_wait_for_the_disk(refreshing, monkeypatch):
    refresher, embedder = refreshing
    disk = threading.Event()

    def slow(*arguments, **named):
        assert disk.wait(30)
        return write_snapshot(*arguments, **named)

    monkeypatch.setattr("realm_hf.refresh.store_refresher.write_snapshot", slow)
    refresher.submit(140, perturb(embedder))
    as_submitted = embedder.cls.dense.weight.clone()
    perturb(embedder)  # training goes on
    assert refresher.poll() is None
    disk.set()
    info = next_generation(refresher, 60)
    refresher.mark_served(info)
    assert info.snapshot_step == 140
    assert torch.equal(load_snapshot(refresher.run, "step-140-e1").cls.dense.weight, as_submitted)


@pytest.mark.multiprocess
def test_a_builder_that_cannot_be_started_is_tried_again(refreshing):
    refresher, embedder = refreshing
    logs = refresher.run.logs
    hidden = logs.with_name("hidden")
    logs.rename(hidden)
    os.kill(refresher._builder.pid, signal.SIGKILL)
    assert wait_until(lambda: refresher.poll() is None and refresher.check_health().failures >= 3, 30)
    assert "the index builder could not be started" in refresher.check_health().last_error
    hidden.rename(logs)
    assert refresh_once(refresher, 150, embedder).snapshot_step == 150


@pytest.mark.multiprocess
def test_a_killed_builder_that_the_kernel_does_not_let_go_is_left_behind(run, monkeypatch, caplog):
    builder = BuilderProcess(run)
    wait = builder._process.wait

    def held(timeout=None):
        assert timeout is not None, "it waits for ever"
        raise subprocess.TimeoutExpired("builder", timeout)

    monkeypatch.setattr(builder._process, "wait", held)
    builder.kill()
    assert wait(20) == -signal.SIGKILL
    assert "It is left behind" in caplog.text
