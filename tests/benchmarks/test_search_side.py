"""What the search side of the benchmarks works on: synthetic embeddings, repeated passages, cells, plot."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import paper_scale
import paper_scale_plot
from harness import vectors
from harness.million import repeat_passages
from harness.results import read_lines

from realm_hf.data.passages.build import PassageStore


def test_a_longer_synthetic_corpus_begins_with_the_shorter_one(monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", 64)
    long, short = vectors.passages(150, seed=3), vectors.passages(100, seed=3)
    np.testing.assert_array_equal(long[:100], short)
    assert not np.allclose(long[:100], vectors.passages(100, seed=4))
    np.testing.assert_allclose(long.std(axis=1), 1.0, atol=1e-5)


def test_passages_of_a_document_are_nearer_than_others():
    rows = vectors.passages(800)
    scores = rows @ rows.T
    document = np.arange(800) // vectors.PASSAGES_A_DOCUMENT
    same = (document[:, None] == document) & ~np.eye(800, dtype=bool)
    assert scores[same].mean() > 2 * scores[~same & ~np.eye(800, dtype=bool)].mean() + 10


def test_a_query_finds_the_passage_that_it_is_nearest_to():
    rows = vectors.passages(800)
    drawn = np.random.default_rng([7, 2]).integers(800, size=(2, 50))[0]
    assert ((vectors.queries(rows, 50, seed=7) @ rows.T).argmax(axis=1) == drawn).mean() > 0.9


def test_repeated_passages_are_those_of_the_sample_and_no_duplicates(tiny_passages, tmp_path):
    repeat_passages(tiny_passages, 100, tmp_path / "store")
    store = PassageStore.load(tmp_path / "store", verify=True)
    assert len(store) == 100
    assert len(set(store.duplicate_groups.tolist())) == 100
    for row in (0, 47, 48, 99):
        assert (store.title(row), store.text(row)) == (tiny_passages.title(row % 48), tiny_passages.text(row % 48))
        np.testing.assert_array_equal(store.body_ids(row), tiny_passages.body_ids(row % 48))
        np.testing.assert_array_equal(store.title_ids(row), tiny_passages.title_ids(row % 48))
        np.testing.assert_array_equal(store.sentence_starts(row), tiny_passages.sentence_starts(row % 48))


@pytest.mark.parametrize("name", paper_scale.FACTORIES)
def test_every_factory_of_the_study_can_be_built_where_it_is_measured(name):
    rows = 30_000
    factory = paper_scale.resolve(name, rows)
    assert factory is not None
    index = paper_scale.faiss.index_factory(128, factory, paper_scale.faiss.METRIC_INNER_PRODUCT)
    assert index.d == 128
    assert 0.5 < paper_scale.expected_gigabytes(factory, rows, 128) < 2.0


def test_what_was_measured_is_what_is_expected_of_memory():
    measured = [cell for cell in read_lines(paper_scale.RESULTS) if "peak_gigabytes" in cell]
    assert max(cell["rows"] for cell in measured) == paper_scale.PAPER
    for cell in measured:
        expected = paper_scale.expected_gigabytes(cell["factory"], cell["rows"], 128)
        assert abs(expected / cell["peak_gigabytes"] - 1) < 0.2, cell


def test_lists_are_left_out_where_there_are_too_few_rows_to_train_them():
    assert paper_scale.resolve("IVF-SQ8", 10_000) is None


def test_what_does_not_fit_is_written_down_and_nothing_is_measured_twice(tmp_path, monkeypatch):
    np.save(tmp_path / "e.npy", np.zeros((100, 128), np.float16))
    args = SimpleNamespace(factories=["Flat", "SQ8"], results=tmp_path / "cells.jsonl", memory=0.1, threads=1)
    paper_scale.measure_size(tmp_path / "e.npy", "synthetic", args)
    cells = read_lines(args.results)
    assert [cell["name"] for cell in cells] == ["Flat", "SQ8"]
    assert all("needs about" in cell["left_out"] for cell in cells)
    monkeypatch.setattr(paper_scale.subprocess, "run", None)
    paper_scale.measure_size(tmp_path / "e.npy", "synthetic", SimpleNamespace(**{**vars(args), "memory": 14.0}))
    assert read_lines(args.results) == cells


def test_a_line_that_was_cut_is_no_cell(tmp_path):
    (tmp_path / "cells.jsonl").write_text('{"rows": 1}\n{"rows": 2')
    assert read_lines(tmp_path / "cells.jsonl") == [{"rows": 1}]


def test_table_and_plot_show_every_cell(tmp_path):
    measured = {
        "kind": "synthetic",
        "name": "auto",
        "factory": "Flat",
        "threads": 2,
        "build_seconds": 1.5,
        "peak_gigabytes": 0.5,
        "file_bytes": 5 << 20,
        "open_seconds": 0.001,
        "nprobe": None,
        "queries_a_second": 1000.0,
        "queries_a_second_one_by_one": 100.0,
        "recall": 1.0,
    }
    cells = [{**measured, "rows": rows} for rows in (10_000, 100_000)]
    cells.append({"kind": "synthetic", "rows": 10**7, "name": "Flat", "factory": "Flat", "left_out": "needs 7 GB"})
    table = paper_scale_plot.table(cells)
    assert table.count("\n") == 4
    assert "| 10,000 synthetic | Flat (auto) | 1.5 | 0.50 | 5 MB | 1.0 | 1,000, 100 | 1.000 |" in table
    paper_scale_plot.draw(cells, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.count("<circle") == 2 * len(paper_scale_plot.PANELS)
    page = tmp_path / "page.md"
    paper_scale_plot.write_page(cells, page, tmp_path / "plot.svg")
    paper_scale_plot.write_page(json.loads(json.dumps(cells)), page, tmp_path / "plot.svg")
    assert page.read_text().count(table) == 1
    assert "](plot.svg)" in page.read_text()
