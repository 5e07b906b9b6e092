"""Who gives the index how many processor threads during a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from realm_hf.index.threads import usable_cores

if TYPE_CHECKING:
    from realm_hf.training.arguments import RefreshArguments


@dataclass(frozen=True)
class IndexThreads:
    """Threads of k-means, of adding vectors and of searches; `index_threads` of the arguments in all three if given.

    Args:
        build (`int`): While training stands still and the other ranks wait: all usable cores.
        builder (`int`): In the builder process beside training: what training leaves. On a CPU that is
            `builder_threads`; on an accelerator all cores but one for each rank of this machine.
        search (`int`, *optional*): Of each search beside training; on an accelerator an equal share of the cores for
            each rank, on a CPU `None`: the steps need the cores, and FAISS keeps to what the launcher has set.
    """

    build: int
    builder: int
    search: int | None

    @classmethod
    def of(cls, args: RefreshArguments, device_type: str, local_ranks: int) -> IndexThreads:
        """What the arguments come to.

        Args:
            args ([`RefreshArguments`]): Of the run.
            device_type (`str`): Of the training device: "cpu", "cuda".
            local_ranks (`int`): Ranks on this machine.
        """
        if args.index_threads is not None:
            return cls(args.index_threads, args.index_threads, args.index_threads)
        cores = usable_cores()
        if device_type == "cpu":
            return cls(cores, args.builder_threads, None)
        return cls(cores, max(args.builder_threads, cores - local_ranks), max(1, cores // local_ranks))
