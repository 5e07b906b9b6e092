"""One generation by several builders: killed, late, beside each other; the rows are those of a single one."""

import contextlib
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.store import GenerationStore
from realm_hf.index.faiss_search import set_faiss_threads
from realm_hf.refresh import build as module
from realm_hf.refresh import builder_server
from realm_hf.refresh.build import TASK_ROWS, build_generation, builds_of
from realm_hf.refresh.builder_device import check_builder_device
from realm_hf.refresh.builder_options import BuilderOptions
from realm_hf.runs.snapshots import load_snapshot, write_snapshot

ROWS = 5


@pytest.fixture
def snapshot(run, embedder):
    return write_snapshot(run, embedder, 1, 0)


def build(run, snapshot, task_rows=ROWS, progress=lambda *_: None):
    return build_generation(
        run,
        snapshot,
        load_snapshot(run, snapshot.name),
        passages=PassageStore.load(run.passages),
        store=GenerationStore(run.index),
        progress=progress,
        task_rows=task_rows,
    )


def rows_of(run, info):
    with GenerationStore(run.index).open(info.name, verify="sha256") as generation:
        return np.array(generation.embeddings), generation.index.search(generation.embeddings[:3], 5)


def test_tasks_of_whole_windows_give_the_bytes_of_one_pass(run, snapshot, embedder, monkeypatch):
    assert TASK_ROWS == 16_384
    monkeypatch.setattr("realm_hf.generations.embedding.ROWS_A_WINDOW", ROWS)
    embeddings, _ = rows_of(run, build(run, snapshot))
    whole = module.embed_passages(load_snapshot(run, snapshot.name), PassageStore.load(run.passages))
    assert np.array_equal(embeddings, whole)
    assert not list(builds_of(GenerationStore(run.index)).iterdir())


def test_builders_beside_each_other_make_one_generation_and_embed_no_row_twice(run, snapshot, monkeypatch):
    embedded = []
    embed = module.embed_passages

    def watched(embedder, passages, **named):
        embedded.append((named["rows"].start, threading.get_ident()))
        time.sleep(0.01)
        return embed(embedder, passages, **named)

    monkeypatch.setattr(module, "embed_passages", watched)
    monkeypatch.setattr("realm_hf.storage.tasks._LOOK_SECONDS", 0.01)
    infos = []
    builders = [threading.Thread(target=lambda: infos.append(build(run, snapshot))) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [info.name for info in infos] == [infos[0].name] * 3
    assert len(GenerationStore(run.index).list()) == 1
    starts = sorted(start for start, _ in embedded)
    assert starts == list(range(0, infos[0].rows, ROWS))
    assert len({builder for _, builder in embedded}) > 1, "only one of them worked: the test proves nothing"
    late = build(run, snapshot)
    assert late == infos[0] and len(embedded) == len(starts), "who comes late embeds nothing"
    assert not list(builds_of(GenerationStore(run.index)).iterdir())
    monkeypatch.undo()
    alone, found = rows_of(run, infos[0])
    np.testing.assert_allclose(
        alone, module.embed_passages(load_snapshot(run, snapshot.name), PassageStore.load(run.passages)), atol=1e-5
    )
    assert found.rows[:, 0].tolist() == [0, 1, 2]


@pytest.mark.multiprocess
def test_a_builder_that_is_killed_loses_one_task_and_no_more(run, snapshot):
    """Killed in the middle of embedding, and another when the index was to be written."""
    store = GenerationStore(run.index)

    def killed_when(phase: str, parts: int) -> None:
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)  # other threads are not forked
            set_faiss_threads(1)

            def progress(at: str, *_: int) -> None:
                if at == phase and len(list(store.root.glob(".builds/*/embed/parts/*"))) >= parts:
                    os.kill(os.getpid(), signal.SIGKILL)

            with contextlib.suppress(BaseException):
                build(run, snapshot, progress=progress)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    killed_when("embedding", 2)
    parts = {path: path.stat().st_mtime_ns for path in store.root.glob(".builds/*/embed/parts/*/part.json")}
    assert len(parts) == 2
    killed_when("writing", 0)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts, "what was embedded is not embedded again"
    assert not store.list()
    info = build(run, snapshot)
    embeddings, _ = rows_of(run, info)
    embedder, passages = load_snapshot(run, snapshot.name), PassageStore.load(run.passages)
    np.testing.assert_allclose(embeddings, module.embed_passages(embedder, passages), atol=1e-5)


@pytest.mark.multiprocess
def test_the_trainers_builder_has_a_process_on_each_of_its_devices(run, monkeypatch):
    """The first is the build, the others help it, and none of them outlives it."""
    told = []
    started = run.logs / "started"

    def build_and_exit(options: BuilderOptions, server: int) -> None:
        with started.open("a") as file:
            file.write(f"{options.name} on {options.device}\n")
        if options.device != "cuda:1":
            time.sleep(600)
        while len(started.read_text().splitlines()) < 3:
            time.sleep(0.01)
        os._exit(0)

    monkeypatch.setattr(builder_server, "_build_and_exit", build_and_exit)
    monkeypatch.setattr(builder_server, "_answer", told.append)
    server = builder_server.BuilderServer(BuilderOptions(run.root, device="cuda:1, cuda:2,cuda:3"), os.getppid())
    server._fork("builder-a")
    helpers = dict(server._helpers)
    while len(told) < 2:
        server._reap()
        time.sleep(0.01)
    assert told[1] == "ended builder-a 0"
    expected = ["builder-a on cuda:1", "builder-a-1 on cuda:2", "builder-a-2 on cuda:3"]
    assert sorted(started.read_text().splitlines()) == expected
    for pid in helpers.values():
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    assert len(helpers) == 2 and not server._helpers


def test_each_of_several_devices_is_looked_at():
    check_builder_device("cpu, cpu")
    with pytest.raises(ValueError, match="'nonsense', which is none"):
        check_builder_device("cpu,nonsense")


def test_a_builder_that_embedded_in_bfloat16_is_named_by_the_manifest(run, snapshot, monkeypatch):
    dtypes = iter(["bfloat16"])
    monkeypatch.setattr(module, "resolved_encode_dtype", lambda *_: "float32")
    parts = module.SharedTasks.read_part

    def read_part(tasks, task):
        return parts(tasks, task) | {"encode_dtype": next(dtypes, "float32")}

    monkeypatch.setattr(module.SharedTasks, "read_part", read_part)
    info = build(run, snapshot)
    manifest = json.loads((run.index / info.name / "generation.json").read_text())
    assert info.encode_dtype == manifest["encode_dtype"] == "bfloat16"
