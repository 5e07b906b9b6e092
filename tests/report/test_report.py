"""The run report on a made-up run whose every figure is known."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made_up_run import write_run

from realm_hf.report import read_run, write_report
from realm_hf.report.charts import Chart, buckets, draw, nice_ticks, short_number, smoothed
from realm_hf.report.tables import quantile

VOID = {"meta", "br", "link"}


class Outline(HTMLParser):
    """Checks that tags close in order, and keeps every address that the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_reader_without_a_mouse_or_eyes_finds_the_way(tmp_path):
    page = write_report(write_run(tmp_path / "run")).read_text()
    assert page.count("<main>") == 1 and not re.search(r"<th[^>]*></th>", page)
    # Tables of figures are scrolled on narrow screens; the others break their lines.
    assert re.findall(r'<div class="scroll"( tabindex="0")?><table class="figures">', page).count("") == 0
    assert not re.search(r'tabindex="0"><table class="(?!figures)', page)


def test_numbers_and_names_are_those_of_a_reader(tmp_path):
    run = write_run(tmp_path / "run", steps=20)
    steps = [{"step": step, "loss": 2.0, "null_mass": 1.15e-06} for step in range(1, 21)]
    (run / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (run / "run.json").write_text(json.dumps({"created": "2026-11-30T13:28:31+00:00"}))
    summary = {"recall": {"recurring": {"1": 50.0}}, "trained_questions": {"questions": 8}}
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_report(run).read_text()
    assert "<b>&lt; 0.001</b>" in page and "e-06</b>" not in page
    assert "2026-11-30 13:28 UTC" in page and "after recurring spans" in page
    assert "Fine-tuning on questions, reported by realm_hf" in page


def test_page_is_well_formed_and_loads_nothing(tmp_path):
    page = write_report(write_run(tmp_path / "run")).read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.addresses == []
    assert "url(" not in page
    assert "@import" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.S):
        ElementTree.fromstring(drawing)


def test_page_tells_the_runs_figures(tmp_path):
    page = write_report(write_run(tmp_path / "run")).read_text()
    assert "74.0 %" in page  # recall@1 after REALM
    assert "step-80-abcd" in page
    assert "<td>4101</td>" in page
    assert "<td>0.91</td>" in page
    assert "<td>21</td>" in page  # staleness
    assert "0.810" in page
    assert "+4.20" in page


def test_retrieval_is_drawn_and_stands_beside_its_swap(tmp_path):
    run = write_run(tmp_path / "run")
    plain = write_report(run).read_text()
    assert "nDCG" not in plain and "recall and nDCG" not in plain
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for record in records:
        if record["step"] in (50, 101) and ("eval_loss" in record or "events" in record):
            record |= {"eval_recall_at_5": 0.4375 if record["step"] == 50 else 0.625, "eval_ndcg_at_10": 0.5}
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = write_report(run).read_text()
    assert "<h3>recall@5</h3>" in page and "<title>held out, step 50: 43.8</title>" in page
    (row,) = [row for row in re.findall("<tr>.*?</tr>", page) if "step-80-abcd" in row]
    assert row.endswith("<td>62.5</td><td>50</td></tr>"), row
    assert read_run(run).retrieval()[101] == {"recall@5": 62.5, "nDCG@10": 50.0}


def test_the_arguments_of_a_run_that_ended_are_shown(tmp_path):
    run = write_run(tmp_path / "run")
    assert "Arguments (summary.json)" not in write_report(run).read_text()
    (run / "summary.json").write_text(json.dumps({"arguments": {"refresh_schedule": "0-9:2,9-:5", "run": "<s>"}}))
    page = write_report(run).read_text()
    assert "&quot;refresh_schedule&quot;: &quot;0-9:2,9-:5&quot;" in page and "<s>" not in page


def test_text_of_the_corpus_is_escaped(tmp_path):
    page = write_report(write_run(tmp_path / "run")).read_text()
    assert "&lt;is&gt;" in page
    assert "<is>" not in page


def test_answers_stand_beside_their_baselines(tmp_path):
    run = write_run(tmp_path / "run")
    assert "<h2>Answers</h2>" not in write_report(run).read_text()
    (run / "summary.json").write_text(json.dumps({"exact_match": {"realm": 86.5, "majority": 16.8, "<b>": 1.0}}))
    page = write_report(run).read_text()
    assert '<td>fine-tuned</td><td class="bar" style="--share: 86.5%">86.5 %</td>' in page
    assert "the commonest answer" in page and "16.8 %" in page and "<td>&lt;b&gt;</td>" in page


def test_a_title_that_looks_like_a_cell_stays_text(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps({"recall": {"<td onclick=x>": {"1": 0.5}}}))
    assert "<td onclick" not in write_report(run).read_text()


def test_log_alone_is_enough(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("summary.json", "run.json", "examples.json"):
        (run / name).unlink()
    page = write_report(run, tmp_path / "elsewhere.html").read_text()
    assert "Curves" in page
    assert "step-130-abcd" in page  # the swaps are read from the log


def test_half_a_line_after_a_kill_is_counted_and_left_out(tmp_path):
    run = write_run(tmp_path / "run", steps=20)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 21, "lo')
    record = read_run(run)
    assert record.unreadable_lines == 1
    assert record.steps[-1]["step"] == 20


def test_steps_repeated_after_a_resume_count_once_with_the_later_value(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 5}\n{"step": 2, "loss": 4}\n{"step": 2, "loss": 3}\n')
    assert read_run(tmp_path).series("loss") == [(1.0, 5.0), (2.0, 3.0)]


def test_a_run_of_one_step_and_a_loss_that_is_not_finite_can_be_drawn(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": NaN, "null_mass": 0.5}\n')
    assert "Null mass" in write_report(tmp_path).read_text()


def test_no_log_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl"):
        write_report(tmp_path)


def test_log_without_a_training_record_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "eval_loss": 1.0}\n')
    with pytest.raises(ValueError, match="no training record"):
        write_report(tmp_path)


def test_damaged_summary_is_an_error_that_names_the_file(tmp_path):
    run = write_run(tmp_path / "run", steps=5)
    (run / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json"):
        write_report(run)


def test_builds_and_swaps_are_found_in_the_log(tmp_path):
    record = read_run(write_run(tmp_path / "run"))
    assert record.build_intervals() == [(30.0, 50.0), (80.0, 100.0), (130.0, 150.0)]
    assert record.swap_steps() == [51.0, 101.0, 151.0]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 5, 10]),
        (0, 1, [0, 0.5, 1.0]),
        (-0.4, 2.6, [-1, 0, 1, 2, 3]),
        (5, 5, [4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low, high, expected):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 7
    if low < high:
        assert ticks == pytest.approx(expected)


def test_buckets_keep_the_extremes_and_the_mean():
    points = [(float(i), float(i % 10)) for i in range(1000)]
    joined = buckets(points)
    assert len(joined) == 80
    assert min(least for *_, least, _ in joined) == 0
    assert max(greatest for *_, greatest in joined) == 9
    assert sum(mean for _, mean, _, _ in joined) / 80 == pytest.approx(4.5, abs=0.05)


def test_line_goes_through_the_values():
    drawing = draw(Chart("t", "n", [(0, 0.0), (10, 1.0)], from_zero=True))
    line = ElementTree.fromstring(drawing).find("polyline").get("points")
    assert line == "48.0,192.0 388.0,12.0"


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (1500, "1.5k"), (2e6, "2M"), (12.345, "12.3"), (-0.5, "-0.5")]
)
def test_short_numbers(value, text):
    assert short_number(value) == text


def test_quantiles_interpolate():
    assert quantile([3, 1, 2, 4], 0.5) == 2.5
    assert quantile([1.0], 0.99) == 1.0
    assert quantile(list(range(101)), 0.99) == 99


def test_the_setup_is_told_as_far_as_it_was_recorded(tmp_path):
    root = write_run(tmp_path / "run")
    bare = write_report(root).read_text()
    assert "hardware" not in bare and "knowledge corpus" not in bare
    summary = json.loads((root / "summary.json").read_text()) | {
        "started_from": "google-bert/bert-base-uncased",
        "examples_per_step": 64,
        "hardware": {"processes": 2, "device": "cpu"},
        "arguments": {
            "learning_rate": 3e-5,
            "warmup_steps": 1000,
            "num_candidates": 8,
            "seed": 42,
            "refresh": "async",
            "refresh_steps": 500,
        },
    }
    (root / "summary.json").write_text(json.dumps(summary))
    (root / "run.json").write_text(
        json.dumps({"rows": 1200, "index_factory": "Flat", "packages": {"torch": "2.13.0"}})
    )
    (root / "passages-settings.json").write_text(json.dumps({"knowledge_corpus": "wiki <1>.parquet"}))
    page = write_report(root).read_text()
    for said in (
        "google-bert/bert-base-uncased",
        "wiki &lt;1&gt;.parquet, 1,200 passages",
        "64 examples a step, learning rate 3e-05, 1,000 steps of warm-up, 8 candidates, seed 42",
        "Flat, refresh async, every 500 steps",
        "processes: 2, device: cpu",
        "torch 2.13.0",
    ):
        assert said in page


def test_a_run_of_fine_tuning_shows_how_many_answers_are_right_and_no_staleness_of_a_tower_at_rest(tmp_path):
    lines = [{"step": step, "loss": 2.0, "staleness_steps": step} for step in range(1, 11)]
    lines += [
        {"step": step, "eval_exact_match": share, "eval_answer_recall": 1.0} for step, share in ((0, 0), (10, 0.525))
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"trained_questions": {"questions": 80}, "arguments": {"refresh": "off"}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = write_report(tmp_path).read_text()
    assert "<b>52.5 %</b>" in page and "exact match, held out, step 10" in page
    assert "<h3>Exact match</h3>" in page and "<h3>Answer in a passage read</h3>" in page
    assert "<h3>Staleness</h3>" not in page
    summary["arguments"]["refresh"] = "sync"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert "<h3>Staleness</h3>" in write_report(tmp_path).read_text()


def test_a_smoothed_curve_is_a_running_mean_that_bends_no_line():
    line = [(float(x), 3.0 * x) for x in range(30)]
    assert [value for _, value in smoothed(line, 5)] == pytest.approx([value for _, value in line])
    spike = [(0.0, 0.0), (1.0, 0.0), (2.0, 9.0), (3.0, 0.0), (4.0, 0.0)]
    assert [value for _, value in smoothed(spike, 3)] == [0.0, 3.0, 3.0, 3.0, 0.0]


def test_noisy_curves_are_smoothed_and_schedules_are_not(tmp_path):
    page = write_report(write_run(tmp_path / "run")).read_text()
    drawn = {title: card for card in page.split('<div class="card">') for title in re.findall("<h3>(.*?)</h3>", card)}
    assert 'class="raw"' in drawn["Loss"] and 'class="raw"' not in drawn["Learning rate"]


def test_a_missing_title_is_no_null_passage(tmp_path):
    root = write_run(tmp_path / "run")
    (example, *_) = json.loads((root / "examples.json").read_text())
    example["candidates"].append({"title": "", "text": "Nobody named this.", "probability": 0.0, "utility": 0.0})
    (root / "examples.json").write_text(json.dumps([example]))
    page = write_report(root).read_text()
    assert "<b>(no title)</b> Nobody named this." in page and page.count("null passage</td>") == 1
