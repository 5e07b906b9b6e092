"""The run on a GPU, rehearsed on the CPU at a tiny size; and its budget of time."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_squad import DEV_FROM, tiny_squad
from tiny_worlds import tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu_run
from harness import budget, card_speed, drawn_ahead, paragraph_corpus
from harness.results import read_lines

from realm_hf.training.data_order import DataOrder


def test_all_phases_run_within_the_time_and_leave_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(paragraph_corpus, "HELD_OUT", 0.3)
    monkeypatch.setattr(budget, "TRIAL_STEPS", 2)
    # As many steps as the trial, whatever the time.
    planned = []
    monkeypatch.setattr(budget, "steps_in", lambda seconds, step: planned.append((seconds, step)) or 2)
    passages, _, dev = zip(*[iter(tiny_squad(tmp_path))] * 2, strict=True)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    results = tmp_path / "lines.jsonl"
    words = [
        *("--minutes", "30", *passages, *dev, "--articles", passages[1], "--tokenizer", str(tmp_path / "tokenizer")),
        *("--output_dir", str(tmp_path / "run"), "--results", str(results), "--size", "tiny", "--dimension", "8"),
        *("--max_passage_length", "24", "--batch_size", "2", "--num_candidates", "3", "--search_rows", "1000"),
        *("--masked_lm_batch_size", "2", "--warm_start_batch_size", "4", "--max_length", "32"),
    ]
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu_run.py", *words])
    gpu_run.main()
    lines = read_lines(results)
    phases = [line["phase"] for line in lines]
    trained = [gpu_run.MASKED_LM, gpu_run.WARM_START, gpu_run.READING, gpu_run.REALM]
    assert [phase for phase in phases if phase in trained] == trained
    assert [phase for phase in phases if phase.endswith("recall")] == [
        f"{phase}, recall" for phase in trained if phase != gpu_run.READING
    ]
    assert phases[0] == "begin" and phases[-1] == "end" and len(planned) == 4
    facts = {line["phase"]: line for line in lines}
    assert facts["data"]["texts"] == 2 * DEV_FROM and facts["REALM"]["steps"] == 2
    assert "eval_retrieval_utility" in facts["REALM"] and 0 <= facts["REALM, recall"]["recall@5"] <= 100
    speeds = {line["what"]: line for line in lines if line["phase"] == "speed"}
    assert all(speeds[name]["mfu"] >= 0 and speeds[name]["tokens_per_second"] > 0 for name in ("step", "encoding"))
    assert speeds["search by matrix product"]["queries_per_second"] > 0


class Rows:
    """Examples that say what they are."""

    def __len__(self):
        return 5

    def visit(self, index, epoch):
        return index, epoch, np.full(3, index)


def test_other_processes_draw_what_the_trainer_would_and_refuse_another_stream():
    order = DataOrder(5, seed=3)
    ahead = drawn_ahead.DrawnAhead(Rows(), order, 12, processes=1)
    rows, epochs = order(np.arange(12))
    asked = list(zip(rows.tolist(), epochs.tolist(), strict=True))
    assert len(ahead) == 5 and len(set(asked)) == 12
    for row, epoch in asked[:11]:
        found = ahead.visit(row, epoch)
        assert found[:2] == (row, epoch) and (found[2] == row).all()
    with pytest.raises(RuntimeError, match="from its beginning"):
        ahead.visit(asked[11][0], 99)


def test_a_phase_gets_its_share_of_what_is_left():
    clock = budget.Budget(1000.0, {"a": 1.0, "b": 1.0, "c": 2.0})
    try:
        with clock.phase("a") as until:
            assert until - time.monotonic() == pytest.approx(250, abs=1)
        # Its time was not used: the others have more.
        with clock.phase("b") as until:
            assert until - time.monotonic() == pytest.approx(333, abs=1)
        with clock.phase("c") as until:
            assert until - time.monotonic() == pytest.approx(1000, abs=1)
    finally:
        clock.close()


def test_a_process_that_hangs_is_ended_when_all_time_is_spent():
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the traceback
        budget.Budget(0.2, {})
        time.sleep(60)
        os._exit(0)
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1 and time.monotonic() - began < 30


def test_no_step_is_begun_after_the_time_and_the_lines_are_on_the_disk_at_once(tmp_path):
    report = budget.Report(tmp_path / "lines.jsonl")
    limit = budget.TimeLimit("phase", time.monotonic() + 1000, report, every=0.0)
    control = SimpleNamespace(should_training_stop=False)
    limit.on_step_end(None, None, control, record={"loss": 1.5, "generation": "a"})
    assert not control.should_training_stop
    assert [line["loss"] for line in read_lines(tmp_path / "lines.jsonl")] == [1.5]
    limit.until = time.monotonic() - 1
    limit.on_step_end(None, None, control, record={})
    assert control.should_training_stop


def test_steps_follow_from_the_time_that_is_left():
    assert budget.steps_in(10.0, 2.0) == 5 and budget.steps_in(-3.0, 2.0) == 1


def test_a_search_that_would_not_fit_the_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(card_speed, "_free_bytes", lambda device: 1e6)
    assert "left_out" in card_speed.search_speed(torch.device("cpu"), 10_000)
