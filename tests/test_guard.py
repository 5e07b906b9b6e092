"""The tests' own guard works: without it, "no network" would be a hope."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Not an import: conftest.py loads the guard under a name of its own.
GUARD = sys.modules["realm_test_guard"]


def test_connection_off_this_machine_raises():
    with pytest.raises(GUARD.ForbiddenInTests, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_name_lookup_off_this_machine_raises():
    with pytest.raises(GUARD.ForbiddenInTests, match="huggingface"):
        socket.getaddrinfo("huggingface.co", 443)


def test_loopback_connects():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_write_outside_the_checkout_and_tmp_raises(tmp_path: Path):
    (tmp_path / "allowed").write_text("x")
    forbidden = Path.home() / "realm-test-guard"
    with pytest.raises(GUARD.ForbiddenInTests, match="realm-test-guard"):
        forbidden.write_text("x")
    assert not forbidden.exists()


@pytest.mark.multiprocess
def test_child_process_is_guarded_too():
    child = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    result = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "ForbiddenInTests" in result.stderr


def test_caches_point_into_the_temporary_folder():
    assert Path(os.environ["HF_HOME"]).is_relative_to(os.environ["REALM_TEST_TMP"])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
