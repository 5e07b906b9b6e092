"""The store's writer dies at each of its system calls: readers never see part of a generation; reruns succeed.

Writers are forked children that die of SIGKILL: no handler and no clean-up runs. In mode "after" the writer dies right
after its n-th call, in mode "torn" a write takes half of its bytes before.
"""

import json
import os
import random
import re
import signal
import time
from contextlib import suppress

import numpy as np
import pytest

from realm_hf.generations.store import GenerationNotFoundError, GenerationStore
from realm_hf.index.faiss_index import build_index

CALLS = ("open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir")
ROWS = 5_000  # 320 kB of embeddings: several writes a file


def embeddings_of(step):
    return np.random.default_rng(step).standard_normal((ROWS, 16)).astype(np.float32)


def write(store, step):
    fields = dict.fromkeys(["passages_fingerprint", "tokenizer_fingerprint", "embedder_fingerprint"], "x")
    embeddings = embeddings_of(step)
    return store.write(embeddings, build_index(embeddings), snapshot_step=step, factory="Flat", **fields)


def read_all(store):
    """Every generation that a reader sees must be whole, to the last byte."""
    names = []
    for info in store.list():
        with store.open(info.name, verify="sha256") as generation:
            np.testing.assert_array_equal(generation.embeddings, embeddings_of(info.snapshot_step))
            assert len(generation.index) == ROWS
        names.append(info.name)
    return names


def die_at(fatal, mode, trace):
    """Wrap this process's calls; the `fatal`-th is its last. What is called is noted in `trace`."""

    def wrap(name, real):
        def counted(*args, **kwargs):
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            trace.append(name)
            last = len(trace) == fatal
            if last and mode == "torn" and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **kwargs)
            finally:  # a call that fails, as mkdir of what exists, is a moment to die at as well
                if last:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))


def run_writer(store, step, fatal, mode):
    """Whether the writer lived to the end."""
    child = os.fork()
    if child == 0:
        try:
            die_at(fatal, mode, [])
            write(store, step)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0


@pytest.fixture
def trace(tmp_path, in_child):
    """The calls of one undisturbed write into a directory that exists."""

    def write_once():
        store = GenerationStore(tmp_path / "traced")
        store.root.mkdir()
        calls = []
        die_at(0, "after", calls)
        write(store, 0)
        return json.dumps(calls)

    return json.loads(in_child(write_once))


@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", ["after", "torn"])
def test_killed_at_each_call_no_reader_opens_a_partial_generation(tmp_path, trace, mode):
    store = GenerationStore(tmp_path / "index")
    kept = write(store, 0).name
    committed = []
    for fatal in range(1, len(trace) + 2):
        before = read_all(store)
        lived = run_writer(store, fatal, fatal, mode)
        after = read_all(store)
        assert set(before) <= set(after) and kept in after, "a kill lost what was there"
        if lived:
            break
        committed.append(len(after) - len(before))
    assert len(committed) == len(trace) >= 15  # every call of a whole write was the last one once
    rename = trace.index("rename")
    assert committed == [0] * rename + [1] * (len(trace) - rename)  # the rename is the commit point

    assert list(store.root.glob(".tmp-*"))
    again = write(store, 999)  # a rerun after all these kills
    store.collect(keep=read_all(store))
    assert not list(store.root.glob(".tmp-*")) and again.name in read_all(store)


def test_files_are_synced_before_the_rename_and_the_parent_after_it(trace):
    file = "open (write )+fsync"
    assert re.fullmatch(rf"mkdir open mkdir ({file} ){{3}}fsync rename fsync unlink", " ".join(trace)), trace


@pytest.mark.multiprocess
def test_killed_at_random_moments_while_a_reader_reads(tmp_path, full):
    """Driven by time and not by calls: moments inside a system call too, with a reader and a collector at work."""
    store, rng, opened = GenerationStore(tmp_path / "index"), random.Random(0), 0
    for round_ in range(40 if full else 5):
        writer = os.fork()
        if writer == 0:
            with suppress(BaseException):
                for step in range(round_ * 1_000, (round_ + 1) * 1_000):
                    write(store, step).close()
                    store.collect()
            os._exit(1)
        end = time.monotonic() + rng.uniform(0.1, 0.4)
        while time.monotonic() < end:
            for info in store.list()[-1:]:
                # The writer collects: a generation may go between the two lines, and that is told as such.
                with suppress(GenerationNotFoundError), store.open(info.name, verify="sha256") as generation:
                    assert len(generation.index) == generation.info.rows == ROWS
                    opened += 1
        os.kill(writer, signal.SIGKILL)
        assert os.waitpid(writer, 0)[1] == signal.SIGKILL
        read_all(store)
    assert opened > 3
    store.collect()
    assert not list(store.root.glob(".tmp-*"))
