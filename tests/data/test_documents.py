"""Loading documents from files and directories, and the words of the errors."""

import json

import pytest
from datasets import Dataset, DatasetDict

from realm_hf.data import build_passages, documents, load_documents
from realm_hf.data.documents import check_documents

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


def test_the_fingerprint_of_text_files_does_not_depend_on_the_name_of_a_module(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("text")
    before = load_documents(file)._fingerprint
    monkeypatch.setattr(documents._ReadTexts, "__module__", "realm_hf.elsewhere")
    assert load_documents(file)._fingerprint == before


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


DEEP = {
    "one line": b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "many lines": b'{"text": "a", "x":\n' + b'[{"]": "}", "y":\n' * 50_000,
    "an array over many lines": b"[\n" + b'{"a": [{"b": 1},\n' * 50_000,
    "objects": b'{"text":' * 50_000,
}


@pytest.mark.parametrize("name", list(DEEP))
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_that_is_nested_without_end_names_file_and_line(tmp_path, name, ending):
    path = tmp_path / f"deep.{ending}"
    path.write_bytes(DEEP[name])

    with pytest.raises(ValueError, match=rf"deep\.{ending}, line \d+ is nested more than 64 levels deep"):
        load_documents(path)


def test_brackets_in_texts_and_nesting_of_documents_are_read(tmp_path):
    path = tmp_path / "smileys.jsonl"
    texts = ["[" * 5000, '\\"{[' * 200, "plain :-["]
    path.write_text("".join(json.dumps({"text": text, "meta": {"a": [{"b": [1]}]}}) + "\n" for text in texts))

    assert load_documents(path)["text"] == texts


@pytest.mark.parametrize(
    ("ending", "content"), [("jsonl", ""), ("jsonl", "\n\n"), ("json", "  "), ("csv", ""), ("parquet", "")]
)
def test_an_empty_file_is_said_to_be_empty(tmp_path, content, ending):
    path = tmp_path / f"nothing.{ending}"
    path.write_text(content)

    with pytest.raises(ValueError, match=rf"nothing\.{ending} is empty"):
        load_documents(path)


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "noise.jsonl").write_bytes(b"\xff\xfe\n{")

    with pytest.raises(ValueError, match=r"noise\.jsonl, line 1 is not UTF-8"):
        load_documents(tmp_path / "noise.jsonl")


@pytest.mark.parametrize("text", ["7", '{"x": 1}', "[1]"])
def test_a_column_of_something_else_than_texts_is_named(tmp_path, text):
    (tmp_path / "other.jsonl").write_text(f'{{"title": "a", "text": {text}}}\n')

    with pytest.raises(ValueError, match=r"column 'text' of the documents holds .*, not texts"):
        check_documents(load_documents(tmp_path / "other.jsonl"), ["title", "text"])


def test_a_text_that_is_null_is_an_empty_document(tmp_path, tokenizer):
    (tmp_path / "null.jsonl").write_text('{"title": null, "text": null}\n{"title": null, "text": "A text."}\n')

    store = build_passages(load_documents(tmp_path / "null.jsonl"), tokenizer, tmp_path / "store")

    assert (len(store), store.title(0), store.text(0)) == (1, "", "A text.")
    assert store.statistics["empty_documents"] == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", b'{"text": "One."}\n{"text":\n', r"d\.jsonl, line 2 is no JSON"),
        ("d.jsonl", b'{"text": "One."}\n\n[1, 2]\n', r"d\.jsonl, line 3 holds a list"),
        ("d.parquet", b"nothing", r"d\.parquet could not be read as \.parquet"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, name, content, said, caplog, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_documents(tmp_path / name)
    assert not caplog.records and "Failed" not in capfd.readouterr().err, "datasets says nothing beside it"
