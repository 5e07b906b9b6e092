"""The table of paragraphs embedded as pairs, joined and alone, on four small articles."""

import sys
from pathlib import Path

import numpy as np
from tiny_squad import tiny_squad, tiny_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import document_formats
from document_formats import ALONE, JOINED, PAIR
from harness.results import BEGIN, END, read_lines


def test_each_format_is_measured_once_and_stands_in_the_page(tmp_path, monkeypatch):
    results, page = tmp_path / "lines.jsonl", tmp_path / "page.md"
    words = [
        *tiny_squad(tmp_path),
        *("--weights", tiny_weights(tmp_path / "weights"), "--output_dir", str(tmp_path / "run")),
        *("--results", str(results), "--paragraphs", "20", "--max_passage_length", "64"),
    ]
    monkeypatch.setattr(document_formats, "ROWS", (PAIR, JOINED, ALONE))  # without sentence-transformers
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["benchmarks/document_formats.py", *words])
        document_formats.main()
    lines = read_lines(results)
    assert [line["name"] for line in lines] == [PAIR, JOINED, ALONE]
    assert lines[0]["on"]["paragraphs"] == 20 and lines[0]["on"]["dimensions"] == 32
    kept = [np.load(tmp_path / "run" / f"{name}.npy") for name in (PAIR, JOINED, ALONE)]
    assert min(np.abs(one - other).max() for one, other in ((kept[0], kept[1]), (kept[0], kept[2]))) > 1e-3
    page.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(sys, "argv", ["x", "--tables", str(page), "--results", str(results)])
    document_formats.main()
    assert all(f"| {name} |" in page.read_text() for name in (PAIR, JOINED, ALONE))
    assert f"| {JOINED}, over {PAIR} |" in page.read_text()
