"""Process groups whose waits have an end, and the error that explains which wait failed.

A rank that dies breaks its connections, which gloo notices at once. One that is stopped, hangs on a dead file system
or sits on a machine that is gone is noticed only by a timeout. Nothing here waits inside a collective for work that
may take hours: such work is done beside small meetings of the ranks, see [`RankGroup`].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from realm_hf.refresh.base import RefreshError

STEP_TIMEOUT = timedelta(minutes=10)
"""Longest that one rank may come later than another to a meeting. NCCL's own default, which a rank that is later than
this at the gradients has exceeded already."""


class LostRank(RefreshError):  # noqa: N818 - it is the event that is named
    """Another rank ended, or did not come to a meeting in time."""


def step_group(timeout: timedelta = STEP_TIMEOUT) -> dist.ProcessGroup:
    """
    A gloo group of all ranks for their small meetings; every rank makes it at the same point.

    Args:
        timeout (`timedelta`, *optional*, defaults to 10 minutes): Longest that the ranks wait for one
            another in one meeting.
    """
    return dist.new_group(backend="gloo", timeout=timeout)


@contextmanager
def explain_lost_rank(wait: str, timeout: timedelta = STEP_TIMEOUT) -> Iterator[None]:
    """
    Explain a collective of the block that fails: what it waited for, how long, and what to do.

    Args:
        wait (`str`): What the ranks meet for, such as "the swap at step 12".
        timeout (`timedelta`, *optional*, defaults to 10 minutes): That of the group.

    Raises:
        LostRank: The collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        raise _lost_rank(wait, f" within {timeout.total_seconds():.0f} s", error) from error


@contextmanager
def explain_broken_connection(wait: str) -> Iterator[None]:
    """
    Explain a connection to another rank that breaks in a block which also computes: its other errors stay as they are.

    Args:
        wait (`str`): What the ranks meet for in it, such as "the gradients of step 12".

    Raises:
        LostRank: A collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        # torch's own errors of NCCL; gloo's are plain ones that name its source file.
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise _lost_rank(wait, " in time", error) from error


def _lost_rank(wait: str, limit: str, error: RuntimeError) -> LostRank:
    return LostRank(
        f"Another rank is lost: it ended, or did not come to {wait}{limit}. Its own output says why, if it could "
        "still write; end what is left of the job, mend that, and resume from the newest checkpoint. "
        f"({error})"
    )
