"""A process that goes last on a shared processor.

Niceness alone does nothing for a builder on most Linux machines: where the kernel groups processes by session
(`sched_autogroup`, the default of desktop and server kernels), it shares the processor among sessions first, and
niceness counts inside one only. A builder has a session of its own, so that its group's niceness is set as well.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

_MOST_NICE = 19
_TRIES = 5
_PAUSE_SECONDS = 0.12  # the kernel takes one change in a tenth of a second from users other than root


def lower_priority(pid: int, nice: int) -> None:
    """
    Add to a process's niceness, and to its session's where the process leads one.

    Threads and children that it starts later inherit both. The session of a process that does not lead it is left
    alone: other programs of the same terminal are in it.

    Args:
        pid (`int`): The process; one that has ended is passed over.
        nice (`int`): How much, 0 to 19; added to the niceness of the calling process and of its session.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, pid, min(_MOST_NICE, os.getpriority(os.PRIO_PROCESS, 0) + nice))
        leads = os.getsid(pid) == pid
    except ProcessLookupError:
        return
    group = Path(f"/proc/{pid}/autogroup")
    if nice and leads and group.exists():
        _set_group_niceness(group, min(_MOST_NICE, (group_niceness() or 0) + nice))


def group_niceness(pid: int | None = None) -> int | None:
    """Niceness of a process's session, or of this one's; `None` where the kernel has no such groups."""
    try:
        # "/autogroup-284 nice 10"
        return int(Path(f"/proc/{pid or os.getpid()}/autogroup").read_text(encoding="ascii").rsplit(maxsplit=1)[-1])
    except (FileNotFoundError, IndexError):
        return None


def _set_group_niceness(group: Path, niceness: int) -> None:
    for attempt in range(_TRIES):
        try:
            group.write_text(str(niceness), encoding="ascii")
        except OSError as error:
            if error.errno == errno.EAGAIN and attempt + 1 < _TRIES:
                time.sleep(_PAUSE_SECONDS)
                continue
            logger.warning(
                "The builder's priority could not be lowered (%s): it takes an equal share of the processor. Fewer "
                "builder threads, or refresh='sync', leave more to training.",
                error,
            )
        return
