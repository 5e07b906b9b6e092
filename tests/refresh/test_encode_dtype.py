"""Passages are embedded in the numbers that the run asks for; what they were is recorded, and does not move much."""

import json

import numpy as np
import pytest
import torch
from tiny_worlds import bag_of_words_start, tiny_model

from realm_hf.generations.manifest import GenerationInfo
from realm_hf.generations.store import GenerationStore
from realm_hf.index.exact import exact_search
from realm_hf.models.precision import encoding_in, resolved_encode_dtype
from realm_hf.refresh.builder import Builder
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.snapshots import write_snapshot
from realm_hf.runs.verification import verify_run
from realm_hf.storage.files import json_sha256
from realm_hf.training.arguments import RealmTrainingArguments


def build(folder, passages, tokenizer, embedder, **settings):
    run = RunDirectory.create(folder, passages=passages, tokenizer=tokenizer, **settings)
    write_snapshot(run, embedder, 0, 0)
    builder = Builder(run)
    try:
        info = builder.build_newest()
    finally:
        builder.close()
    with GenerationStore(run.index).open(info.name) as generation:
        return run, info, np.array(generation.embeddings, np.float32)


@pytest.fixture
def in_float32(tmp_path, tiny_passages, tokenizer, embedder):
    return build(tmp_path / "float32", tiny_passages, tokenizer, embedder, encode_dtype="float32")


def test_bfloat16_reaches_the_attention_and_the_manifest(
    monkeypatch, tmp_path, tiny_passages, tokenizer, embedder, in_float32
):
    seen = set()
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query, *args, **kwargs):
        seen.add(query.dtype)
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    run, info, rounded = build(tmp_path / "bfloat16", tiny_passages, tokenizer, embedder, encode_dtype="bfloat16")
    assert seen == {torch.bfloat16}
    assert (in_float32[1].encode_dtype, info.encode_dtype) == ("float32", "bfloat16")
    exact = in_float32[2]
    assert 0 < np.abs(rounded - exact).max() < 0.15 and np.abs(rounded - exact).mean() < 0.02
    assert all(finding.is_good for finding in verify_run(run))


def test_auto_is_float32_on_a_processor_and_a_run_keeps_its_choice(tmp_path, tiny_passages, tokenizer, embedder):
    run, info, _ = build(tmp_path / "run", tiny_passages, tokenizer, embedder)
    assert (run.config.encode_dtype, info.encode_dtype) == ("auto", "float32")
    again = {"passages": tiny_passages, "tokenizer": tokenizer}
    RunDirectory.open_or_create(run.root, **again, encode_dtype="auto")
    with pytest.raises(RunDirectoryError, match="encode_dtype: 'auto' then, 'bfloat16' now"):
        RunDirectory.open_or_create(run.root, **again, encode_dtype="bfloat16")


def test_runs_and_generations_from_before_there_was_a_choice_open_as_float32(in_float32, tiny_passages, tokenizer):
    run, info, _ = in_float32
    settings = json.loads((run.root / "run.json").read_text())
    del settings["encode_dtype"]
    (run.root / "run.json").write_text(json.dumps(settings))
    path = run.index / info.name / "generation.json"
    content = json.loads(path.read_text())
    del content["encode_dtype"], content["sha256"]
    path.write_text(json.dumps({**content, "sha256": json_sha256(content)}))

    again = {"passages": tiny_passages, "tokenizer": tokenizer, "encode_dtype": "auto"}
    assert RunDirectory.open_or_create(run.root, **again).config.encode_dtype == "float32"
    assert GenerationInfo.from_json(path.read_bytes(), path).encode_dtype == "float32"
    assert all(finding.is_good for finding in verify_run(run))


@pytest.mark.parametrize(
    ("asked", "device", "native", "used"),
    [
        ("auto", "cuda", True, "tf32"),
        ("auto", "cuda", False, "float32"),
        ("auto", "cpu", True, "float32"),
        ("tf32", "cuda", True, "tf32"),
        ("tf32", "cpu", True, "float32"),
        ("float32", "cuda", True, "float32"),
        ("bfloat16", "cpu", False, "bfloat16"),
    ],
)
def test_what_is_asked_for_on_which_device_is_computed_in(monkeypatch, asked, device, native, used):
    monkeypatch.setattr("realm_hf.models.precision.native_bfloat16", lambda device: native)
    assert resolved_encode_dtype(asked, torch.device(device)) == used


def test_tf32_is_allowed_while_passages_are_embedded_and_not_afterwards():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(OSError), encoding_in("tf32", torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "high"
        raise OSError
    assert torch.get_float32_matmul_precision() == before == "highest"


def test_an_unknown_type_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"encode_dtype is 'fp8'\. Choose one of: auto, float32, tf32, bfloat16"):
        RealmTrainingArguments(output_dir="run", encode_dtype="fp8")


def test_bfloat16_keeps_nearly_all_of_the_nearest_on_real_text(tmp_path, countries, tokenizer):
    """By a tower that compares words: a random one's embeddings are all but equal, and any rounding turns them."""
    tower = bag_of_words_start(tiny_model()).embedder.eval()
    nearest = {}
    for dtype in ("float32", "bfloat16"):
        _, _, vectors = build(tmp_path / dtype, countries, tokenizer, tower, encode_dtype=dtype)
        nearest[dtype] = exact_search(vectors, vectors, 5)[1]
    kept = [np.isin(a, b).mean() for a, b in zip(nearest["float32"], nearest["bfloat16"], strict=True)]
    assert np.mean(kept) > 0.9
