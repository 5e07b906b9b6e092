"""Commands that train, as a launcher starts them: two processes, a typo, a stop and how to go on."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launching import finish, start_programs
from tiny_bert import tiny_bert
from tiny_worlds import FIXTURES
from tqdm import tqdm

from realm_hf.cli import programs, warm_start
from realm_hf.cli.finetune import run_of
from realm_hf.cli.main import main
from realm_hf.runs.records import read_log
from realm_hf.training import command_errors
from realm_hf.training.signals import resume_command

LAUNCH = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
TINY = ["--max_candidate_length", "96", "--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "true"]


def launch(*words: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", *LAUNCH, "-m", "realm_hf", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def words(bert, tmp_path) -> list[str]:
    given = ["--knowledge_corpus", FIXTURES / "countries.jsonl", "--model_name_or_path", bert]
    return [*map(str, [*given, "--output_dir", tmp_path / "run"]), "--retriever_proj_size", "16", *TINY]


def test_a_run_and_its_model_folder_name_the_same_run(tmp_path):
    (tmp_path / "model").mkdir()
    assert run_of(str(tmp_path / "model")) is None
    (tmp_path / "run.json").write_text("{}")
    assert run_of(str(tmp_path)) == run_of(str(tmp_path / "model")) == tmp_path


def test_a_line_of_the_log_is_not_glued_to_a_bar(capsys):
    log = logging.LogRecord("realm_hf", logging.INFO, "", 0, "served", None, None)
    with tqdm(total=2, desc="training") as bar:
        bar.update(1)
        programs.AboveTheBars().handle(log)
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert "served" in [line.strip() for line in lines]


@pytest.mark.multiprocess
def test_two_processes_pretrain_together(words, tmp_path):
    words = ["pretrain", *words, "--num_candidates", "2", "--refresh", "off", "--heldout_fraction", "0.2"]
    printed = "".join(finish(start_programs("realm_hf.cli.main", [words], tmp_path), timeout=300))
    assert "on 2 x cpu" in printed and printed.count("Done at step 2") == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.multiprocess
def test_a_typo_is_one_line_of_one_rank(words, tmp_path):
    ranks = start_programs("realm_hf.cli.main", [["pretrain", *words, "--max_stepss", "3"]], tmp_path)
    try:
        assert ranks[0].wait() != 0
        assert ranks[1].returncode is None, "it gives the launcher time to end it"
    finally:
        for rank in ranks:
            rank.kill()
    own = [line for line in ranks[0].output.splitlines() if line.startswith("realm-hf pretrain: ")]
    assert len(own) == 1 and "Did you mean 'max_steps'?" in own[0], ranks[0].output
    assert "Traceback" not in ranks[0].output and "realm-hf" not in ranks[1].output


@pytest.mark.multiprocess
def test_what_cannot_be_used_is_one_line_of_one_rank(words):
    done = launch("pretrain", *words, "--knowledge_corpus", "no/such.jsonl")
    own = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("realm-hf pretrain: ")]
    assert done.returncode != 0 and len(own) == 1 and "no/such.jsonl" in own[0], done.stderr[-4000:]
    assert "cli/pretrain.py" not in done.stderr, "no traceback of the command; the launcher's own is its own"
    # The launcher's report ends with the line.
    assert f"traceback : {own[0]}" in done.stderr.strip().splitlines()[-2], done.stderr[-4000:]


@pytest.mark.parametrize("task", warm_start.TASKS)
def test_each_warm_start_is_a_run_of_its_own(task, words, tmp_path, capsys):
    if task == "masked-lm":
        position = words.index("--retriever_proj_size")
        words = [*words[:position], *words[position + 2 :], "--max_length", "48"]
    assert main(["warm-start", task, *words, "--disable_tqdm"]) == 0
    assert "Done at step 2" in capsys.readouterr().out
    assert [record["step"] for record in read_log(tmp_path / "run" / "log.jsonl") if "loss" in record] == [1, 2]


def test_warm_start_names_its_tasks_and_refuses_another(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["warm-start", "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and all(task in told for task in warm_start.TASKS)
    with pytest.raises(SystemExit) as ended:
        main(["warm-start", "inverse_cloze"])
    assert ended.value.code == 2 and "inverse-cloze" in capsys.readouterr().err


def test_another_rank_waits_for_the_first_to_speak(monkeypatch, tmp_path):
    waited = []
    monkeypatch.setattr(command_errors.time, "sleep", waited.append)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with (
            pytest.raises(SystemExit, match="realm-hf pretrain: no such corpus"),
            programs.one_line_errors("pretrain"),
        ):
            raise FileNotFoundError("no such corpus")
    assert waited == [60.0]
    left = json.loads((tmp_path / "error.json").read_text())["message"]
    assert left["message"] == "realm-hf pretrain: no such corpus" and int(left["extraInfo"]["timestamp"]) > 0
    with pytest.raises(RuntimeError, match="a failure"), programs.one_line_errors("pretrain"):
        raise RuntimeError("a failure")


@pytest.mark.parametrize("world", ["1", "2"])
def test_command_that_resumes_is_that_of_the_module(monkeypatch, world):
    monkeypatch.setenv("WORLD_SIZE", world)
    given = ["pretrain", "run.yaml", "--max_steps", "3"]
    monkeypatch.setattr(sys, "argv", ["/site-packages/realm_hf/__main__.py", *given])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "realm_hf", *given])
    before = "python" if world == "1" else "<launcher as before>"
    expected = f"{before} -m realm_hf pretrain run.yaml --max_steps 3 --resume_from_checkpoint true"
    assert resume_command() == expected


@pytest.mark.multiprocess
def test_command_that_resumes_is_that_of_the_launcher_even_with_one_process(tmp_path):
    package = tmp_path / "realm_hf_stopped"
    package.mkdir()
    (package / "__main__.py").write_text(
        "from realm_hf.training.signals import resume_command\nprint(resume_command())\n", encoding="utf-8"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launcher, "-m", package.name, "pretrain", "--max_steps", "3"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(
        rf"accelerate_cli launch .* -m {package.name} pretrain --max_steps 3 --resume_from_checkpoint true$",
        done.stdout.strip(),
    ), done.stdout
