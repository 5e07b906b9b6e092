"""Leases have a deadline: a lock that somebody else holds on a generation is waited for, told, and done without."""

import fcntl
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from realm_hf.generations.store import GenerationStore
from realm_hf.index.faiss_index import build_index
from realm_hf.storage import leases

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def generation(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    store = GenerationStore(tmp_path / "index")
    facts = {"passages_fingerprint": "p", "tokenizer_fingerprint": "t", "embedder_fingerprint": "e"}
    written = store.write(vectors, build_index(vectors), snapshot_step=5, factory="Flat", **facts)
    written.close()
    return store, written.name


@pytest.fixture
def holder(generation):
    store, name = generation
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.root / name / "generation.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.multiprocess
def test_a_generation_that_a_stranger_keeps_locked_is_opened_all_the_same_and_the_stranger_named(
    generation, holder, monkeypatch, caplog
):
    store, name = generation
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "realm_hf"), store.open(name) as opened:
        assert len(opened.index) == 20
    assert 0.5 <= time.monotonic() - started < 10
    assert "is still locked by" in caplog.text
    assert "it is read without a lease" in caplog.text
    # Not all file systems' inode numbers are those of the table.
    named = f" {holder.pid} " in Path("/proc/locks").read_text()
    assert not named or f"process {holder.pid} (" in caplog.text


@pytest.mark.multiprocess
def test_a_lock_that_is_given_back_in_time_leaves_the_reader_a_lease(generation, holder, monkeypatch, caplog):
    store, name = generation
    monkeypatch.setattr(leases, "LEASE_SECONDS", 60.0)
    monkeypatch.setattr(leases, "_TOLD_AFTER_SECONDS", 0.0)
    looked = leases.lock_holders

    def unlock_when_told(path):
        told = looked(path)
        holder.kill()
        return told

    monkeypatch.setattr(leases, "lock_holders", unlock_when_told)
    with caplog.at_level(logging.WARNING, "realm_hf"), store.open(name) as opened:
        descriptor = os.open(opened.path / "generation.json", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    assert "waiting up to 60 s for" in caplog.text
    assert "without a lease" not in caplog.text
