"""Corpora and an index made on a Ray cluster of this machine, though a worker is killed; without Ray, a clear word."""

import json
import os
import shutil
import signal
import sys
import tempfile

import pytest
from tiny_bert import tiny_bert

from realm_hf.cli import prepare
from realm_hf.cli.corpus_arguments import EngineArguments
from realm_hf.cli.main import main
from realm_hf.data import PassageStore, SentenceStore
from realm_hf.generations.store import GenerationStore
from realm_hf.refresh import ray_engine
from realm_hf.refresh.builder_options import BuilderOptions
from realm_hf.runs.snapshots import write_snapshot
from realm_hf.storage.ray_workers import run_on_ray


def test_what_to_install_is_said_where_there_is_no_ray(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["build-index", str(run.root), "--engine", "ray"]) == 4
    assert "run `pip install ray`" in capsys.readouterr().err


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="0 workers on Ray were asked for"):
        run_on_ray(int, 0)


def test_what_only_ray_heeds_is_refused_without_it(tmp_path, capsys):
    assert main(["build-index", str(tmp_path), "--builders", "2"]) == 4
    assert "--builders and --gpus need --engine ray" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--workers 2 needs --engine ray"):
        EngineArguments(workers=2)


def test_the_builder_that_did_worst_is_told():
    assert ray_engine._worst([0, 3, 0]) == 0, "one came when all was done"
    assert ray_engine._worst([3, 3]) == 3
    assert ray_engine._worst([0, 1, 3]) == 1


def test_a_builder_gets_a_gpu_where_it_embeds_on_one(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ray_engine, "run_on_ray", lambda _, workers, **kept: asked.append((workers, kept)) or [0])
    for words in ([], ["--device", "cuda"], ["--device", "cuda", "--gpus", "0.5", "--threads", "4"]):
        assert main(["build-index", str(tmp_path), "--engine", "ray", "--builders", "3", *words]) == 0
    kept = [{"cpus": 1, "gpus": 0.0}, {"cpus": 1, "gpus": 1.0}, {"cpus": 4, "gpus": 0.5}]
    assert asked == [(3, keeps) for keeps in kept]


@pytest.fixture(scope="module")
def cluster():
    """One node with two workers, on loopback."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: `pip install ray` runs this test")
    # Ray's sockets lie below its folder, and their paths may be no longer than 107 bytes.
    folder = tempfile.mkdtemp(prefix="r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=80 * 2**20,
                _temp_dir=folder,
                # That of the host instead would be taken for 127.0.0.1.
                _node_ip_address="127.0.0.2",
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.multiprocess
def test_a_builder_that_is_killed_is_started_again_and_one_generation_comes_of_it(
    cluster, run, embedder, monkeypatch, tmp_path
):
    write_snapshot(run, embedder, 1, 0)
    killed = tmp_path / "killed"
    build = ray_engine._build

    def dies_once(options: BuilderOptions) -> int:
        from realm_hf.refresh import build as module

        try:
            killed.touch(exist_ok=False)
        except FileExistsError:
            return build(options)
        # In the middle: it has claimed a task.
        module.embed_passages = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        return build(options)

    monkeypatch.setattr(ray_engine, "_build", dies_once)
    assert main(["build-index", str(run.root), "--engine", "ray", "--builders", "2"]) == 0
    assert killed.exists() and len(GenerationStore(run.index).list()) == 1


@pytest.mark.multiprocess
def test_a_worker_that_is_killed_is_started_again_and_the_corpora_are_whole(cluster, monkeypatch, tmp_path):
    rows = [{"title": f"Town {n}", "text": f"The town of Paris number {n} lies in Egypt."} for n in range(40)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_bert(tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    killed = tmp_path / "killed"
    work = prepare._prepare

    def dies_once(*arguments: object) -> str | None:
        from realm_hf.data import ranges
        from realm_hf.data.passages import build as module

        ranges.RANGE_DOCUMENTS = 8
        write = module.write_part

        def write_one(*args, **named):
            if named["first_document"] == 16 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*args, **named)

        module.write_part = write_one
        return work(*arguments)

    monkeypatch.setattr(prepare, "_prepare", dies_once)
    words = ["--knowledge_corpus", "documents.jsonl", "--model_name_or_path", "bert", "--output_dir", "run"]
    words += ["--max_candidate_length", "64", "--use_cpu", "true", "--streaming", "true"]
    assert main(["prepare", *words, "--engine", "ray", "--workers", "2"]) == 0
    assert killed.exists()
    assert len(PassageStore.load(tmp_path / "run" / "passages", verify=True)) == 40
    assert SentenceStore.load(tmp_path / "run" / "sentences", verify=True).statistics["documents"] == 40
