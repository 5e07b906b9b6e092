"""The threads that the index is given reach FAISS: in the builds of a trainer, in its searches, and in its builder."""

import time

import faiss
import pytest
from tiny_worlds import load_world, tiny_model, tiny_tokenizer

from realm_hf.index import threads
from realm_hf.refresh import build, builder
from realm_hf.refresh.builder_process import BuilderProcess
from realm_hf.runs.snapshots import write_snapshot
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.index_threads import IndexThreads
from realm_hf.training.pretraining import RealmTrainer


@pytest.fixture
def used(monkeypatch):
    """FAISS's threads in each embedding, each build and each search; torch may share them (one OpenMP library)."""
    seen = {"embedding": [], "build": [], "search": []}
    build_index, search, embed = build.build_index, faiss.IndexFlat.search, build.embed_passages

    def watched_embedding(*args, **kwargs):
        seen["embedding"].append(faiss.omp_get_max_threads())
        return embed(*args, **kwargs)

    def watched_build(*args, **kwargs):
        seen["build"].append(faiss.omp_get_max_threads())
        return build_index(*args, **kwargs)

    def watched_search(index, queries, *args, **kwargs):
        if len(queries) > 1:  # one query is one thread's work
            seen["search"].append(faiss.omp_get_max_threads())
        return search(index, queries, *args, **kwargs)

    monkeypatch.setattr(build, "embed_passages", watched_embedding)
    monkeypatch.setattr(build, "build_index", watched_build)
    monkeypatch.setattr(faiss.IndexFlat, "search", watched_search)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # what `accelerate launch` leaves
    yield seen
    faiss.omp_set_num_threads(before)


def pretrain(world, run, **overrides):
    passages, sentences = load_world(world)
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "num_candidates": 3, "refresh": "sync"}
    lengths = {"max_query_length": 24, "max_candidate_length": 32}
    rest = {"refresh_steps": 1, "use_cpu": True, "disable_tqdm": True, **lengths, **overrides}
    args = RealmTrainingArguments(output_dir=str(run), **settings, **rest)
    RealmTrainer(
        tiny_model(), args, train_dataset=sentences.train, processing_class=tiny_tokenizer(), passages=passages
    ).train()


def test_a_trainers_builds_take_all_cores_and_its_searches_what_the_launcher_left(monkeypatch, used, world, tmp_path):
    monkeypatch.setattr("realm_hf.training.index_threads.usable_cores", lambda: 3)
    pretrain(world, tmp_path)
    assert set(used["build"]) == {3} and len(used["build"]) == 3
    assert set(used["search"]) == set(used["embedding"]) == {1}
    assert faiss.omp_get_max_threads() == 1


def test_index_threads_is_what_builds_and_searches_take(used, world, tmp_path):
    pretrain(world, tmp_path, index_threads=2)
    assert set(used["build"]) == set(used["search"]) == {2}


@pytest.mark.parametrize(
    ("given", "device", "ranks", "expected"),
    [
        (None, "cpu", 2, IndexThreads(16, 4, None)),
        (None, "cuda", 1, IndexThreads(16, 15, 16)),
        (None, "cuda", 8, IndexThreads(16, 8, 2)),
        (None, "cuda", 32, IndexThreads(16, 4, 1)),
        (6, "cuda", 8, IndexThreads(6, 6, 6)),
    ],
)
def test_the_builder_beside_training_takes_what_training_leaves(monkeypatch, given, device, ranks, expected):
    monkeypatch.setattr("realm_hf.training.index_threads.usable_cores", lambda: 16)
    args = RealmTrainingArguments(output_dir="run", builder_threads=4, index_threads=given)
    assert IndexThreads.of(args, device, ranks) == expected


@pytest.mark.parametrize(
    ("options", "expected"), [(["--index-threads", "3", "--threads", "1"], 3), (["--threads", "2"], 2), ([], 5)]
)
def test_a_builder_started_by_hand(monkeypatch, used, run, embedder, options, expected):
    monkeypatch.setattr(builder, "usable_cores", lambda: 5)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    write_snapshot(run, embedder, 0, 0)
    assert builder.main([str(run.root), *options]) == builder.EXIT_BUILT
    assert used["build"] == [expected]


@pytest.mark.multiprocess
def test_the_builder_process_of_a_trainer(run, embedder):
    write_snapshot(run, embedder, 0, 0)
    process = BuilderProcess(run, threads=1, index_threads=2)
    try:
        asked = process.request()
        deadline = time.monotonic() + 120
        while asked.status is None and time.monotonic() < deadline:
            process.look()
            time.sleep(0.05)
    finally:
        process.stop()
    assert asked.status == 0, asked.describe()
    assert "building index Flat on 2 threads" in asked.log_path.read_text()


def test_a_containers_quota_counts():
    assert threads._quota_in_cores("150000 100000\n") == 2
    assert threads._quota_in_cores("max 100000\n") > 1000
    assert threads.usable_cores() >= 1
