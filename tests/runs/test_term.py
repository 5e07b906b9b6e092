"""A term: later ones have greater numbers, and whoever lost its place can neither publish nor remove any more."""

import fcntl
import json
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

from realm_hf.generations.store import GenerationStore
from realm_hf.index.faiss_index import build_index
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunLocked, RunTakenOver
from realm_hf.runs.leftovers import remove_leftovers
from realm_hf.runs.lock import LockHolder
from realm_hf.runs.records import read_log
from realm_hf.runs.term import Term
from realm_hf.storage.directories import StagedDirectory, retire_directory
from realm_hf.storage.files import write_json
from realm_hf.training.tracking import StepLog


def claim(root, at_least=0):
    return Term.claim(root, at_least, lambda number: {"pid": 7, "host": "there", "since": "today", "epoch": number})


def publish(folder, content, term, replace=True):
    with StagedDirectory(folder, replace=replace, place=term.place) as staged:
        # As a library does it, which makes what is missing above.
        (staged.path / "model").mkdir(parents=True)
        (staged.path / "model" / "weights").write_text(content)


def test_numbers_grow_and_the_newest_place_stays_as_their_count(tmp_path):
    assert [claim(tmp_path).number for _ in range(3)] == [1, 2, 3]
    newest = claim(tmp_path, at_least=7)
    newest.retire_earlier()
    assert [path.name for path in (tmp_path / "terms").iterdir()] == ["8"]
    assert claim(tmp_path).number == 9


def test_a_claimer_that_stood_still_while_its_number_came_and_went_gets_a_later_one(tmp_path, monkeypatch):
    (tmp_path / "terms").mkdir()
    mkdir, others = os.mkdir, []

    def slow_mkdir(path, *rest):
        if not others and str(path).endswith("terms/1"):
            others.append(None)
            claim(tmp_path)
            others[0] = claim(tmp_path)
            others[0].retire_earlier()
        mkdir(path, *rest)

    monkeypatch.setattr(os, "mkdir", slow_mkdir)
    assert claim(tmp_path).number == 3
    assert not others[0].is_lost()


def test_a_lost_place_lets_nothing_out_and_nothing_in(tmp_path):
    first = claim(tmp_path)
    publish(tmp_path / "model", "first", first)
    (tmp_path / "summary.json").write_text("{}")
    claim(tmp_path).retire_earlier()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "model", "late", first)
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "new", "late", first, replace=False)
    with pytest.raises(OSError, match="could not write"):
        write_json(tmp_path / "summary.json", {"late": 1}, place=first.place)
    with pytest.raises(FileNotFoundError):
        retire_directory(tmp_path / "model", first.place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "summary.json", "terms"]
    assert (tmp_path / "model" / "model" / "weights").read_text() == "first"
    assert (tmp_path / "summary.json").read_text() == "{}"
    with pytest.raises(RunTakenOver, match=r"taken over by process 7 on there at today, term 2: this trainer"):
        first.require()


@pytest.fixture
def another_file_system(tmp_path):
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not another file system here")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def test_a_directory_on_another_file_system_is_fenced_off_as_well(tmp_path, another_file_system):
    (tmp_path / "checkpoints").symlink_to(another_file_system)
    root = tmp_path / "checkpoints"
    first = claim(tmp_path)
    publish(root / "step-3", "first", first, replace=False)
    publish(root / "step-3", "again", first)
    publish(root / "step-6", "first", first)
    retire_directory(root / "step-6", first.place)
    claim(tmp_path).retire_earlier()
    for late in (
        lambda: publish(root / "step-9", "late", first),
        lambda: retire_directory(root / "step-3", first.place),
    ):
        with pytest.raises(FileNotFoundError):
            late()
    assert (root / "step-3" / "model" / "weights").read_text() == "again"
    assert sorted(path.name for path in root.iterdir()) == [".terms", "step-3"]
    assert [path.name for path in (root / ".terms").iterdir()] == ["2"]


def test_retiring_waits_until_a_place_is_gone_that_is_still_written_to(tmp_path, monkeypatch):
    first, second = claim(tmp_path), claim(tmp_path)
    # On a network file system another host may still reach it by its handle.
    handle, rmdir, late = os.open(first.place, os.O_RDONLY), os.rmdir, [1, 2]

    def late_write(path, *rest, **options):
        if late:
            os.mkdir(f"late-{late.pop()}", dir_fd=handle)
        rmdir(path, *rest, **options)

    monkeypatch.setattr(os, "rmdir", late_write)
    second.retire_earlier()
    assert [path.name for path in (tmp_path / "terms").iterdir()] == ["2"]
    with pytest.raises(FileNotFoundError):
        os.mkdir("late", dir_fd=handle)
    os.close(handle)


def test_what_a_killed_successor_left_of_a_place_is_removed_by_the_next(tmp_path):
    (tmp_path / "terms" / ".gone-1-12345678" / "step-3").mkdir(parents=True)
    claim(tmp_path).retire_earlier()
    assert [path.name for path in (tmp_path / "terms").iterdir()] == ["1"]


def test_lines_of_a_replaced_trainer_go_to_a_log_that_nobody_reads(tmp_path):
    first = claim(tmp_path)
    log = StepLog(tmp_path / "log.jsonl", term=first)
    log.write({"step": 1})
    second = claim(tmp_path)
    second.retire_earlier()
    successor = StepLog(tmp_path / "log.jsonl", after_step=1, term=second)
    log.term = None  # it has just asked
    log.write({"step": 2, "late": True})
    successor.write({"step": 2})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]
    log.term = first
    with pytest.raises(RunTakenOver):
        log.write({"step": 3})


def test_a_trainer_that_begins_its_log_late_does_not_write_into_its_successors(tmp_path, monkeypatch):
    first, replace = claim(tmp_path), os.replace

    def replaced_meanwhile(source, target):
        replace(source, target)
        monkeypatch.setattr(os, "replace", replace)
        second = claim(tmp_path)
        second.retire_earlier()
        StepLog(tmp_path / "log.jsonl", term=second).write({"step": 1})

    monkeypatch.setattr(os, "replace", replaced_meanwhile)
    late = StepLog(tmp_path / "log.jsonl", term=first)
    late.term = None
    late.write({"step": 1, "late": True})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]


def test_a_replaced_trainer_neither_collects_nor_quarantines_nor_writes_a_generation(run, tmp_path):
    store = GenerationStore(run.index)
    embeddings = np.eye(8, 4, dtype=np.float32)

    def write(step, place=None):
        facts = dict.fromkeys(("passages_fingerprint", "tokenizer_fingerprint", "embedder_fingerprint"), "x")
        index = build_index(embeddings, "Flat")
        generation = store.write(embeddings, index, snapshot_step=step, factory="Flat", place=place, **facts)
        generation.close()
        return generation.name

    names = {write(1), write(2)}
    first = claim(tmp_path)
    claim(tmp_path).retire_earlier()
    assert store.collect(keep_newest=1, place=first.place) == []
    with pytest.raises(OSError, match="quarantine"):
        store.quarantine(min(names), "late", place=first.place)
    with pytest.raises(OSError, match="write generation"):
        write(3, place=first.place)
    assert {info.name for info in store.list()} == names and store.quarantined() == {}


# The lock


def test_a_lock_that_a_predecessor_takes_by_mistake_is_put_back(run, monkeypatch):
    old = run.lock()
    run.lock_path.unlink()  # a person
    retire = Term.retire_earlier
    held = old.is_held

    def release_meanwhile(term):
        # The predecessor has just seen its own lock there, and takes what is there now.
        old.is_held = lambda: True
        old.release()
        old.is_held = held
        retire(term)

    monkeypatch.setattr(Term, "retire_earlier", release_meanwhile)
    new = RunDirectory.open(run.root).lock()
    assert new.is_held() and new.term.number == 2


def test_a_lock_that_a_predecessor_took_and_never_put_back_is_set_again(run, monkeypatch):
    old = run.lock()
    run.lock_path.unlink()
    retire = Term.retire_earlier

    def killed_meanwhile(term):
        old._take_away()
        retire(term)

    monkeypatch.setattr(Term, "retire_earlier", killed_meanwhile)
    assert RunDirectory.open(run.root).lock().is_held()


def test_a_late_release_leaves_the_successors_lock_alone(run):
    old = run.lock()
    run.lock_path.unlink()
    new = RunDirectory.open(run.root).lock()
    old.is_held = lambda: True
    old.release()
    assert new.is_held()


def test_who_stood_before_taking_the_lock_while_another_took_and_gave_it_back_ends_in_words(run, monkeypatch):
    link, others = os.link, []

    def slow_link(source, target):
        if str(target).endswith("trainer.lock") and not others:
            others.append(None)
            RunDirectory.open(run.root).lock().release()
        link(source, target)

    monkeypatch.setattr(os, "link", slow_link)
    with pytest.raises(RunTakenOver, match=f"process {os.getpid()} on .*, term 2"):
        run.lock()
    assert not run.lock_path.exists() and run.read_epoch() == 2


def test_who_judged_a_holder_dead_and_stood_still_does_not_take_the_successors_lock(run, monkeypatch):
    dead = LockHolder.of_this_process(4).__dict__ | {"process_start": "1"}
    run.lock_path.write_text(json.dumps(dead))
    alive, locks = LockHolder.is_alive, []

    def slow_judgement(holder):
        if not locks:
            locks.append(None)
            run.lock_path.unlink()  # a person, tired of waiting
            locks[0] = RunDirectory.open(run.root).lock()
            return False
        return alive(holder)

    monkeypatch.setattr(LockHolder, "is_alive", slow_judgement)
    with pytest.raises(RunTakenOver):
        run.lock()
    assert locks[0].is_held() and not locks[0].term.is_lost()


def test_a_late_creator_does_not_set_the_epoch_back(tmp_path, run, tiny_passages, tokenizer, monkeypatch):
    create = {"passages": tiny_passages, "tokenizer": tokenizer, "index_factory": "Flat"}
    link, root = os.link, tmp_path / "raced"

    def slow_link(source, target):
        if str(target).endswith("run.json"):
            monkeypatch.setattr(os, "link", link)
            RunDirectory.create(root, **create).lock().release()
        link(source, target)

    monkeypatch.setattr(os, "link", slow_link)
    with pytest.raises(Exception, match="made a run by another process"):
        RunDirectory.create(root, **create)
    assert RunDirectory.open(root).read_epoch() == 1
    assert not list(root.glob(".tmp-*"))


def test_a_process_that_stands_still_while_it_takes_over_is_named_and_not_waited_for(run, monkeypatch):
    monkeypatch.setattr("realm_hf.runs.lock._GUARD_SECONDS", 0.1)
    run.lock_path.write_text(json.dumps(LockHolder.of_this_process(4).__dict__ | {"process_start": "1"}))
    with run.lock_path.with_name("trainer.lock.guard").open("w") as guard:
        guard.write("4711")
        guard.flush()
        fcntl.flock(guard, fcntl.LOCK_EX)
        with pytest.raises(RunLocked, match=r"Process 4711 .* is it stopped\? End it"):
            run.lock()
    run.lock().release()


def test_an_old_run_without_terms_counts_on_from_its_epoch(run):
    write_json(run.root / "run.json", json.loads((run.root / "run.json").read_text()) | {"epoch": 5})
    assert RunDirectory.open(run.root).lock().term.number == 6


# What killed trainers leave


def test_leftovers_of_the_dead_are_collected_and_those_of_the_living_are_not(run):
    checkpoints = run.checkpoints
    child = os.fork()
    if child == 0:
        try:
            for folder in (checkpoints / "step-3", run.root / "model", run.root / "best" / "step-3"):
                (StagedDirectory(folder).__enter__().path / "weights").write_text("w")
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    of_dead = LockHolder.of_this_process(1).__dict__ | {"pid": child}
    (run.root / ".tmp-trainer.lock-11111111").write_text(json.dumps(of_dead))
    (run.root / ".tmp-trainer.lock-22222222").write_text('{"host"')
    (run.root / ".tmp-trainer.lock-33333333").write_text(json.dumps(LockHolder.of_this_process(1).__dict__))
    with StagedDirectory(checkpoints / "step-9") as living:
        removed = remove_leftovers(run.root)
        assert living.path.is_dir()
    assert sorted(name.rpartition("-")[0] for name in removed) == [
        ".tmp-model",
        ".tmp-step-3",
        ".tmp-step-3",
        ".tmp-trainer.lock",
        ".tmp-trainer.lock",
    ]
    assert [path.name for path in run.root.rglob(".tmp-*")] == [".tmp-trainer.lock-33333333"]


@pytest.mark.multiprocess
def test_a_trainer_killed_while_it_takes_the_lock_leaves_nothing_that_stays(run):
    for call in ("link", "mkdir", "replace"):
        child = os.fork()
        if child == 0:
            setattr(os, call, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            try:
                run.lock()
            finally:
                os._exit(1)
        os.waitpid(child, 0)
    lock = run.lock()
    assert [path.name for path in (run.root / "terms").iterdir()] == [str(lock.term.number)]
    assert [path.name for path in lock.term.place.iterdir()] == ["holder.json"]
    assert not list(run.root.glob(".tmp-*"))
