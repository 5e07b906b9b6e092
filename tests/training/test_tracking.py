"""The log reads as if nothing had happened to the run, and the summary is made from it."""

import json

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from three_trainers import trainer_of

from realm_hf.runs.records import read_log
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.optimization import make_accelerator
from realm_hf.training.tracking import (
    Reporter,
    StepLog,
    figures_of,
    finish_trackers,
    start_trackers,
    summarize,
    track,
)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_resumed_log_drops_the_steps_that_are_taken_again_and_a_torn_line(tmp_path):
    file = tmp_path / "log.jsonl"
    log = StepLog(file)
    for step in range(1, 6):
        log.write({"step": step, "loss": 0.1 * step})
    log.close()
    with file.open("a") as torn:
        torn.write('{"step": 6, "lo')
    assert [record["step"] for record in read_log(file)] == [1, 2, 3, 4, 5]
    resumed = StepLog(file, after_step=3)
    resumed.write({"step": 4, "loss": 9.0})
    resumed.close()
    assert lines(file) == [{"step": s, "loss": 0.1 * s} for s in (1, 2, 3)] + [{"step": 4, "loss": 9.0}]


def test_fresh_log_forgets_an_earlier_one(tmp_path):
    StepLog(tmp_path / "log.jsonl").write({"step": 1})
    StepLog(tmp_path / "log.jsonl").close()
    assert lines(tmp_path / "log.jsonl") == []


def test_line_is_on_disk_when_write_returns_and_holds_no_nan(tmp_path):
    log = StepLog(tmp_path / "log.jsonl")
    log.write({"step": 1, "null_mass": float("nan"), "loss": float("inf"), "lr": 1e-5})
    assert lines(tmp_path / "log.jsonl") == [{"step": 1, "null_mass": None, "loss": None, "lr": 1e-5}]


def test_summary_adds_up_seconds_and_keeps_what_others_wrote(tmp_path):
    log = StepLog(tmp_path / "log.jsonl")
    swap = {"event": "swap", "name": "g1", "snapshot_step": 0, "builder_pid": 7, "swapped_at_step": 1}
    log.write({"step": 1, "loss": 1.0, "step_seconds": 0.5, "events": [swap]})
    log.write({"step": 2, "loss": 1.0, "step_seconds": 0.25, "events": []})
    log.write({"step": 2, "eval_loss": 1.0, "eval_seconds": 2.0})
    (tmp_path / "summary.json").write_text('{"recall": {"initial": {"1": 0.5}}, "seconds": {"inverse_cloze": 9.0}}')
    summarize(tmp_path / "log.jsonl", tmp_path / "summary.json", {"evaluation": {"eval_loss": 1.0}})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["recall"] == {"initial": {"1": 0.5}}
    assert summary["seconds"] == {"inverse_cloze": 9.0, "step": 0.75, "search_wait": 0.0, "eval": 2.0, "save": 0.0}
    (generation,) = summary["generations"]
    assert (generation["name"], generation["snapshot_step"], generation["builder_pid"]) == ("g1", 0, 7)
    assert summary["steps"] == 2


def test_unknown_tracker_is_named_with_those_that_are_installed(tmp_path):
    args = RealmTrainingArguments(output_dir=str(tmp_path), report_to=["nonesuch"], use_cpu=True)
    with pytest.raises(ValueError, match=r"'nonesuch'; installed here:"):
        make_accelerator(args)


def test_figures_reach_tensorboard_under_the_runs_name_and_words_do_not(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    args = RealmTrainingArguments(output_dir=str(tmp_path / "mine"), report_to=["tensorboard"], use_cpu=True)
    accelerator = make_accelerator(args)
    assert isinstance(accelerator, Accelerator)
    start_trackers(accelerator, args)
    swap = {"event": "swap", "name": "g2", "churn": 0.25, "stale_recall": None, "builder_pid": 7}
    track(accelerator, {"step": 3, "loss": 1.5, "generation": "g1", "null_mass": float("nan"), "events": [swap]})
    finish_trackers(accelerator)
    events = accumulator.EventAccumulator(str(tmp_path / "mine" / "tracking" / "mine")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 1.5)]
    assert sorted(events.Tags()["scalars"]) == ["loss", "swap/churn"]


class FakeTracker(GeneralTracker):
    name, requires_logging_directory, main_process_only = "fake", False, True

    def __init__(self):
        super().__init__()
        self.logged = []

    tracker = None

    def store_init_configuration(self, values):
        self.values = values

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))


def test_every_figure_of_the_log_reaches_the_tracker_swaps_between_two_logged_steps_too(world, tmp_path):
    made = trainer_of("pre-training", world, tmp_path, max_steps=4, logging_steps=4, probe_queries=4)
    fake = FakeTracker()
    made.accelerator.log_with = [fake]
    made.train()
    sent = {(step, name): value for step, values in fake.logged for name, value in values.items()}
    swaps = [event for record in read_log(tmp_path / "log.jsonl") for event in record.get("events", [])]
    assert [event["swapped_at_step"] for event in swaps] == [0, 2, 4]
    for event in swaps:
        for name in ("churn", "stale_recall", "most_retrieved_share", "staleness_steps", "build_seconds"):
            assert sent.get((event["swapped_at_step"], f"swap/{name}")) == event[name]
    assert {name for step, name in sent if step == 2} == set(figures_of({"events": [swaps[1]]}))
    (last,) = [r for r in read_log(tmp_path / "log.jsonl") if r["step"] == 4 and "loss" in r]
    assert figures_of(last).items() <= {name: value for (step, name), value in sent.items() if step == 4}.items()
    assert {"index_seconds"} <= {name for step, name in sent if step == 0}
    assert {"save_seconds"} <= {name for step, name in sent if step == 4}
    assert fake.values["output_dir"] == str(tmp_path)


def test_held_out_figures_of_a_swap_reach_the_tracker_between_two_logged_steps(tmp_path):
    args = RealmTrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True)
    accelerator = make_accelerator(args)
    fake = FakeTracker()
    accelerator.log_with = [fake]
    reporter = Reporter(accelerator, args, tmp_path / "log.jsonl", name="x")
    reporter.write({"step": 3, "loss": 1.0, "eval_recall_at_5": 0.5}, sampled=False)
    reporter.write({"step": 4, "loss": 2.0}, sampled=False)
    reporter.close()
    assert fake.logged == [(3, {"eval_recall_at_5": 0.5})]


def test_the_summary_names_the_arguments_and_the_warm_up_in_steps(world, tmp_path):
    settings = {"max_steps": 2, "warmup_steps": -1, "refresh_schedule": "0-1:1,1-:2"}
    made = trainer_of("pre-training", world, tmp_path, **settings)
    made.train()
    arguments = json.loads((tmp_path / "summary.json").read_text())["arguments"]
    assert arguments["warmup_steps"] == 100 and arguments["refresh_schedule"] == "0-1:1,1-:2"
    assert arguments.keys() & {"output_dir", "run_name", "report_to"} == set(), "no paths"
