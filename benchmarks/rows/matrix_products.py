"""The matrix products of a pre-training step and nothing else: the time that no arrangement of them can go below.

Every product that the step needs is there, forward and backward, for the tokens that are there: the layers' linear
maps over all of them at once, attention sequence by sequence, the last layer only where its output is read, the
prediction head at the masked positions. Operands hold random numbers and are reused.
"""

from collections.abc import Callable

import torch

from realm_hf import RealmForPreTraining


def bare_products(model: RealmForPreTraining, batch: dict[str, torch.Tensor]) -> tuple[Callable[[], None], float]:
    """A function that runs all products of the step, and their number of floating-point operations."""
    config = model.config
    candidates = torch.unique(batch["candidate_ids"], return_inverse=True)[1].flatten()
    first = torch.zeros(int(candidates.max()) + 1, dtype=torch.long).scatter(
        0, candidates, torch.arange(len(candidates))
    )
    lengths = batch["candidate_attention_mask"].sum(-1).flatten()[first]
    labelled = (batch["mlm_labels"] != -100).sum(-1)
    joint = batch["joint_attention_mask"].sum(-1)
    decoded = int(labelled.sum()) * joint.size(1)
    hidden, inner = config.hidden_size, config.intermediate_size
    plans: list[tuple[int, int, int]] = []
    sequences: list[tuple[int, int]] = []
    for tower, read in (
        (lengths.tolist(), [1] * len(lengths)),
        (batch["query_attention_mask"].sum(-1).tolist(), [1] * len(labelled)),
        (joint.flatten().tolist(), labelled.repeat_interleave(joint.size(1)).tolist()),
    ):
        tokens, kept = sum(tower), sum(read)
        for layer in range(config.num_hidden_layers):
            rows = kept if layer == config.num_hidden_layers - 1 else tokens
            plans += [(rows, hidden, hidden), *[(tokens, hidden, hidden)] * 2, (rows, hidden, hidden)]
            plans += [(rows, hidden, inner), (rows, inner, hidden)]
            last = layer == config.num_hidden_layers - 1
            sequences += [(asked if last else length, length) for length, asked in zip(tower, read, strict=True)]
    embedded = len(lengths) + len(labelled)
    plans += [(embedded, hidden, hidden), (embedded, hidden, config.retriever_proj_size)]
    plans += [(decoded, hidden, hidden), (decoded, hidden, config.vocab_size)]
    products = [product for plan in plans for product in _linear(*plan)]
    attention = [part for pair in sequences for part in _attention(*pair, config.num_attention_heads, hidden)]
    flops = sum(2.0 * a.size(0) * a.size(1) * b.size(1) for a, b, _ in products)
    flops += sum(2.0 * a.numel() * b.size(-1) for a, b, _ in attention)

    def run() -> None:
        for a, b, out in products:
            torch.mm(a, b, out=out)
        for a, b, out in attention:
            torch.bmm(a, b, out=out)

    return run, flops


_POOL: dict[int, torch.Tensor] = {}


def _operand(*shape: int, slot: int) -> torch.Tensor:
    """A matrix in one of three pools, so that operands of large products need not all exist at once."""
    size = torch.Size(shape).numel()
    if slot not in _POOL or _POOL[slot].numel() < size:
        _POOL[slot] = torch.randn(size)
    return _POOL[slot][:size].view(shape)


def _linear(rows: int, before: int, after: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Forward y = x W; dx = dy W^T; dW = x^T dy."""
    return [
        (_operand(rows, before, slot=0), _operand(after, before, slot=1).T, _operand(rows, after, slot=2)),
        (_operand(rows, after, slot=0), _operand(after, before, slot=1), _operand(rows, before, slot=2)),
        (_operand(rows, after, slot=0).T, _operand(rows, before, slot=1), _operand(after, before, slot=2)),
    ]


def _attention(
    queries: int, keys: int, heads: int, hidden: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Forward S = Q K^T, C = P V; dP = dC V^T, dV = P^T dC; dQ = dS K, dK = dS^T Q."""
    size = hidden // heads
    wide = _operand(heads, queries, size, slot=0), _operand(heads, keys, size, slot=1)
    square = _operand(heads, queries, keys, slot=0)
    to_square = (wide[0], wide[1].transpose(1, 2), _operand(heads, queries, keys, slot=2))
    to_queries = (square, wide[1], _operand(heads, queries, size, slot=2))
    to_keys = (square.transpose(1, 2), _operand(heads, queries, size, slot=1), _operand(heads, keys, size, slot=2))
    return [to_square, to_square, to_queries, to_queries, to_keys, to_keys]
