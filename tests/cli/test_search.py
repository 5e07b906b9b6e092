"""`realm-hf search`: the passages of a saved retriever, in words and as JSON."""

import io
import json
import sys

import pytest
from tiny_answerers import tiny_answerer

from realm_hf import BM25Source, FusedSource, IndexSource, RealmRetriever
from realm_hf.cli.main import main
from realm_hf.retriever.fused import WeightedSource
from realm_hf.retriever.named_source import named_source

QUERIES = ["How many people has the island?", "Where does the river lie?"]


@pytest.fixture(scope="module")
def saved(tiny_passages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    answerer = tiny_answerer(tiny_passages)
    answerer.model.save_pretrained(folder)
    answerer.retriever.save_pretrained(folder)
    return folder


def test_one_query_gives_a_line_for_each_passage_best_first(saved, capsys):
    assert main(["search", str(saved), QUERIES[0], "--k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 3 and scores == sorted(scores, reverse=True)


def test_json_has_the_rows_that_the_retriever_finds_and_whole_texts(saved, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*QUERIES, ""])))
    assert main(["search", str(saved), "--json", "--k", "2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [
        (query, row, text)
        for query, result in zip(QUERIES, RealmRetriever.from_pretrained(saved).search(QUERIES, k=2), strict=True)
        for row, text in zip(result.rows.tolist(), result.texts, strict=True)
    ]
    assert [(line["query"], line["row"], line["text"]) for line in found] == expected


@pytest.mark.parametrize("name", ["dense", "bm25", "hybrid"])
def test_a_source_finds_what_it_finds_in_python(saved, tmp_path, capsys, name):
    retriever = RealmRetriever.from_pretrained(saved)
    words = BM25Source.build(retriever.passages, retriever.tokenizer)
    both = FusedSource([IndexSource(), words])
    retriever.candidate_source = {"dense": None, "bm25": words, "hybrid": both}[name]
    expected = [(p.row, round(p.score, 4)) for p in retriever.search(QUERIES[0], k=3)]

    def found(folder):
        assert main(["search", str(folder), QUERIES[0], "--json", "--k", "3", "--source", name]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [(line["row"], round(line["score"], 4)) for line in lines]

    assert found(saved) == expected
    retriever.candidate_source = WeightedSource(words, 0.5)
    retriever.save_pretrained(tmp_path)
    weighted = RealmRetriever.from_pretrained(tmp_path)
    # Saved with both, it keeps its own way of asking both, and has its words ready.
    if name == "hybrid":
        assert isinstance(named_source(weighted, name), WeightedSource)
    else:
        assert found(tmp_path) == expected


def test_the_words_that_were_saved_are_not_indexed_again(saved, monkeypatch):
    retriever = RealmRetriever.from_pretrained(saved)
    words = BM25Source.build(retriever.passages, retriever.tokenizer)
    retriever.candidate_source = WeightedSource(words, 0.5)
    monkeypatch.setattr(BM25Source, "build", None)
    assert named_source(retriever, "bm25") is words
    with pytest.raises(ValueError, match="choose dense, bm25 or hybrid"):
        named_source(retriever, "words")
    retriever.candidate_source = retriever.tokenizer = None
    with pytest.raises(ValueError, match="tokenizer"):
        named_source(retriever, "hybrid")


def test_what_is_no_retriever_ends_in_one_line(tmp_path, capsys):
    assert main(["search", str(tmp_path), "road"]) == 4
    assert capsys.readouterr().err.startswith("realm-hf: ")
    assert main(["search", str(tmp_path), "road", "--k", "0"]) == 4
    assert "--k is 0" in capsys.readouterr().err
