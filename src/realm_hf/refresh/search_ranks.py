"""What the ranks of a job send each other when they search an index together that none of them holds whole.

It goes over a gloo group of its own, on CPU tensors: queries come from the host and rows go to it, a few hundred
kilobytes a step, and a GPU's queue is neither waited for nor disturbed.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from realm_hf.refresh.process_groups import STEP_TIMEOUT, explain_lost_rank, step_group

__all__ = ["SearchRanks"]

_WAIT = "the search that all ranks make together"


class SearchRanks:
    """
    A [`~realm_hf.index.sharded.RankExchange`] of all ranks of the job; every rank makes it at the same point.

    Args:
        rank (`int`): This process's rank.
        world_size (`int`): Number of ranks, at least 2.
        timeout (`timedelta`, *optional*, defaults to 10 minutes): Longest that one rank may come later than another to
            a search. A rank that ends is noticed at once.
    """

    def __init__(self, rank: int, world_size: int, *, timeout: timedelta = STEP_TIMEOUT):
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self._group = step_group(timeout)

    def gather(self, own: np.ndarray) -> np.ndarray:
        """
        What each rank gave, `[W, ...]`: arrays of one shape and type.

        Raises:
            LostRank: Another rank ended, or did not come in time.
        """
        sent = torch.from_numpy(np.ascontiguousarray(own))
        found = torch.empty((self.world_size, *sent.shape), dtype=sent.dtype)
        with explain_lost_rank(_WAIT, self.timeout):
            dist.all_gather(list(found.unbind()), sent, group=self._group)
        return found.numpy()

    def deal(self, parts: np.ndarray) -> np.ndarray:
        """
        Send `parts[r]` to rank `r`; returns what each rank sent to this one, `[W, ...]`.

        Raises:
            LostRank: Another rank ended, or did not come in time.
        """
        sent = torch.from_numpy(np.ascontiguousarray(parts))
        found = torch.empty_like(sent)
        with explain_lost_rank(_WAIT, self.timeout):
            dist.all_to_all_single(found, sent, group=self._group)
        return found.numpy()
