"""Documents that are streamed: the store of the same rows in a file, with bounded memory, and gone on with."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset_builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realm_hf.data import PassageStore, build_passages, build_sentences, load_documents
from realm_hf.data import documents as documents_module
from realm_hf.data import ranges as module
from realm_hf.data.documents import readable_documents
from realm_hf.data.passages import build as passages_build
from realm_hf.data.streams import DocumentStream
from realm_hf.data.taggers.rules import RuleTagger

DOCUMENTS, RANGE = 100, 16
ROWS = [
    {"title": f"Place {n}", "text": f"The river number {n} lies in Egypt. It was seen in {1700 + n}.", "size": n}
    for n in range(DOCUMENTS)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The same rows as three Parquet files, as JSON lines, and as what `save_to_disk` writes."""
    root = tmp_path_factory.mktemp("documents")
    (root / "parquet").mkdir()
    for number, (start, stop) in enumerate([(0, 40), (40, 41), (41, DOCUMENTS)]):
        Dataset.from_list(ROWS[start:stop]).to_parquet(root / "parquet" / f"{number}.parquet")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Dataset.from_list(ROWS).save_to_disk(root / "saved")
    return root


@pytest.fixture(autouse=True)
def _small_ranges(monkeypatch):
    monkeypatch.setattr(module, "RANGE_DOCUMENTS", RANGE)


def build(documents, tokenizer, folder, **options) -> PassageStore:
    return build_passages(documents, tokenizer, folder, max_length=24, **options)


@pytest.fixture
def whole(files, tokenizer, tmp_path) -> PassageStore:
    return build(load_documents(files / "parquet"), tokenizer, tmp_path / "whole")


def test_streamed_files_rows_and_generators_give_the_store_of_the_same_rows_in_a_file(
    whole, files, tokenizer, tmp_path
):
    sources = {
        "parquet": load_documents(files / "parquet", streaming=True),
        "jsonl": load_documents(files / "rows.jsonl", streaming=True),
        "rows": ROWS,
        "generator": IterableDataset.from_generator(lambda: iter(ROWS)),
    }
    assert [type(source) for source in sources.values()].count(IterableDataset) == 3
    for name, source in sources.items():
        store = build(source, tokenizer, tmp_path / name)
        assert store.fingerprint == whole.fingerprint, name
        assert store.statistics == whole.statistics
        assert store.rows.to_dict() == whole.rows.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*sources, "whole"])


def test_sentences_of_a_stream_are_those_of_the_same_rows_in_a_file(files, tokenizer, tmp_path):
    def sentences(name, **options):
        documents = load_documents(files / "parquet", **options)
        return build_sentences(
            documents, tokenizer, RuleTagger(), tmp_path / name, cache_dir=tmp_path / f"cache-{name}"
        )

    whole, streamed = sentences("whole"), sentences("streamed", streaming=True)
    assert streamed.fingerprint == whole.fingerprint
    assert streamed.rows.to_dict() == whole.rows.to_dict()


def test_a_stream_that_ends_with_a_range_has_no_empty_one_behind_it(tokenizer, tmp_path, monkeypatch):
    made = []
    write = passages_build.write_part
    monkeypatch.setattr(
        passages_build,
        "write_part",
        lambda *args, **named: made.append(named["first_document"]) or write(*args, **named),
    )
    rows = ROWS[: 2 * RANGE]
    store = build(rows, tokenizer, tmp_path / "streamed")
    assert made == [0, RANGE]
    assert store.fingerprint == build(Dataset.from_list(rows), tokenizer, tmp_path / "whole").fingerprint


class Away(Exception):
    """What a network may raise: errors of httpx are no `OSError`."""


class Watched:
    """Rows that note how far they were read, and stop at a row."""

    def __init__(self, log: Path, stop: int = DOCUMENTS):
        self.log, self.stop = log, stop

    def __call__(self, start: list[int]) -> Iterator[dict]:
        for number in start:
            for row in ROWS[number : number + 20]:
                if row["size"] == self.stop:
                    raise Away("the network is away")
                with self.log.open("a") as file:
                    file.write(f"{row['size']}\n")
                yield row

    def stream(self) -> IterableDataset:
        return IterableDataset.from_generator(self, gen_kwargs={"start": list(range(0, DOCUMENTS, 20))})

    def read(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]


def test_no_more_than_a_range_is_read_ahead(tokenizer, tmp_path, monkeypatch):
    watched, ahead = Watched(tmp_path / "log"), []
    write = passages_build.write_part

    def written(*args, **named):
        ahead.append(watched.read()[-1] + 1 - named["first_document"])
        return write(*args, **named)

    monkeypatch.setattr(passages_build, "write_part", written)
    build(watched.stream(), tokenizer, tmp_path / "store")
    assert ahead == [RANGE] * (DOCUMENTS // RANGE) + [DOCUMENTS % RANGE]


def test_what_failed_is_taken_up_behind_the_last_range_and_reads_no_shard_again_that_was_done(
    whole, tokenizer, tmp_path
):
    log = tmp_path / "log"
    with pytest.raises(Away):
        build(Watched(log, stop=70).stream(), tokenizer, tmp_path / "store")
    assert Watched(log).read()[-1] == 69
    log.write_text("")
    store = build(Watched(log).stream(), tokenizer, tmp_path / "store")
    first = Watched(log).read()[64:]  # behind the look at the first rows
    assert first[0] == 60, "the shard with document 64, which is the first of the range that failed"
    assert store.fingerprint == whole.fingerprint


@pytest.mark.multiprocess
def test_processes_share_a_stream_and_one_that_is_killed_loses_its_range(files, whole, tokenizer, tmp_path):
    def killed_at(document: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        write = passages_build.write_part

        def written(*args, **named):
            if named["first_document"] == document:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*args, **named)

        passages_build.write_part = written
        try:
            build(load_documents(files / "parquet", streaming=True), tokenizer, tmp_path / "store")
        except BaseException as error:  # noqa: BLE001 - told by the exit code
            sys.stderr.write(repr(error))
            os._exit(1)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(killed_at(RANGE), 0)[1]) == -signal.SIGKILL
    others = [killed_at(-1) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in others] == [0, 0]
    store = PassageStore.load(tmp_path / "store", verify=True)
    assert store.fingerprint == whole.fingerprint


@pytest.mark.multiprocess
def test_helpers_work_on_a_stream_too(files, whole, tokenizer, tmp_path):
    store = build(load_documents(files / "parquet", streaming=True), tokenizer, tmp_path / "store", num_proc=3)
    assert store.fingerprint == whole.fingerprint


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.integers(0, DOCUMENTS // RANGE + 2), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_ranges_in_any_order_by_any_reader_are_those_of_the_rows(files, tmp_path_factory, numbers, parquet, shuffled):
    states = tmp_path_factory.mktemp("reading") / "states"
    documents = load_documents(files / ("parquet" if parquet else "rows.jsonl"), streaming=True)
    if shuffled:
        documents = documents.shuffle(seed=3, buffer_size=10)
    rows = list(documents)
    readers, whole = [DocumentStream(documents, ["text"]) for _ in range(2)], set()
    for turn, number in enumerate(numbers):
        reader, first = readers[turn % 2], number * RANGE
        read = reader.read(first, RANGE, states)
        assert read["text"][:] == [row["text"] for row in rows[first : first + RANGE]]
        assert len(read) == RANGE or reader.position == DOCUMENTS
        whole |= {f"{first + RANGE}.json"} if len(read) == RANGE and not shuffled else set()
    # A buffer for shuffling would not be taken up again where it was.
    assert {path.name for path in states.glob("*")} == whole


def test_a_stream_is_known_again_by_its_source_and_its_first_rows(files, tmp_path):
    def fingerprint(documents, columns=("text",)):
        return DocumentStream(documents, columns).fingerprint

    copy = tmp_path / "rows.jsonl"
    copy.write_bytes((files / "rows.jsonl").read_bytes())
    streamed = load_documents(copy, streaming=True)
    assert fingerprint(streamed) == fingerprint(load_documents(copy, streaming=True))
    assert fingerprint(streamed) != fingerprint(streamed, ("title", "text"))
    with copy.open("a") as file:
        file.write(json.dumps({"title": "more", "text": "behind what is looked at"}) + "\n")
    assert fingerprint(streamed) != fingerprint(load_documents(copy, streaming=True))
    assert fingerprint(ROWS) != fingerprint(ROWS[1:])


def test_a_dataset_of_the_hub_is_streamed_by_its_commit_and_a_split_that_is_not_there_is_named(
    files, tmp_path, monkeypatch
):
    """As far as that goes without the Hub: a builder of files in its place."""
    asked = []

    def load_builder(source, **options):
        asked.append((source, options))
        return load_dataset_builder("parquet", data_files=[str(files / "parquet" / "0.parquet")])

    monkeypatch.setattr(documents_module, "load_dataset_builder", load_builder)
    monkeypatch.setattr(documents_module, "get_dataset_split_names", lambda *_, **__: ["train"])
    streamed = load_documents("someone/wiki", name="en", revision="v1", streaming=True)
    assert asked == [("someone/wiki", {"name": "en", "revision": "v1"})]
    assert next(iter(streamed)) == ROWS[0]
    (note,) = streamed.info.download_checksums.items()
    assert note[0] == "someone/wiki" and note[1]["checksum"]
    with pytest.raises(ValueError, match=r"'someone/wiki' has no split 'train\[:1%\]'; it has train"):
        load_documents("someone/wiki", "train[:1%]", streaming=True)


def test_texts_and_saved_datasets_are_read_where_they_lie(files, tmp_path):
    for name, text in {"a_b": "First.", "c": "Second."}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    texts = load_documents(tmp_path, streaming=True)
    assert isinstance(texts, IterableDataset)
    assert list(texts) == [{"title": "a b", "text": "First."}, {"title": "c", "text": "Second."}]
    assert isinstance(load_documents(files / "saved", streaming=True), Dataset)


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        (iter(ROWS), TypeError, "list_iterator, which can be read only once"),
        ([], ValueError, r"the corpus is empty \(0 documents\)"),
        (["a text"], TypeError, "rows with columns"),
        ([{"body": "x"}], ValueError, r"document 0 has no column 'text'; it has \['body'\]"),
        ([{"text": "x"}] * 3 + [{}], ValueError, "document 3 has no column"),
        ([{"text": 3}], ValueError, "column 'text' of the documents 0 to 0 does not hold texts only"),
        (DatasetDict(), TypeError, "choose one of its splits"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said_before_anything_is_begun(documents, error, message):
    with pytest.raises(error, match=message):
        readable_documents(documents, ["text"])
