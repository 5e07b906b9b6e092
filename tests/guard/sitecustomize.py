"""What no test may do, enforced in the test process and in every Python child that it starts.

Two things raise here: a connection to an address that is not loopback, and a write outside the checkout and the
temporary directory. An audit hook is used rather than patched functions: it sees every socket and file that Python
opens, whoever opens it, and cannot be taken off again. Children get it because `tests/conftest.py` puts this folder on
PYTHONPATH, where the interpreter imports a module of this name at start-up. (What C++ opens is not seen; gloo binds to
the host's own address.)
"""

import os
import socket
import sys
import tempfile
from pathlib import Path

LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "::1", "0.0.0.0", "::", ""})


class ForbiddenInTests(RuntimeError):
    """A test reached for the network, or wrote where it must not. No `except OSError` hides a `RuntimeError`."""


def is_loopback(host: object) -> bool:
    """True for the addresses that stay on this machine; the machine's own name counts as one of them."""
    name = host.decode() if isinstance(host, bytes) else host
    if name is None:
        return True
    return isinstance(name, str) and (
        name in LOOPBACK_NAMES or name.startswith("127.") or name == socket.gethostname()
    )


def _writable_roots() -> tuple[str, ...]:
    checkout = Path(__file__).resolve().parents[2]
    roots = [checkout, os.environ.get("REALM_TEST_TMP", tempfile.gettempdir()), "/dev", "/proc"]
    return tuple(os.path.realpath(root) for root in roots)


def _check_address(event: str, arguments: tuple) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    else:  # socket.connect and socket.sendto: (socket, address); an AF_UNIX address is a path, not a tuple
        if not isinstance(arguments[1], tuple):
            return
        host = arguments[1][0]
    if not is_loopback(host):
        raise ForbiddenInTests(f"{event} to {host!r}: tests reach nothing but loopback")


def install() -> None:
    """Adds the audit hook; a second call in the same process does nothing."""
    if getattr(sys, "_realm_test_guard", False):
        return
    sys._realm_test_guard = True
    roots = _writable_roots()
    write_flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def check_path(event: str, path: object) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # an open file descriptor
        full = os.path.realpath(os.fsdecode(path))
        if "__pycache__" in full or any(full == root or full.startswith(root + os.sep) for root in roots):
            return
        raise ForbiddenInTests(f"{event} writes {full!r}: tests write only into the checkout and {roots[1]!r}")

    def hook(event: str, arguments: tuple) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
            _check_address(event, arguments)
        elif event == "open":
            path, mode, flags = arguments
            if (isinstance(mode, str) and any(letter in mode for letter in "wax+")) or (flags or 0) & write_flags:
                check_path(event, path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            check_path(event, arguments[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            check_path(event, arguments[1])

    sys.addaudithook(hook)


if os.environ.get("REALM_TEST_GUARD") == "1":
    install()
