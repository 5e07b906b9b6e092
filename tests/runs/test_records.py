"""One reader of what a run wrote: for the report, the card and the trainer that goes on."""

import json

import pytest

from realm_hf.runs.records import read_log, read_run
from realm_hf.training.tracking import StepLog

DAMAGED = [
    '{"step": 1, "loss": 3.0}',
    "[" * 100_000,
    '"words"',
    '{"loss": 1.0}',
    "",
    '{"step": 2, "loss": 2.0}',
    '{"st',
]


def test_lines_that_are_no_record_are_left_out_wherever_they_stand(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(DAMAGED))

    assert [record["step"] for record in read_log(log)] == [1, 2]
    assert [record["step"] for record in read_run(tmp_path).steps] == [1, 2]
    assert read_run(tmp_path).unreadable_lines == 4


def test_a_trainer_that_goes_on_keeps_what_stands_after_a_damaged_line(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(DAMAGED))

    StepLog(log, after_step=2).close()

    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]


def test_no_log_has_no_records(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_run_without_a_log_is_read_from_its_summary(tmp_path):
    (tmp_path / "summary.json").write_text('{"steps": 7, "seconds": {"total": 1.5, "note": "words"}}')

    record = read_run(tmp_path)

    assert (record.steps, record.steps_taken, record.seconds) == ([], 7, {"total": 1.5})


@pytest.mark.parametrize(
    ("written", "percent"),
    [({"1": 0.25, "5": 1.0}, {"1": 25.0, "5": 100.0}), ({"1": 0.5, "5": 80}, {"1": 0.5, "5": 80})],
)
def test_recall_is_in_percent_however_it_was_written(tmp_path, written, percent):
    (tmp_path / "summary.json").write_text(json.dumps({"recall": {"realm": written}}))

    assert read_run(tmp_path).recall == {"realm": percent}
