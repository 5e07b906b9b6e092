"""A source of candidates is saved with its retriever and published with it; a stranger's is checked first."""

import json
import pickle
import shutil

import numpy as np
import pytest
from datasets import Dataset
from published_folder import Folder, describe, put
from tiny_answerers import tiny_answerer
from tiny_worlds import tiny_tokenizer

from realm_hf.hub.export import ExportSettings
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.retriever import add_retriever
from realm_hf.knowledge.saved_source import checked_settings
from realm_hf.models.places import DESCRIPTION
from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.candidates import IndexSource, RankingSource
from realm_hf.retriever.fused import FusedSource, WeightedSource
from realm_hf.retriever.mixed import MixedSource
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.untrusted.checks import HubArtefactError

TOKENIZER = tiny_tokenizer()
KINDS = {
    "bm25": lambda bm25: bm25,
    "mixed": lambda bm25: MixedSource([(IndexSource(), 1), (bm25, 3)]),
    "fused": lambda bm25: FusedSource([bm25, IndexSource()], constant=7, depth=9),
    "weighted": lambda bm25: WeightedSource(bm25, 0.25, depth=11),
}


def found(retriever, passages) -> list[tuple[list[int], list[float]]]:
    texts = [passages.text(row) for row in (3, 9, 27)]
    return [(result.rows.tolist(), result.scores.tolist()) for result in retriever.search(texts, 6)]


# Directories


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_is_saved_and_found_again_mapped(retriever, bm25, passages, tmp_path, kind):
    retriever.candidate_source = KINDS[kind](bm25)
    retriever.save_pretrained(tmp_path)
    again = RealmRetriever.from_pretrained(tmp_path, verify="sha256")
    assert type(again.candidate_source) is type(retriever.candidate_source)
    assert found(again, passages) == found(retriever, passages)
    index = next(part for part in _all(again.candidate_source) if isinstance(part, BM25Source)).index
    assert index.directory == tmp_path / "bm25" and isinstance(index.rows.base, np.memmap)
    # Over itself, and once more without.
    again.save_pretrained(tmp_path)
    assert found(RealmRetriever.from_pretrained(tmp_path), passages) == found(retriever, passages)
    again.candidate_source = None
    again.save_pretrained(tmp_path)
    plain = RealmRetriever.from_pretrained(tmp_path)
    assert plain.candidate_source is None and not (tmp_path / "bm25").exists()
    assert "candidate_source" not in json.loads((tmp_path / "retriever.json").read_text())


def _all(source):
    return [
        source,
        *(part for part, _ in getattr(source, "parts", [])),
        *getattr(source, "sources", []),
        getattr(source, "bm25", None),
    ]


@pytest.mark.parametrize("as_dataset", [False, True])
def test_edits_are_worked_in_and_rows_numbered_anew(passages, vectors, tower, tmp_path, as_dataset):
    held = passages
    if as_dataset:
        held = Dataset.from_dict({"title": passages.rows["title"][:], "text": passages.rows["text"][:]})
    source = BM25Source.build(held, TOKENIZER)
    retriever = RealmRetriever(held, TOKENIZER, embeddings=vectors, embedder=tower, candidate_source=source)
    retriever.query_embedder = tower
    retriever.remove_passages([0])
    retriever.add_passages(["They sell qxzvkjwy."])
    assert retriever.search("qxzvkjwy", 3).rows.tolist() == [60]
    retriever.save_pretrained(tmp_path)
    again = RealmRetriever.from_pretrained(tmp_path)
    assert len(again.candidate_source.index) == 60 and again.search("qxzvkjwy", 3).rows.tolist() == [59]
    assert again.search(passages.title(5), 1).rows.tolist() == [4]
    # The retriever that was saved goes on with its own rows.
    assert retriever.search("qxzvkjwy", 3).rows.tolist() == [60]


def test_a_source_of_ones_own_is_not_saved_and_that_is_said(retriever, tmp_path, caplog):
    class Own(RankingSource):
        def rank(self, knowledge, queries, depth):
            return np.zeros((len(queries), depth)), np.tile(np.arange(depth), (len(queries), 1))

    for source in (Own(), FusedSource([Own(), IndexSource()]), MixedSource([(IndexSource(), 1)])):
        caplog.clear()
        retriever.candidate_source = source
        with caplog.at_level("WARNING"):
            retriever.save_pretrained(tmp_path)
        assert f"The candidate source ({type(source).__name__}) is not saved" in caplog.text
        assert RealmRetriever.from_pretrained(tmp_path).candidate_source is None


def test_an_answerer_reads_what_the_saved_source_found(passages, bm25, tmp_path):
    answerer = tiny_answerer(passages)
    retriever = answerer.retriever
    retriever.candidate_source = bm25
    retriever.save_pretrained(tmp_path)
    question = passages.title(21)
    expected = [answer.row for answer in answerer([question], top_k=3)]
    answerer.retriever = RealmRetriever.from_pretrained(tmp_path)
    assert 21 in answerer.retrieve(question, top_k=3).batch.rows[0]
    assert [answer.row for answer in answerer([question], top_k=3)] == expected
    # p(z|x) is the towers', whatever order words gave.
    answer = answerer(question, top_k=3)[0]
    rows = np.array([[passage.row for passage in answer.evidence]])
    scores = answerer.retriever.beam_embeddings(rows)[0] @ answerer.retrieve(question).embeddings[0].numpy()
    shares = np.exp(scores * answerer.model.config.score_scale)
    np.testing.assert_allclose(
        [passage.retrieval_probability for passage in answer.evidence], shares / shares.sum(), rtol=1e-3
    )


# Publications


@pytest.fixture
def published(retriever, bm25, tmp_path):
    retriever.candidate_source = FusedSource([bm25, IndexSource()])
    folder = tmp_path / "published"
    add_retriever(Folder(folder), retriever, ExportSettings(), query_tower=retriever.query_embedder)
    return folder


def test_a_published_source_comes_back(published, retriever, passages, tmp_path):
    again = RealmRetriever.from_pretrained(published, cache_dir=tmp_path / "cache")
    assert isinstance(again.candidate_source, FusedSource) and found(again, passages) == found(retriever, passages)
    content = json.loads((published / DESCRIPTION).read_text())
    assert content["candidate_source"]["kind"] == "fused" and "bm25/bm25.json" in content["files"]
    assert json.loads(HubManifest.from_dict(content, "here").to_json()) == content
    assert len(pickle.dumps(again.candidate_source)) < 3000
    # Without the index nothing is searched, and nothing downloaded.
    shutil.rmtree(published / "bm25")
    bare = RealmRetriever.from_pretrained(published, cache_dir=tmp_path / "other", index=False)
    assert bare.candidate_source is None


def test_a_publication_without_a_source_has_the_description_that_it_had(retriever, tmp_path):
    add_retriever(Folder(tmp_path / "plain"), retriever, ExportSettings())
    assert "candidate_source" not in json.loads((tmp_path / "plain" / DESCRIPTION).read_text())


def change_array(folder, name, dtype, change):
    values = np.fromfile(folder / "bm25" / f"{name}.bin", dtype)
    change(values)
    put(folder, f"bm25/{name}.bin", values.tobytes())
    sign(folder)


def sign(folder):
    """What `bm25.json` says of its files made right again, as a stranger would."""
    path = folder / "bm25" / "bm25.json"
    content = json.loads(path.read_text())
    listed = json.loads((folder / DESCRIPTION).read_text())["files"]
    content["files"] = {name: listed[f"bm25/{name}"] for name in content["files"]}
    put(folder, "bm25/bm25.json", json.dumps(content).encode())


@pytest.mark.parametrize(
    ("name", "dtype", "change", "message"),
    [
        ("rows", np.int32, lambda a: a.__setitem__(0, 10**6), "names no passage"),
        ("rows", np.int32, lambda a: a.__setitem__(0, -5), "names no passage"),
        ("offsets", np.int64, lambda a: a.__setitem__(-2, 10**12), "do not ascend"),
        ("scores", np.float32, lambda a: a.__setitem__(0, np.inf), "no positive number"),
        ("terms", np.uint64, lambda a: a.__setitem__(1, 0), "ascending order"),
    ],
)
def test_a_strangers_arrays_that_would_mislead_a_search_are_refused(published, tmp_path, name, dtype, change, message):
    change_array(published, name, dtype, change)
    with pytest.raises(HubArtefactError, match=message):
        RealmRetriever.from_pretrained(published, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "pickle"},
        {"kind": "bm25", "path": "/etc/passwd"},
        {"kind": "weighted", "weight": "1", "depth": 3},
        {"kind": "weighted", "weight": -1.0, "depth": 3},
        {"kind": "fused", "parts": ["bm25", "evil"], "constant": 60, "depth": 100},
        {"kind": "fused", "parts": ["bm25"], "constant": 60, "depth": 10**12},
        {"kind": "fused", "parts": [], "constant": 60, "depth": 100},
        {"kind": "fused", "parts": ["bm25"], "constant": 0, "depth": 100},
        {"kind": "mixed", "parts": ["bm25", "dense"], "counts": [1]},
        {"kind": "mixed", "parts": ["bm25", "dense"], "counts": [1, 0]},
        ["bm25"],
        None,
    ],
)
def test_a_strangers_settings_are_refused(published, tmp_path, settings):
    describe(published, lambda content: content.__setitem__("candidate_source", settings))
    with pytest.raises(HubArtefactError, match="candidate source"):
        RealmRetriever.from_pretrained(published, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.__setitem__("count", 59), "names no passage|is of 59 passages"),
        (lambda c: c.__setitem__("passages_fingerprint", "0" * 16), "is of 60 passages"),
        (lambda c: c.__setitem__("average_length", 0.0), "out of range"),
        (lambda c: c.__setitem__("files", {"../../x": {"bytes": 1, "sha256": ""}}), "lists|is missing"),
        (lambda c: c.__setitem__("format_version", 2), "format_version"),
    ],
)
def test_a_strangers_description_of_the_index_is_refused(published, tmp_path, change, message):
    content = json.loads((published / "bm25" / "bm25.json").read_text())
    change(content)
    put(published, "bm25/bm25.json", json.dumps(content).encode())
    with pytest.raises(HubArtefactError, match=message):
        RealmRetriever.from_pretrained(published, cache_dir=tmp_path / "cache")


def test_a_missing_index_and_an_absurd_description_are_refused(published, tmp_path):
    describe(published, lambda content: content["files"].pop("bm25/bm25.json"))
    with pytest.raises(HubArtefactError, match=r"needs bm25/bm25\.json"):
        RealmRetriever.from_pretrained(published, cache_dir=tmp_path / "cache")
    put(published, "bm25/bm25.json", b" " * 100_000)
    with pytest.raises(HubArtefactError, match="a small file"):
        RealmRetriever.from_pretrained(published, cache_dir=tmp_path / "cache")


def test_settings_that_were_saved_are_those_that_are_read(bm25):
    from realm_hf.retriever.saved_sources import saved_source

    for make in KINDS.values():
        settings = saved_source(make(bm25)).settings
        assert checked_settings(json.loads(json.dumps(settings))) == settings
