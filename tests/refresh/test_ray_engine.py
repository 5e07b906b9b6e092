"""Builders on Ray: without it a clear word; with it one generation, though a worker is killed."""

import os
import shutil
import signal
import tempfile

import pytest

from realm_hf.cli.main import main
from realm_hf.generations.store import GenerationStore
from realm_hf.refresh import ray_engine
from realm_hf.refresh.builder_options import BuilderOptions
from realm_hf.runs.snapshots import write_snapshot


def test_what_to_install_is_said_where_there_is_no_ray(run, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["build-index", str(run.root), "--engine", "ray"]) == 4
    assert "run `pip install ray`" in capsys.readouterr().err


def test_the_builder_that_did_worst_is_told():
    assert ray_engine._worst([0, 3, 0]) == 0, "one came when all was done"
    assert ray_engine._worst([3, 3]) == 3
    assert ray_engine._worst([0, 1, 3]) == 1


@pytest.mark.multiprocess
def test_a_worker_that_is_killed_is_started_again_and_one_generation_comes_of_it(run, embedder, monkeypatch, tmp_path):
    ray = pytest.importorskip("ray")
    write_snapshot(run, embedder, 1, 0)
    killed = tmp_path / "killed"
    build = ray_engine._build

    def dies_once(options: BuilderOptions) -> int:
        try:
            killed.touch(exist_ok=False)
        except FileExistsError:
            return build(options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr(ray_engine, "_build", dies_once)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's sockets lie below its folder, and their paths may be no longer than 107 bytes.
    folder = tempfile.mkdtemp(prefix="r")
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, _node_ip_address="127.0.0.1")
    try:
        assert ray_engine.run_on_ray(BuilderOptions(run.root), 2) == 0
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    assert killed.exists() and len(GenerationStore(run.index).list()) == 1
