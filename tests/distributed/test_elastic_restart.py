"""A run whose rank dies is started again by an elastic launcher, and goes on from its newest checkpoint by itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_worlds import fact_world

from realm_hf.runs.records import read_log
from realm_hf.training.loop_arguments import LoopArguments

FIXTURES = Path(__file__).parents[1] / "fixtures"

PROGRAM = """
import os, sys
sys.path.insert(0, {fixtures!r})
import train_program

first, rank = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0", os.environ["RANK"]
print("started", rank, "first" if first else "again", flush=True)
place = "5.0" if first and rank == "1" else None
train_program.main(*sys.argv[1:], max_steps=8, resume=None, die_in=place)
"""


@pytest.mark.parametrize(
    ("count", "given", "resumes"),
    [("0", None, False), ("1", None, True), ("2", "false", True), ("1", "runs/checkpoint-3", "runs/checkpoint-3")],
)
def test_only_a_restarted_run_resumes_unasked(monkeypatch, count, given, resumes):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    assert LoopArguments(output_dir="run", resume_from_checkpoint=given).resume == resumes


@pytest.mark.multiprocess
def test_a_rank_that_is_killed_costs_the_steps_since_the_last_checkpoint_and_no_more(tmp_path):
    fact_world(tmp_path / "world")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(fixtures=str(FIXTURES)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launched = subprocess.run(
        [*launch, "--max-restarts", "1", str(script), str(tmp_path / "world"), str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert launched.returncode == 0, launched.stderr
    started = sorted(re.findall(r"started (\d) (first|again)", launched.stdout))
    assert started == [("0", "again"), ("0", "first"), ("1", "again"), ("1", "first")]
    assert "finished at step 8" in launched.stdout
    taken = [record["step"] for record in read_log(tmp_path / "run" / "log.jsonl") if "loss" in record]
    assert taken == list(range(1, 9))
    # Rank 1 keeps a log of its own that nobody cuts: steps 1 to 4, and from the checkpoint of step 3 on.
    ranks_own = (tmp_path / "run" / "rank1.jsonl").read_text().splitlines()
    assert [int(re.search(r'"step": (\d+)', line)[1]) for line in ranks_own] == [1, 2, 3, 4, 4, 5, 6, 7, 8]
