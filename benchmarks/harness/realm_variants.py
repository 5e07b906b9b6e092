"""REALM with one thing taken away, as arms of a comparison need it; none of it is of use in a run of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from realm_hf import RealmForPreTraining
from realm_hf.index.base import ABSENT
from realm_hf.models.losses import marginal_log_likelihood
from realm_hf.training.pretraining import RealmTrainer

if TYPE_CHECKING:
    from realm_hf.data.masking import MaskedQuery
    from realm_hf.index.base import Exclusion, Found
    from realm_hf.knowledge.knowledge import Knowledge
    from realm_hf.models.modeling_outputs import RealmForPreTrainingOutput
    from realm_hf.retriever.candidates import CandidateSource, Queries


class ShuffledPosterior(RealmForPreTraining):
    """REALM whose retriever is not told which candidate helped.

    The gradient of -log p(y|x) by the score of candidate z is p(z|x) - p(z|x, y): the retriever moves towards the
    posterior. Here the posterior is dealt out anew among the candidates that are passages, by chance in each step.
    Everything else is as it was: the candidates, the null passage's share, and what the encoder learns from. What is
    gained all the same comes from seeing these candidates, not from knowing which of them is useful.
    """

    def forward(self, **batch: Any) -> RealmForPreTrainingOutput:
        """As [`RealmForPreTraining.forward`], with another loss while it is trained; evaluated as usual."""
        output = super().forward(**batch)
        if self.training:
            output.loss = shuffled_loss(output, batch["mlm_labels"] != -100, batch["num_items"])
        return output


def shuffled_loss(output: RealmForPreTrainingOutput, label_mask: torch.Tensor, num_items: float) -> torch.Tensor:
    """The encoder's part of the loss as it is, and the cross entropy of p(z|x) to a shuffled posterior.

    Args:
        output: Of one forward pass; the null passage is candidate 0.
        label_mask: Where there is a label, `(B, M)`.
        num_items: What the sum is divided by.
    """
    prior, gold = output.candidate_log_probs, output.gold_log_probs
    assert prior is not None and gold is not None
    present = ~prior.detach().isneginf()
    # [B, K]
    joint = prior.detach() + (gold.detach() * label_mask.unsqueeze(1)).sum(-1)
    posterior = dealt_anew(joint.softmax(-1), present) * label_mask.any(-1, keepdim=True)
    reading = marginal_log_likelihood(prior.detach(), gold, label_mask, "span").sum()
    retrieval = (posterior * prior.masked_fill(~present, 0.0)).sum()
    return -(reading + retrieval) / num_items


def dealt_anew(posterior: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """The values of each row in another order; that of candidate 0 and of absent ones stay where they are.

    Args:
        posterior: `(B, K)`.
        present: Where there is a candidate, bool `(B, K)`.
    """
    dealt = posterior.clone()
    for row, of_row in enumerate(present):
        places = of_row[1:].nonzero().flatten() + 1
        dealt[row, places] = posterior[row, places[torch.randperm(len(places)).to(places.device)]]
    return dealt


class WithoutNull(RealmTrainer):
    """Pre-training without the null passage among the candidates; evaluated with it, for utility is over it."""

    def _collate(self, queries: list[MaskedQuery], rows: np.ndarray, *, with_unread: bool = False) -> dict[str, Any]:
        if self.model.training:
            rows = rows.copy()
            rows[:, 0] = ABSENT
        # Without it nothing says what an unread candidate is worth: there is none then.
        return super()._collate(queries, rows, with_unread=with_unread)


class WithoutExclusion:
    """A source that does not leave out the passages that hold the sentence itself.

    Args:
        source: Finds the candidates.
    """

    def __init__(self, source: CandidateSource):
        self.source = source

    def candidates(self, knowledge: Knowledge, queries: Queries, k: int, *, exclude: Exclusion) -> Found:
        """As `CandidateSource.candidates`; equal texts are left out as usual."""
        return self.source.candidates(knowledge, queries, k, exclude=_OnlyCopies(exclude))


class _OnlyCopies:
    """An exclusion of repetitions alone."""

    def __init__(self, exclude: Exclusion):
        self.over_retrieve, self.groups = exclude.over_retrieve, exclude.groups
        self.filtered = np.zeros_like(exclude.filtered)

    def unwanted(self, query: int, rows: np.ndarray) -> np.ndarray:  # noqa: ARG002 - the protocol's
        """None of the rows."""
        return np.zeros(len(rows), bool)
