"""The curve of masked language modelling, from logs written by hand."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import masked_lm_curve
from harness.results import BEGIN, END, read_lines


def step(number, tokens=100):
    return {"step": number, "loss": 9.0, "tokens": tokens, "step_seconds": 2.0}


def evaluation(number, loss, **more):
    return {"step": number, "eval_loss": loss, "eval_word_loss": loss + 1, "eval_seconds": 50.0, **more}


UTILITY = {"eval_utility": 0.25, "eval_utility_error": 0.01}
# Killed after step 3 and resumed from the checkpoint of step 2, whose later log has other counts.
RECORDS = [evaluation(0, 9.0), step(1), step(2), step(3, 70), step(3, 50), step(4), evaluation(4, 7.0, **UTILITY)]


def write_log(folder, records):
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmarks/masked_lm_curve.py", *words])
    masked_lm_curve.main()


def test_tokens_of_a_step_that_was_taken_twice_count_once(tmp_path):
    first, last = masked_lm_curve.curve(write_log(tmp_path / "run", RECORDS))
    assert first == {"step": 0, "tokens": 0, "loss": 9.0, "word_loss": 10.0, "seconds": 0.0}
    assert last["tokens"] == 350 and last["seconds"] == 8.0 and last["loss"] == 7.0 and last["utility"] == 0.25


def test_a_run_without_evaluation_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no evaluation yet"):
        masked_lm_curve.curve(write_log(tmp_path / "run", [step(1)]))


def test_a_run_read_again_replaces_its_lines_and_leaves_the_others(tmp_path, monkeypatch):
    files = ["--results", str(tmp_path / "lines.jsonl"), "--plot", str(tmp_path / "plot.svg")]
    one = write_log(tmp_path / "one", RECORDS)
    call(monkeypatch, "--runs", f"a = b & c={one}", f"other={write_log(tmp_path / 'other', RECORDS[:1])}", *files)
    assert len(read_lines(tmp_path / "lines.jsonl")) == 3
    with (one / "log.jsonl").open("a") as log:
        log.write(json.dumps(step(5)) + "\n" + json.dumps(evaluation(5, 6.0, **UTILITY)) + "\n")
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    call(monkeypatch, "--runs", f"a = b & c={one}", "--page", str(page), *files)
    lines = read_lines(tmp_path / "lines.jsonl")
    assert [(line["run"], line["step"]) for line in lines] == [
        *(("other", 0),),
        *(("a = b & c", number) for number in (0, 4, 5)),
    ]
    assert "(plot.svg)" in page.read_text() and page.read_text().count("| a = b & c |") == 3
    drawn = ElementTree.parse(tmp_path / "plot.svg").getroot()
    dots = [element for element in drawn.iter() if element.tag.endswith("circle")]
    # Two panels of loss with four evaluations, one of utility with two.
    assert len(dots) == 2 * 4 + 2
    width, height = map(float, drawn.attrib["viewBox"].split()[2:])
    assert all(0 < float(dot.attrib["cx"]) < width and 0 < float(dot.attrib["cy"]) < height for dot in dots)


def test_a_long_curve_is_cut_to_twelve_rows_with_both_ends():
    lines = [{"run": "a", "step": n, "tokens": n, "loss": 1.0, "word_loss": 2.0, "seconds": 0.0} for n in range(100)]
    rows = masked_lm_curve.table(lines).splitlines()[2:]
    assert len(rows) == 12 and "| 0 | 0.00 M" in rows[0] and "| 99 |" in rows[-1]
