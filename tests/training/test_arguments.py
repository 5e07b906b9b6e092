"""The arguments say what is wrong with them, and one YAML file is as good as the command line."""

import pytest

from realm_hf.training import command_errors
from realm_hf.training.arguments import InverseClozeTrainingArguments, RealmTrainingArguments
from realm_hf.training.command_line import parse_arguments


def test_yaml_file_and_command_line_give_the_same_arguments(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "output_dir: runs/x\nmax_steps: 7\nlearning_rate: 1e-4\nuse_cpu: true\nbf16: null\n"
        "report_to: [tensorboard, wandb]\n"
    )
    words = [
        "--output_dir",
        "runs/x",
        "--max_steps",
        "7",
        "--learning_rate",
        "1e-4",
        "--use_cpu",
        "--report_to",
        "tensorboard",
        "wandb",
    ]
    assert parse_arguments([RealmTrainingArguments], [str(file)]) == parse_arguments([RealmTrainingArguments], words)


def test_command_line_overrides_the_yaml_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: runs/x\nmax_steps: 7\nuse_cpu: true\n")
    (args,) = parse_arguments([RealmTrainingArguments], [str(file), "--max_steps", "9", "--use_cpu", "false"])
    assert (args.output_dir, args.max_steps, args.use_cpu) == ("runs/x", 9, False)


def test_unknown_argument_names_the_nearest_one(tmp_path):
    with pytest.raises(ValueError, match=r"'refresh_step'.*'refresh_steps'"):
        parse_arguments([RealmTrainingArguments], ["--output_dir", "x", "--refresh_step", "4"])
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: x\nnum_candidate: 3\n")
    with pytest.raises(ValueError, match=r"run\.yaml.*'num_candidate'.*'num_candidates'"):
        parse_arguments([RealmTrainingArguments], [str(file)])


def test_missing_or_shapeless_yaml_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        parse_arguments([RealmTrainingArguments], [str(tmp_path / "none.yaml")])
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match=r"list.*mapping"):
        parse_arguments([RealmTrainingArguments], [str(file)])


@pytest.mark.parametrize(("text", "said"), [("a: 1\n  b: [\n", r"run\.yaml, line \d+ is no YAML"), ("a: é", "UTF-8")])
def test_a_yaml_file_that_cannot_be_read_is_named_with_its_line(tmp_path, text, said):
    file = tmp_path / "run.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=said):
        parse_arguments([RealmTrainingArguments], [str(file)])


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize(
    ("words", "said"),
    [(["--output_dir", "x", "--learning_rate", "fast"], "'fast'"), ([], "required: --output_dir")],
)
def test_a_value_that_does_not_fit_is_said_in_one_line_by_one_rank(monkeypatch, capsys, words, said, rank, lines):
    def ended_by_the_launcher(seconds):
        raise SystemExit(2)

    monkeypatch.setattr(command_errors.time, "sleep", ended_by_the_launcher)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended:
        parse_arguments([RealmTrainingArguments], words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == lines
    assert not lines or (said in error and error.endswith("See --help.\n"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"masking": "entities"}, "masking is 'entities'.*salient"),
        ({"max_steps": 0}, "max_steps is 0.*at least 1"),
        ({"num_candidates": 0}, "num_candidates is 0"),
        ({"reading_candidates": 2}, "reading_candidates is 2, but freeze_retriever_steps is 0"),
        ({"freeze_encoder": True, "freeze_retriever_steps": 5}, "freeze_retriever_steps is 5 .* nothing would learn"),
        ({"freeze_encoder": True, "detach_retrieval": True}, "nothing would learn"),
        ({"in_batch_candidates": True, "per_device_train_batch_size": 1}, "a micro-batch has no other query"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"retriever_learning_rate": 0.0}, "retriever_learning_rate is 0.0"),
        ({"save_total_limit": 0}, "save_total_limit is 0"),
        ({"on_stale": "wait"}, "max_staleness is not set"),
        ({"max_staleness": 10, "refresh_steps": 20}, "max_staleness is 10.*refresh_steps = 20"),
        ({"max_staleness": 500, "refresh_schedule": "0-9:5,9-:900"}, "500 steps.*refresh_schedule's longest .* = 900"),
        ({"refresh_schedule": "0-9"}, "refresh_schedule is '0-9': '0-9' is no such part"),
        ({"warmup_steps": -2}, "warmup_steps is -2, but must be at least -1"),
        ({"refresh": "external", "on_stale": "sync", "max_staleness": 900}, "refresh='external' forbids"),
        ({"refresh": "off", "max_staleness": 900}, "never renews"),
        ({"output_dir": ""}, "output_dir is empty"),
    ],
)
def test_impossible_value_is_refused_in_words(wrong, message):
    with pytest.raises(ValueError, match=message):
        RealmTrainingArguments(**{"output_dir": "x", **wrong})


def test_a_schedule_goes_before_the_interval(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: x\nrefresh_schedule: 0-1000:250,1000-:1000\nmax_staleness: 1500\n")
    (args,) = parse_arguments([RealmTrainingArguments], [str(file)])
    assert str(args.snapshot_schedule) == "0-1000:250,1000-:1000"
    assert RealmTrainingArguments(output_dir="x", refresh_steps=7).snapshot_schedule.intervals == (7,)


def test_contrastive_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="no negative"):
        InverseClozeTrainingArguments(output_dir="x", per_device_train_batch_size=1)


@pytest.mark.parametrize(("given", "means"), [(None, False), ("true", True), ("False", False), ("a/b", "a/b")])
def test_resume_reads_a_path_or_a_word(given, means):
    assert RealmTrainingArguments(output_dir="x", resume_from_checkpoint=given).resume == means
