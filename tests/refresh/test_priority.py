"""The builder goes last on a processor that it shares with training."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from realm_hf.refresh.builder_process import builder_environment
from realm_hf.refresh.priority import group_niceness, lower_priority

grouped = pytest.mark.skipif(group_niceness() is None, reason="this kernel has no session groups")
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper():
    started = []

    def start(**options):
        started.append(subprocess.Popen(SLEEP, **options))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


@grouped
@pytest.mark.multiprocess
def test_the_session_of_a_process_that_leads_it_is_lowered_too(sleeper):
    own = group_niceness()
    pid = sleeper(start_new_session=True)
    lower_priority(pid, 7)
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
    assert group_niceness(pid) == min(19, own + 7)
    assert group_niceness() == own, "the caller keeps its own"


@grouped
@pytest.mark.multiprocess
def test_a_session_with_other_programs_in_it_is_left_alone(sleeper):
    own = group_niceness()
    pid = sleeper()
    lower_priority(pid, 7)
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0) or own == 19
    assert group_niceness(pid) == own


@grouped
@pytest.mark.multiprocess
def test_a_builder_has_the_niceness_that_was_asked_for(run):
    command = [sys.executable, "-m", "realm_hf.refresh.builder", str(run.root), "--watch", "--nice", "11"]
    builder = subprocess.Popen(command, env=builder_environment(1), start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not list(run.heartbeats.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert group_niceness(builder.pid) == min(19, group_niceness() + 11)
        assert os.getpriority(os.PRIO_PROCESS, builder.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 11)
    finally:
        builder.kill()
        builder.wait()


@grouped
@pytest.mark.multiprocess
def test_a_kernel_that_is_asked_too_often_is_asked_again(sleeper, monkeypatch):
    write, refused = Path.write_text, []

    def busy_once(path, *args, **kwargs):
        if path.name == "autogroup" and not refused:
            refused.append(path)
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", busy_once)
    pid = sleeper(start_new_session=True)
    lower_priority(pid, 3)
    assert refused
    assert group_niceness(pid) == min(19, group_niceness() + 3)


def test_a_process_that_has_ended_is_passed_over():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lower_priority(ended.pid, 5)
