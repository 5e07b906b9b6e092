"""The curves of the arms on real text, from lines written by hand."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import real_text_curves
from harness.results import write_lines


def line(arm, **on):
    curve = [{"step": 1, "loss": 9.0, "entropy": 1.5}, {"step": 2, "loss": 8.0, "entropy": 1.4}]
    evaluations = [{"step": 0, "recall_at_5": 0.2}, {"step": 2, "recall_at_5": 0.3}]
    return {"arm": arm, "seed": 0, "on": on, "curve": curve, "evaluations": evaluations}


def draw(monkeypatch, folder, *words):
    places = ["--results", str(folder / "lines.jsonl"), "--plot", str(folder / "curves.svg")]
    monkeypatch.setattr(sys, "argv", ["benchmarks/real_text_curves.py", *places, *words])
    real_text_curves.main()
    root = ElementTree.parse(folder / "curves.svg").getroot()
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_last_setting_is_drawn_or_the_one_that_is_counted(tmp_path, monkeypatch):
    lines = [line("realm", rate=1), {"arm": "start", "seed": 0, "on": {"rate": 1}}, line("never refreshed", rate=2)]
    write_lines(tmp_path / "lines.jsonl", lines)
    texts = draw(monkeypatch, tmp_path)
    assert "never refreshed, seed 0" in texts and "realm, seed 0" not in texts
    assert "recall@5 of train questions" in texts and "staleness, steps" not in texts, "what has points"
    assert "realm, seed 0" in draw(monkeypatch, tmp_path, "--setting", "1")
    with pytest.raises(SystemExit, match="lines of 2 settings, none of number 3"):
        draw(monkeypatch, tmp_path, "--setting", "3")


def test_panels_beyond_three_stand_below_the_first(tmp_path):
    drawn = {str(number): {"run": [(0, 0.0), (1, float(number))]} for number in range(1, 5)}
    real_text_curves.draw_panels("four", "step", drawn, tmp_path / "four.svg")
    groups = ElementTree.parse(tmp_path / "four.svg").getroot().iter("{http://www.w3.org/2000/svg}g")
    places = [group.get("transform") for group in groups]
    assert len(set(places[:3])) == 1 and places[3] not in places[:3]
