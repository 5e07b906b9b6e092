"""Held-out figures of masked sentences (loss, utility, null mass), and examples to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from realm_hf.data.passages.store import NULL_PASSAGE
from realm_hf.models.host_facts import PreTrainingFacts
from realm_hf.models.transfer import to_device

if TYPE_CHECKING:
    from realm_hf.data.collators import PreTrainingCollator
    from realm_hf.data.masking import MaskedQuery
    from realm_hf.data.passages.build import PassageStore
    from realm_hf.models.modeling_outputs import RealmForPreTrainingOutput
    from realm_hf.models.modeling_realm import RealmForPreTraining

SUMS = ("loss", "retrieval_utility", "null_mass", "entropy", "examples", "tokens")


def batch_sums(output: RealmForPreTrainingOutput, labels: torch.Tensor) -> torch.Tensor:
    """Sums over the examples of one forward pass, in the order of [`SUMS`]; `[6]`, on the device, where they are left
    until those of a whole step are read at once.

    Args:
        output ([`RealmForPreTrainingOutput`]): Of [`RealmForPreTraining`]; its `loss` is taken as it stands, already
            normalised or not.
        labels (`torch.Tensor`): `mlm_labels`; examples without any are left out.
    """
    assert output.candidate_log_probs is not None and output.loss is not None
    assert output.marginal_utility is not None and output.null_mass is not None
    labelled = labels != -100
    counted = labelled.any(-1)
    entropy = torch.special.entr(output.candidate_log_probs.detach().exp()).sum(-1)
    by_example = torch.stack([output.marginal_utility, output.null_mass, entropy]).masked_fill(~counted, 0.0)
    sums = [output.loss.detach(), *by_example.sum(-1), counted.sum(), labelled.sum()]
    return torch.stack([value.to(by_example.dtype) for value in sums])


def evaluation_sums(model: RealmForPreTraining, batches: Iterable[dict[str, Any]]) -> list[float]:
    """[`SUMS`] over batches, without gradient or dropout; 0 where there is none.

    Args:
        model ([`RealmForPreTraining`]): Left in evaluation mode: a step sets its own.
        batches (`Iterable`): The model's arguments, `mlm_labels` among them.
    """
    figures = [torch.zeros(len(SUMS), device=model.device)]
    model.eval()
    for batch in batches:
        with torch.no_grad():
            figures.append(batch_sums(model(**batch, num_items=1), batch["mlm_labels"]))
    return torch.stack(figures).sum(0).tolist()


def means(sums: Sequence[float], prefix: str = "") -> dict[str, float]:
    """Averages over examples of the summed figures; the loss is left as it is."""
    named = dict(zip(SUMS, sums, strict=True))
    examples = max(1.0, named["examples"])
    averaged = {name: named[name] / examples for name in ("retrieval_utility", "null_mass", "entropy")}
    return {f"{prefix}{name}": value for name, value in {"loss": named["loss"], **averaged}.items()}


def explain(
    model: RealmForPreTraining,
    collator: PreTrainingCollator,
    passages: PassageStore,
    queries: Sequence[MaskedQuery],
    rows: np.ndarray,
) -> list[dict[str, Any]]:
    """Masked sentences with what was retrieved for them and what the model fills in, for people and for the report.

    Args:
        model ([`RealmForPreTraining`]): In any mode; left in it. It computes in the caller's autocast, which
            FlashAttention needs.
        collator ([`PreTrainingCollator`]): Makes its inputs.
        passages ([`PassageStore`]): The corpus.
        queries (`Sequence[MaskedQuery]`): Masked sentences.
        rows (`np.ndarray` of shape `[n, K]`): Their candidates.

    Returns:
        For each `text` (with [MASK]), `answer`, `filling` (the most likely token at each position, marginalised over
        the candidates) and `candidates`: `row`, `title`, `text`, `probability`, `utility`.
    """
    training = model.training
    model.eval()
    collated = collator(list(zip(queries, rows, strict=True)))
    batch = to_device(collated, model.device)
    with torch.no_grad():
        output = model(**batch, facts=PreTrainingFacts.of(**collated))
        joint = {name.removeprefix("joint_"): t for name, t in batch.items() if name.startswith("joint_")}
        logits = model.encoder(**joint, mlm_positions=batch["mlm_positions"]).logits
    model.train(training)
    count, k = rows.shape
    # [B, K, M, V] and [B, K] -> [B, M, V]: log of the sum over z of p(y|z, x) p(z|x).
    log_probs = logits.float().log_softmax(-1).view(count, k, -1, logits.shape[-1])
    filled = torch.logsumexp(log_probs + output.candidate_log_probs[..., None, None], dim=1).argmax(-1).cpu().numpy()
    probabilities = output.candidate_log_probs.exp().cpu().numpy()
    utilities = output.retrieval_utility.cpu().numpy()
    decode = collator.tokenizer.decode
    examples = []
    for i, query in enumerate(queries):
        candidates = [
            {
                "row": int(row),
                "title": "" if row == NULL_PASSAGE else passages.title(int(row)),
                "text": "" if row == NULL_PASSAGE else passages.text(int(row)),
                "probability": float(probabilities[i, j]),
                "utility": float(utilities[i, j]),
            }
            for j, row in enumerate(rows[i])
            if row >= NULL_PASSAGE
        ]
        examples.append(
            {
                "text": decode(query.input_ids[1:-1]),
                "answer": decode(query.labels),
                "filling": decode(filled[i, : len(query.labels)]),
                "candidates": candidates,
            }
        )
    return examples
