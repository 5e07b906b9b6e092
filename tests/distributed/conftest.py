"""What every test here ends with: none of the ranks that it started is left running."""

import contextlib

import psutil
import pytest


@pytest.fixture(autouse=True)
def nothing_is_left_running(tmp_path):
    """End what has this test's folder on its command line. A test that failed would leave ranks that train for hours;
    launchers start them in sessions of their own, and may have ended before them.
    """
    yield
    for process in psutil.process_iter(["cmdline"]):
        if any(str(tmp_path) in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
