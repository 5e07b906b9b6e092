"""Checkpoints that transformers 4.57.6 wrote load as they are, and converted, with that library's answers."""

import argparse
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from realm_hf import RealmRetriever
from realm_hf.cli.convert import add_parser
from realm_hf.index.faiss_index import build_index
from realm_hf.index.file import flat_index_head
from realm_hf.legacy.block_records import BlockRecordsError
from realm_hf.legacy.conversion import convert
from realm_hf.legacy.retriever import load_old_retriever
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.storage.checkpoint_tensors import CheckpointRefusedError

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
OLD = FIXTURES / "bert" / "RealmForOpenQA" / "bin"
SHAPES = sorted(path.parents[1].name for path in FIXTURES.glob("*/RealmForOpenQA/bin"))
KINDS = sorted(path.relative_to(FIXTURES) for path in FIXTURES.glob("*/Realm*/bin"))
QUESTIONS = ["What is the capital of France?", "Who wrote it?", "the river"]


@pytest.fixture
def old(tmp_path) -> Path:
    """An old QA checkpoint that a test may damage."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def answers(folder: Path, cache_dir: Path) -> list[torch.Tensor]:
    retriever = RealmRetriever.from_pretrained(folder, cache_dir=cache_dir)
    model = RealmForOpenQA.from_pretrained(folder, retriever=retriever)
    found = []
    for question in QUESTIONS:
        output = model(**retriever.tokenizer([question], return_tensors="pt"))
        found += [output.predicted_answer_ids, output.reader_output.block_idx, output.reader_output.start_pos]
    return found


def test_the_retriever_loads_as_it_is_and_maps_what_is_large(tmp_path):
    retriever = RealmRetriever.from_pretrained(OLD, cache_dir=tmp_path)
    stored = torch.load(OLD / "pytorch_model.bin", weights_only=True)["block_emb"].numpy()
    np.testing.assert_array_equal(retriever.embeddings, stored)
    assert isinstance(retriever.embeddings, np.memmap)
    expected = [text.decode() for text in np.load(OLD / "block_records.npy", allow_pickle=True)]
    assert retriever.passages["text"][:] == expected
    batch = retriever.retrieve(stored[:3], k=4, null_passage=False)
    np.testing.assert_array_equal(batch.rows, np.argsort(-(stored[:3] @ stored.T), axis=1, kind="stable")[:, :4])


def test_records_are_copied_once_and_again_when_the_file_changes(old, tmp_path):
    def tables():
        return sorted((tmp_path / "cache" / "realm_hf").iterdir())

    load_old_retriever(old, cache_dir=tmp_path / "cache")
    (first,) = tables()
    written = first.stat().st_mtime_ns
    load_old_retriever(old, cache_dir=tmp_path / "cache")
    assert [path.stat().st_mtime_ns for path in tables()] == [written]
    records = np.load(old / "block_records.npy", allow_pickle=True)
    records[0] = b"another text"
    np.save(old / "block_records.npy", records)
    assert load_old_retriever(old, cache_dir=tmp_path / "cache").passages[0]["text"] == "another text"
    assert len(tables()) == 2


def test_no_table_is_left_of_records_that_were_refused(old, tmp_path):
    content = (old / "block_records.npy").read_bytes()
    (old / "block_records.npy").write_bytes(content[:-10])
    with pytest.raises(BlockRecordsError):
        load_old_retriever(old, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "realm_hf").iterdir()) == []


def test_without_embeddings_there_are_passages_only(old, tmp_path):
    (old / "pytorch_model.bin").unlink()
    retriever = RealmRetriever.from_pretrained(old, cache_dir=tmp_path)
    assert len(retriever) == 12
    assert retriever.embeddings is None


def test_an_index_may_be_left_out_and_variants_are_refused(tmp_path):
    assert RealmRetriever.from_pretrained(OLD, index=False, cache_dir=tmp_path).embeddings is None
    with pytest.raises(ValueError, match="index='hnsw': an old checkpoint has no variants"):
        RealmRetriever.from_pretrained(OLD, index="hnsw", cache_dir=tmp_path)


def test_records_and_embeddings_of_different_checkpoints_are_refused(old, tmp_path):
    np.save(old / "block_records.npy", np.load(old / "block_records.npy", allow_pickle=True)[:-1])
    with pytest.raises(ValueError, match=r"has 11 records, but .* 12 embeddings"):
        load_old_retriever(old, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"has 11 records, but .* 12 embeddings"):
        convert(old, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_converted_checkpoint_answers_as_the_old_one(tmp_path, shape):
    old = FIXTURES / shape / "RealmForOpenQA" / "bin"
    parts = convert(old, tmp_path / "new")
    assert [(part.what, part.rows) for part in parts] == [("records", 12), ("embeddings", 12)]
    for found, expected in zip(answers(tmp_path / "new", tmp_path), answers(old, tmp_path), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    retriever = RealmRetriever.from_pretrained(tmp_path / "new", verify="sha256")
    assert isinstance(retriever.embeddings, np.memmap)
    assert retriever.recall_against_exact(np.array(retriever.embeddings), k=5) == 1.0


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_every_kind_of_model_is_converted_weight_by_weight(tmp_path, case):
    convert(FIXTURES / case, tmp_path / "new")
    assert not list((tmp_path / "new").glob("*.bin"))
    new = load_file(tmp_path / "new" / "model.safetensors")
    old = torch.load(FIXTURES / case / "pytorch_model.bin", weights_only=True)
    assert set(new) <= set(old)
    for name, value in new.items():
        torch.testing.assert_close(value, old[name], rtol=0, atol=0)
    assert RealmConfig.from_pretrained(tmp_path / "new").architectures == [case.parts[1]]


def test_the_tokenizer_comes_along(tmp_path):
    convert(OLD, tmp_path / "new")
    text = "What is the capital of France?"
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "new")(text)["input_ids"]
        == AutoTokenizer.from_pretrained(OLD)(text)["input_ids"]
    )


def test_half_precision_and_another_index_are_written_on_request(tmp_path):
    convert(OLD, tmp_path / "new", dtype="float16", factory="HNSW8")
    retriever = RealmRetriever.from_pretrained(tmp_path / "new")
    assert retriever.embeddings.dtype == np.float16
    assert isinstance(retriever.index.faiss, faiss.IndexHNSW)


def test_the_passage_tower_is_put_beside_for_edits(tmp_path):
    convert(OLD, tmp_path / "new", embedder=FIXTURES / "bert" / "RealmEmbedder" / "bin")
    retriever = RealmRetriever.from_pretrained(tmp_path / "new", verify="sha256")
    assert retriever.embedder is not None
    assert retriever.null_embedding().shape == (20,)


@pytest.mark.parametrize("rows", [1, 1000])
def test_a_streamed_exact_index_is_the_file_that_faiss_writes(rows):
    embeddings = np.random.default_rng(0).standard_normal((rows, 5)).astype(np.float32)
    streamed = flat_index_head(rows, 5) + embeddings.tobytes()
    assert faiss.serialize_index(build_index(embeddings)).tobytes() == streamed


@pytest.mark.parametrize("damage", ["records cut", "weights cut", "no architecture", "no weights"])
def test_what_cannot_be_converted_leaves_nothing_behind(old, tmp_path, damage):
    if damage == "records cut":
        (old / "block_records.npy").write_bytes((old / "block_records.npy").read_bytes()[:-20])
    elif damage == "weights cut":
        (old / "pytorch_model.bin").write_bytes((old / "pytorch_model.bin").read_bytes()[:-20])
    elif damage == "no architecture":
        RealmConfig().save_pretrained(old)
    else:
        (old / "block_records.npy").unlink()
        (old / "pytorch_model.bin").unlink()
    expected = {"records cut": BlockRecordsError, "weights cut": CheckpointRefusedError, "no architecture": ValueError}
    with pytest.raises(expected.get(damage, FileNotFoundError)):
        convert(old, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("kept")
    with pytest.raises(FileExistsError):
        convert(OLD, tmp_path / "new")
    assert (tmp_path / "new" / "mine").read_text() == "kept"


def test_the_command_prints_rates(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["convert", str(OLD), str(tmp_path / "new")])
    assert options.command(options) == 0
    said = capsys.readouterr().out
    assert "12 records in " in said
    assert "12 embeddings in " in said
    assert str(tmp_path / "new") in said


def test_a_place_without_a_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        convert(tmp_path, tmp_path / "new")
