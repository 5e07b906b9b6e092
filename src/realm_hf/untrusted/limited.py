"""A script in a child process with little memory and time: what a stranger's file does to it, it does to no one else.

Limits are set after the libraries are imported, so that they count what the file costs. The child inherits no
variable that Python reads (`-I`), and cannot write files.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from realm_hf.untrusted.checks import HubArtefactError

__all__ = ["run_limited"]

_BOOTSTRAP = """
import importlib, os, resource, runpy, sys
libraries, memory, seconds, script = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for name in libraries.split(","):
    importlib.import_module(name)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
if os.path.exists("/proc/self/statm"):
    with open("/proc/self/statm") as file:
        memory += int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
sys.argv = sys.argv[4:]
runpy.run_path(script, run_name="__main__")
"""
_LONGEST_REASON = 300


def run_limited(
    script: Path, arguments: Sequence[object], *, libraries: Sequence[str], memory: int, seconds: int, what: str
) -> None:
    """
    Run a script of this package on a stranger's file, and refuse the file if the script does not end well.

    Args:
        script (`Path`): The script; it imports nothing of the package.
        arguments (sequence): Its arguments, as text.
        libraries (sequence of `str`): Modules that are imported before the limits hold.
        memory (`int`): Bytes that it may take beside them (on Linux; elsewhere only time is limited).
        seconds (`int`): Seconds, of the processor and of the clock.
        what (`str`): The file in words, for messages.

    Raises:
        HubArtefactError: With the script's last words, or the signal that it died of.
    """
    limits = [",".join(libraries), str(memory), str(seconds), str(script)]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _BOOTSTRAP, *limits, *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HubArtefactError(f"{what} is refused: it could not be tried within {seconds} s.") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        died = f"the process that tried it died of signal {-done.returncode}"
        reason = said[-1][-_LONGEST_REASON:] if said and done.returncode > 0 else died
        raise HubArtefactError(f"{what} is refused: {reason}")
