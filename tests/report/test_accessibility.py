"""The pages in a browser, at the width of a desk and of a phone, in both colours: axe-core finds nothing serious."""

import json

import pytest
from chromium import AXE, NAMES, Browser, browser_path
from made_up_run import write_run

from realm_hf.report import write_answer_report, write_report

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(browser_path() is None, reason=f"no browser is installed (looked for {', '.join(NAMES)})"),
    pytest.mark.skipif(not AXE.is_file(), reason=f"axe-core is not there ({AXE}): npm pack axe-core"),
]

PASSAGE = {"row": 1, "title": "Nicaragua", "text": "Managua is its capital.", "start_char": 0, "end_char": 7}
WEIGHTS = {"share": 0.9, "retrieval_probability": 0.8, "answer_places": [[0, 7]]}
SAID = {"prediction": "Managua", "row": 1, "start_char": 0, "end_char": 7, "probability": 0.7, "answers": ["Managua"]}
ANSWER = {"question": "What is the capital?", **SAID, "answer_rank": 1, "evidence": [{**PASSAGE, **WEIGHTS}]}


def written(folder) -> dict[str, object]:
    lines = [{**ANSWER, "correct": True}, {**ANSWER, "correct": False, "answers": ["Leon"], "answer_rank": None}]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps({"exact_match": 0.5, "answer_recall": {"1": 0.5}}))
    return {"report": write_report(write_run(folder / "run")), "answers": write_answer_report(folder)}


def test_nothing_serious_is_found_and_nothing_is_wider_than_the_screen(tmp_path):
    pages = written(tmp_path)
    with Browser(tmp_path / "profile") as browser:
        for path in pages.values():
            page = browser.open(path.as_uri())
            page.wait("document.readyState === 'complete'")
            for width, scheme in ((1100, "light"), (390, "light"), (1100, "dark"), (390, "dark")):
                page.resize(width, scheme=scheme)
                assert page.faults() == [], (path.name, width, scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (path.name, width)
            page.send("Page.close")
