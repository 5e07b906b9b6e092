"""The run directory: created once, opened anywhere, one trainer at a time, each with an epoch of its own."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from realm_hf.data.passages.store import PassageStore
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError, RunLocked
from realm_hf.runs.lock import LockHolder, read_holder
from realm_hf.storage.files import write_json
from realm_hf.storage.processes import boot_id, process_start

HOLD_THE_LOCK = """
import sys, time
from realm_hf.runs.directory import RunDirectory
lock = RunDirectory.open(sys.argv[1]).lock()
print(lock.term.number, flush=True)
time.sleep(600)
"""


def start_holder(run: RunDirectory) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD_THE_LOCK, str(run.root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "1"
    return process


def forge_holder(run: RunDirectory, **changes: object) -> None:
    holder = dataclasses.asdict(LockHolder.of_this_process(term=4)) | changes
    run.lock_path.write_text(json.dumps(holder), encoding="utf-8")


def test_a_run_holds_all_that_a_builder_needs(run, tiny_passages, tokenizer):
    opened = RunDirectory.open(run.root)
    assert opened.config == run.config
    assert opened.config.rows == 48
    assert opened.config.packages["torch"]
    copy = PassageStore.load(run.passages, verify=True)
    assert copy.fingerprint == tiny_passages.fingerprint == opened.config.passages_fingerprint
    reloaded = type(tokenizer).from_pretrained(run.tokenizer)
    assert (
        reloaded("The river lies in the north.")["input_ids"] == tokenizer("The river lies in the north.")["input_ids"]
    )


def test_passages_are_linked_and_not_copied(run, tiny_passages):
    for name in tiny_passages.info["files"]:
        assert (run.passages / name).samefile(tiny_passages.directory / name)


def test_an_existing_run_is_not_created_again(run, tiny_passages, tokenizer):
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        RunDirectory.create(run.root, passages=tiny_passages, tokenizer=tokenizer)


def test_open_or_create_names_the_setting_that_differs(run, tiny_passages, tokenizer):
    create = {"passages": tiny_passages, "tokenizer": tokenizer}
    assert RunDirectory.open_or_create(run.root, **create, index_factory="Flat").config == run.config
    with pytest.raises(RunDirectoryError, match="index_factory: 'Flat' then, 'IVF4,Flat' now"):
        RunDirectory.open_or_create(run.root, **create, index_factory="IVF4,Flat")


def test_auto_is_written_as_what_it_stands_for(tmp_path, tiny_passages, tokenizer, monkeypatch):
    create = {"passages": tiny_passages, "tokenizer": tokenizer, "index_factory": "auto"}
    small = RunDirectory.create(tmp_path / "small", **create).config
    assert (small.index_factory, small.index_train_size, small.index_recall) == ("Flat", None, None)
    monkeypatch.setattr("realm_hf.index.default_index.FLAT_ROWS", 40)
    large = RunDirectory.create(tmp_path / "large", **create).config
    assert (large.index_factory, large.index_train_size, large.index_recall) == ("IVF32,SQfp16", 2048, 0.97)
    again = RunDirectory.open_or_create(tmp_path / "small", **create).config
    assert again == small, "a run goes on with the index that it began with"


def test_a_folder_that_is_no_run_is_told_so(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"no run\.json"):
        RunDirectory.open(tmp_path)


def test_a_tokenizer_that_did_not_make_the_passages_is_refused(tmp_path, tiny_passages, tokenizer, tiny_vocab):
    words = tiny_vocab.read_text(encoding="utf-8").splitlines()
    other_vocab = tmp_path / "vocab.txt"
    other_vocab.write_text("\n".join([*words[:-1], "##zzz"]), encoding="utf-8")
    other = type(tokenizer)(vocab=str(other_vocab), do_lower_case=True)
    with pytest.raises(ValueError, match="not the one that made the passages"):
        RunDirectory.create(tmp_path / "run", passages=tiny_passages, tokenizer=other)


def test_a_run_of_another_protocol_is_refused(run):
    path = run.root / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": 99}), encoding="utf-8")
    with pytest.raises(RunDirectoryError, match="protocol 99"):
        RunDirectory.open(run.root)


def test_every_trainer_gets_a_new_epoch(run):
    with run.lock() as first:
        assert first.term.number == run.config.epoch == run.read_epoch() == 1
    with RunDirectory.open(run.root).lock() as second:
        assert second.term.number == 2
    assert RunDirectory.open(run.root).config.epoch == 2


def test_a_second_trainer_is_refused_while_the_first_lives(run):
    with run.lock(), pytest.raises(RunLocked, match=rf"A trainer already runs on .*process {os.getpid()} on"):
        RunDirectory.open(run.root).lock()
    assert run.read_epoch() == 1, "a refused trainer must not fence off the one that runs"


@pytest.mark.multiprocess
def test_a_killed_trainer_is_taken_over_and_a_living_one_is_not(run):
    holder = start_holder(run)
    try:
        with pytest.raises(RunLocked, match=f"process {holder.pid} on"):
            run.lock()
    finally:
        holder.send_signal(signal.SIGKILL)
    # Not reaped yet: a zombie holds nothing.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with run.lock() as lock:
        assert lock.term.number == 2
    holder.communicate()


def test_a_recycled_process_id_is_not_the_holder(run):
    forge_holder(run, process_start="1")
    assert process_start(os.getpid()) != "1"
    with run.lock() as lock:
        assert lock.term.number == 5, "one more than the dead holder's, though run.json was behind"


def test_a_dead_trainers_lock_of_an_earlier_version_is_taken_over(run):
    forge_holder(run, process_start="1")
    holder = json.loads(run.lock_path.read_text(encoding="utf-8"))
    holder["epoch"] = holder.pop("term")
    run.lock_path.write_text(json.dumps(holder), encoding="utf-8")
    with run.lock() as lock:
        assert lock.term.number == 5


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot_id": "before"}, {"pid_namespace": "pid:[1]"}])
def test_a_holder_that_cannot_be_judged_from_here_is_left_in_peace(run, change):
    forge_holder(run, pid=2**22 - 1, **change)
    with pytest.raises(RunLocked, match=r"nobody can tell .* remove .*trainer\.lock"):
        run.lock()
    assert read_holder(run.lock_path).term == 4


def test_release_leaves_a_lock_alone_that_was_taken_over(run):
    lock = run.lock()
    forge_holder(run, host="elsewhere")
    assert not lock.is_held()
    lock.release()
    assert run.lock_path.exists()


def test_boot_id_is_stable():
    assert boot_id() == boot_id() != ""


@pytest.mark.parametrize("number, words", [(errno.ENOSPC, "is full"), (errno.EROFS, "read-only")])
def test_an_unwritable_run_directory_is_told_in_words(run, monkeypatch, number, words):
    before = (run.root / "run.json").read_bytes()

    def fail(path, target):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=words) as caught:
        run.lock()
    assert caught.value.errno == number
    assert (run.root / "run.json").read_bytes() == before
    assert not run.lock_path.exists(), "a trainer that could not begin must not leave its lock"
    assert not list(run.root.glob(".tmp-*"))


def test_a_path_below_a_file_is_told_in_words(tmp_path, tiny_passages, tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="a part of the path is a file"):
        RunDirectory.create(tmp_path / "file" / "run", passages=tiny_passages, tokenizer=tokenizer)


def test_names_in_checkpoints_are_read_from_their_fields_and_from_no_others(run):
    pretraining = {
        "generation": "step-1-aaaaaaaa",
        "snapshot": "step-1-e1",
        "pending_snapshot": 3,
        "ahead": [{"name": "step-2-bbbbbbbb"}],
    }
    fine_tuning = {
        "generation": "step-4-dddddddd",
        "snapshot": "step-4-e1",
        "pending_snapshot": None,
        "best": {"generation": "step-0-eeeeeeee", "folder": "step-2"},
        "model": "step-9-cccccccc",
    }
    untrained = {"generation": "step-5-ffffffff", "snapshot": "step-5-e1", "best": {"generation": None}}
    without_an_index = {"step": 6, "cursor": 24}
    for step, state in enumerate((pretraining, fine_tuning, untrained, without_an_index)):
        (run.checkpoints / f"step-{step}").mkdir()
        write_json(run.checkpoints / f"step-{step}" / "state.json", state)
    assert run.named_by_checkpoints() == {
        *("step-1-aaaaaaaa", "step-1-e1", "step-4-dddddddd", "step-4-e1", "step-0-eeeeeeee"),
        *("step-5-ffffffff", "step-5-e1"),
    }
