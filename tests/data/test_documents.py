"""Loading documents from files and directories, and the words of the errors."""

import json

import pytest
from datasets import Dataset, DatasetDict

from realm_hf.data import load_documents

ROWS = [{"title": "a", "text": "One."}, {"title": "b", "text": "Two, and more."}]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
def test_a_file_of_each_kind(tmp_path, suffix):
    path = tmp_path / f"documents.{suffix}"
    dataset = Dataset.from_list(ROWS)
    if suffix == "parquet":
        dataset.to_parquet(path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        dataset.to_csv(path, sep="\t" if suffix == "tsv" else ",")
    assert load_documents(path).to_list() == ROWS


def test_text_files_become_documents_titled_by_name(tmp_path):
    (tmp_path / "Rio_Grande.txt").write_text("It flows.\n\nAnd flows.")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "Nile.txt").write_text("Old.")
    (tmp_path / ".hidden.txt").write_text("no")
    assert load_documents(tmp_path).to_list() == [
        {"title": "Rio Grande", "text": "It flows.\n\nAnd flows."},
        {"title": "Nile", "text": "Old."},
    ]
    assert load_documents(tmp_path / "deep" / "Nile.txt")[0] == {"title": "Nile", "text": "Old."}


def test_a_changed_text_file_is_read_again(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("before")
    assert load_documents(file)[0]["text"] == "before"
    file.write_text("after it")
    assert load_documents(file)[0]["text"] == "after it"


def test_saved_datasets_and_their_splits(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(tmp_path / "two")
    assert load_documents(tmp_path / "one").to_list() == ROWS
    assert load_documents(tmp_path / "two", "test").to_list() == ROWS[:1]
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        load_documents(tmp_path / "two", "dev")


def test_a_directory_of_one_kind_is_read_whole(tmp_path):
    for name, row in zip(("x", "y"), ROWS, strict=True):
        Dataset.from_list([row]).to_parquet(tmp_path / f"{name}.parquet")
    assert load_documents(tmp_path).to_list() == ROWS
    (tmp_path / "z.txt").write_text("other")
    with pytest.raises(ValueError, match=r"mixes \.parquet, \.txt"):
        load_documents(tmp_path)


def test_paths_that_lead_nowhere_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file or directory .*gone.parquet"):
        load_documents(tmp_path / "gone.parquet")
    with pytest.raises(FileNotFoundError, match=r"there is no file or directory .*corpus.jsonl"):
        load_documents("corpus.jsonl")
    with pytest.raises(FileNotFoundError, match="holds no documents"):
        load_documents(tmp_path)
    (tmp_path / "a.docx").write_text("?")
    with pytest.raises(ValueError, match=r"unknown ending '.docx'"):
        load_documents(tmp_path / "a.docx")


def test_a_hub_id_that_cannot_be_reached_is_explained():
    with pytest.raises(ConnectionError, match="nobody/nothing"):
        load_documents("nobody/nothing")
