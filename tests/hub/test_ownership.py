"""What is opened as one's own: nothing that a publisher can still change, and nothing because he says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from published_folder import DIMENSION, INDEX, ROWS, SHARD

from realm_hf import RealmRetriever
from realm_hf.knowledge.files import MANIFEST
from realm_hf.untrusted.checks import HubArtefactError


def overwrite(path: Path) -> None:
    """In place, as a program does that has the file open."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def test_what_was_loaded_does_not_change_with_the_publishers_files(folder, load, tiny_passages, vectors):
    retriever = load()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert all(path.stat().st_nlink == 1 for path in files)

    for path in files:
        if path.parent.name in ("data", "passages", "index", "embedder", "tokenizer"):
            overwrite(path)

    again = load()  # from the copy, which was verified
    for one in (retriever, again):
        np.testing.assert_array_equal(one.passages.body_tokens.values, tiny_passages.body_tokens.values)
        np.testing.assert_array_equal(one.embeddings, vectors)
        found = one.index.search(vectors, 1).rows
        np.testing.assert_array_equal(found[:, 0], np.arange(ROWS))
        assert one.passages.text(3) == tiny_passages.text(3)
    weights, expected = again.embedder.state_dict(), retriever.embedder.state_dict()
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert again.tokenizer.get_vocab() == retriever.tokenizer.get_vocab()


@pytest.mark.parametrize("name", [SHARD, "passages/body_tokens.bin", INDEX, "tokenizer/tokenizer.json"])
def test_a_file_that_changes_between_two_looks_is_refused(folder, load, monkeypatch, name):
    """What is hashed is what is read: the copy, not the file that it was made of."""
    copy = shutil.copyfile

    def change_and_copy(source, target):
        if Path(source) == folder / name:
            overwrite(folder / name)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", change_and_copy)

    with pytest.raises(HubArtefactError, match="does not have the SHA-256"):
        load()


@pytest.fixture
def saved(tmp_path, tiny_passages, tokenizer, vectors) -> Path:
    RealmRetriever(tiny_passages, tokenizer, embeddings=vectors).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_manifest_in_a_publication_opens_nothing(folder, load, saved, vectors):
    shutil.rmtree(folder / "passages")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / "index.faiss").write_bytes(b"evil")

    with pytest.raises(HubArtefactError, match=r"incomplete|cut or was changed"):
        load()


def test_a_manifest_beside_a_whole_publication_changes_nothing(folder, load, saved, vectors):
    shutil.copy(saved / MANIFEST, folder / MANIFEST)
    np.testing.assert_array_equal(load().embeddings, vectors)
    assert load().index.dimension == DIMENSION


@pytest.mark.parametrize("place", ["snapshot", "link to a snapshot", "local_dir", "local_dir above"])
def test_a_saved_retriever_that_was_downloaded_is_not_opened(saved, tmp_path, place):
    folder = tmp_path / "downloaded/retriever"
    if "snapshot" in place:
        folder = tmp_path / "hub/models--eve--realm/snapshots/0123"
    shutil.copytree(saved, folder)
    if place == "local_dir":
        note = folder / ".cache/huggingface/download/retriever.json.metadata"
    else:
        note = folder.parent / ".cache/huggingface/download/retriever/retriever.json.metadata"
    if "local_dir" in place:
        note.parent.mkdir(parents=True)
        note.write_text("commit\netag\n0\n")
    if place == "link to a snapshot":
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"

    with pytest.raises(HubArtefactError, match="was downloaded"):
        RealmRetriever.from_pretrained(folder)


def test_ones_own_is_opened_wherever_it_was_moved(saved, tmp_path, vectors):
    shutil.move(saved, tmp_path / "elsewhere")

    np.testing.assert_array_equal(RealmRetriever.from_pretrained(tmp_path / "elsewhere").embeddings, vectors)


def test_nothing_is_saved_where_a_publication_would_be_loaded(folder, tiny_passages, tokenizer, vectors):
    with pytest.raises(ValueError, match=r"holds realm_retriever\.json, so that a publication would be loaded"):
        RealmRetriever(tiny_passages, tokenizer, embeddings=vectors).save_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", {"../../secret": {"bytes": 1, "sha256": "0" * 64}}),
        ("files", [1]),
        ("files", {"index.faiss": {"size": 1}}),
        ("rows", "48"),
        ("dimension", None),
        ("generation_name", 7),
        ("format_version", [1]),
    ],
)
def test_a_damaged_manifest_of_ones_own_is_said(saved, field, value):

    path = saved / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))

    with pytest.raises(ValueError, match=r"retriever\.json (is damaged|has format_version)"):
        RealmRetriever.from_pretrained(saved)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"{", b"[]"])
def test_a_manifest_that_is_no_json_is_said(saved, content):
    (saved / MANIFEST).write_bytes(content)

    with pytest.raises(ValueError, match=r"retriever\.json (is not valid JSON|holds a list)"):
        RealmRetriever.from_pretrained(saved)
