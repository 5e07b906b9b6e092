"""The command line: what it prints, and its exit codes."""

import json

import numpy as np
import pytest
import torch

from realm_hf.cli.main import main
from realm_hf.generations.store import GenerationStore
from realm_hf.runs.snapshots import collect_snapshots, write_snapshot


@pytest.fixture
def built(run, embedder, capsys):
    """A run with one snapshot and the generation that `build-index` made of it."""
    write_snapshot(run, embedder, 3, 0)
    assert main(["build-index", str(run.root)]) == 0
    capsys.readouterr()
    return run


def the_generation(run) -> str:
    (info,) = GenerationStore(run.index).list()
    return info.name


def test_build_index_builds_the_newest_snapshot_once(run, embedder):
    assert main(["build-index", str(run.root)]) == 3, "nothing to build is told apart from a failure"
    for step in (1, 2):
        write_snapshot(run, embedder, step, 0)
    assert main(["build-index", str(run.root), "--once", "--threads", "1"]) == 0
    assert [info.snapshot_step for info in GenerationStore(run.index).list()] == [2]
    assert main(["build-index", str(run.root)]) == 3
    assert list(run.heartbeats.iterdir()) == []


def test_build_index_tells_a_failed_build(run, embedder, caplog):
    info = write_snapshot(run, embedder, 1, 0)
    weights = run.snapshots / info.name / "embedder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["build-index", str(run.root)]) == 1
    assert "the file is damaged" in caplog.text


@pytest.mark.parametrize("command", ["build-index", "inspect", "verify"])
def test_a_folder_that_is_no_run_is_refused(command, tmp_path, capsys, caplog):
    assert main([command, str(tmp_path)]) == 4
    assert "is not a run directory" in capsys.readouterr().err + caplog.text


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fly"])
    assert ended.value.code == 2
    assert "Choose one of: ask, build-index, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reprt", "run"])
    assert capsys.readouterr().err == "realm-hf: There is no command 'reprt'. Did you mean 'report'?\n"


@pytest.mark.parametrize("arguments", [[], ["build-index"], ["inspect"], ["verify"], ["report"], ["search"]])
def test_every_command_has_help(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    assert "run directory" in capsys.readouterr().out or not arguments


def test_inspect_names_what_is_there(built, capsys):
    name = the_generation(built)
    GenerationStore(built.index).quarantine(name, "rank 1: truncated")
    with built.lock() as lock:
        assert main(["inspect", str(built.root)]) == 0
    told = capsys.readouterr().out
    assert "48 passages, index Flat" in told
    assert "snapshots: step-3-e0" in told
    assert f"{name}  quarantined: rank 1: truncated" in told
    assert f"process {lock.holder.pid} on {lock.holder.host}" in told
    assert "running" in told


def test_inspect_as_json_has_every_recorded_field(built, capsys):
    assert main(["inspect", str(built.root), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["run"]["rows"] == 48
    assert facts["trainer"] is None
    (generation,) = facts["generations"]
    assert generation["name"] == the_generation(built)
    assert set(generation["files"]) == {"embeddings.npy", "index.faiss"}


def test_verify_recomputes_rows_and_finds_all_well(built, capsys):
    assert main(["verify", str(built.root), "--rows", "20"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["ok", "ok"]
    assert "20 rows recomputed from step-3-e0" in told[1]
    assert "recall@10 of Flat 1.000" in told[1]


def test_verify_finds_a_flipped_byte(built, capsys):
    path = built.index / the_generation(built) / "embeddings.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(built.root), "--rows", "0"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_verify_finds_rows_that_another_snapshot_made(built, embedder, capsys):
    """All hashes are right, but the generation says that it was built from weights that give other rows."""
    with torch.no_grad():
        embedder.cls.LayerNorm.bias.add_(0.01)
    store = GenerationStore(built.index)
    info = write_snapshot(built, embedder, 4, 0)
    with store.open(the_generation(built)) as other:
        store.write(
            np.array(other.embeddings),
            other.index,
            snapshot_step=info.step,
            passages_fingerprint=built.config.passages_fingerprint,
            tokenizer_fingerprint=built.config.tokenizer_fingerprint,
            embedder_fingerprint=info.fingerprint,
            factory="Flat",
        ).close()
    assert main(["verify", str(built.root)]) == 1
    ok, good, wrong = capsys.readouterr().out.splitlines()
    assert ok.startswith("ok ")
    assert good.startswith("ok ")
    assert wrong.startswith("WRONG  step-4-")
    assert "differs from what step-4-e0 gives" in wrong


def test_verify_says_when_the_snapshot_is_gone(built, embedder, capsys):
    write_snapshot(built, embedder, 9, 0)
    collect_snapshots(built)
    assert main(["verify", str(built.root)]) == 0
    assert "rows not recomputed: snapshot step-3-e0 is not kept any more" in capsys.readouterr().out


def test_verify_finds_passages_that_were_exchanged(built, capsys):
    path = built.root / "run.json"
    path.write_text(path.read_text().replace(built.config.passages_fingerprint, "0" * 16), encoding="utf-8")
    assert main(["verify", str(built.root)]) == 1
    assert "run.json says 0000" in capsys.readouterr().out


def test_report_prints_where_it_wrote(built, tmp_path, capsys):
    (built.root / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n", encoding="utf-8")
    target = tmp_path / "my.html"
    assert main(["report", str(built.root), "--output", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert "<html" in target.read_text(encoding="utf-8").lower()


def test_verify_finds_a_snapshot_of_other_weights_than_the_recorded_ones(built, embedder, capsys):
    collect_snapshots(built)
    (built.snapshots / "step-3-e0").rename(built.root / "gone")
    with torch.no_grad():
        embedder.cls.predictions.bias.add_(1.0)  # not read, not kept, not fingerprinted
        embedder.realm.embeddings.word_embeddings.weight[7].add_(1e-6)  # no passage has this token
    write_snapshot(built, embedder, 3, 0)
    assert main(["verify", str(built.root)]) == 1
    assert "built from other weights than step-3-e0 holds" in capsys.readouterr().out
