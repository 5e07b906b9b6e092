"""A run whose rank dies is started again by an elastic launcher, and goes on from its newest checkpoint by itself."""

import re
import signal

import launching
import pytest
import restarted_program
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from realm_hf.runs.records import read_log
from realm_hf.training.loop_arguments import LoopArguments

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.mark.parametrize(
    ("count", "given", "resumes"),
    [("0", None, False), ("1", None, True), ("2", "false", True), ("1", "runs/checkpoint-3", "runs/checkpoint-3")],
)
def test_only_a_restarted_run_resumes_unasked(monkeypatch, count, given, resumes):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    assert LoopArguments(output_dir="run", resume_from_checkpoint=given).resume == resumes


@pytest.fixture
def kept_signals():
    """The launcher's agent takes signals for itself; here it is this process, which gets them back."""
    handlers = {number: signal.getsignal(number) for number in TAKEN}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.multiprocess
def test_a_rank_that_is_killed_costs_the_steps_since_the_last_checkpoint_and_no_more(world, tmp_path, kept_signals):
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=1,
        monitor_interval=0.1,
        start_method=launching.START_METHOD,
        logs_specs=DefaultLogsSpecs(log_dir=str(tmp_path / "logs"), redirects=Std.ALL),
    )
    elastic_launch(launcher, restarted_program.main)(str(world), str(tmp_path / "run"))
    started = sorted((tmp_path / "started").read_text().splitlines())
    assert started == ["0 again", "0 first", "1 again", "1 first"]
    printed = "".join(path.read_text() for path in (tmp_path / "logs").rglob("stdout.log"))
    assert "finished at step 8" in printed
    taken = [record["step"] for record in read_log(tmp_path / "run" / "log.jsonl") if "loss" in record]
    assert taken == list(range(1, 9))
    # Rank 1 keeps a log of its own that nobody cuts: steps 1 to 4, and from the checkpoint of step 3 on.
    ranks_own = (tmp_path / "run" / "rank1.jsonl").read_text().splitlines()
    assert [int(re.search(r'"step": (\d+)', line)[1]) for line in ranks_own] == [1, 2, 3, 4, 4, 5, 6, 7, 8]
