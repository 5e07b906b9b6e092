"""How many candidates each step of pre-training reads, and out of how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from realm_hf.training.arguments import RealmTrainingArguments


@dataclass(frozen=True)
class StepPlan:
    """
    What the arguments say of a step's candidates.

    Args:
        args ([`RealmTrainingArguments`]): The arguments.
        world_size (`int`): Processes.
        sentences (`int`): Sentences to train on.
    """

    args: RealmTrainingArguments
    world_size: int
    sentences: int

    def candidates(self, step: int) -> int:
        """K of `step`: while the towers are frozen the encoder may read fewer."""
        args = self.args
        resting = step <= args.freeze_retriever_steps
        return args.reading_candidates if resting and args.reading_candidates else args.num_candidates

    def retrieved(self, candidates: int) -> int:
        """How many are retrieved where so many are read."""
        return self.args.rerank_depth or candidates

    @property
    def layout(self) -> list[Any]:
        """What candidates that were retrieved ahead depend on, beside seed, cursor and generation."""
        args = self.args
        batch = [args.per_device_train_batch_size, args.gradient_accumulation_steps, self.world_size]
        masks = [args.masking, args.max_masked_tokens, args.max_query_length, self.sentences]
        # What is off by default is named only where it is on: older checkpoints know nothing of it.
        optional = [value for value in (args.rerank_depth, args.candidate_mix) if value is not None]
        return [*batch, args.num_candidates, args.reading_candidates, *masks, *optional]
