"""The pre-training step: embed queries and K = 8 candidates, read them, masked loss, backward.

Beside the old port, padded as published and padded only to the longest of its batch; and beside the bare matrix
products of the tokens that are there. Both sides see the same queries, candidates, masks and weights, and must agree
on loss and gradient before anything is timed. Collation and the optimizer's update are outside on both sides.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness.alternation import Alternation, alternate, timed
from harness.inputs import MAX_LENGTH, SCRATCH, load_passages, load_tokenizer
from harness.peer import Peer
from harness.rows import Row, Settings, timed_row
from harness.step_batch import batch_of
from safetensors.torch import save_file

from realm_hf import RealmForPreTraining
from realm_hf.data.passages.build import NULL_PASSAGE
from rows.matrix_products import bare_products
from rows.small_bert import make_config, save_weights, shape

CANDIDATES = 8
PORT = "old port (transformers 4.57.6), one query at a time"


def measure(settings: Settings) -> Iterator[Row]:
    """Four rows: fp32 and bf16 beside the port, the port without fixed padding, and the bare matrix products."""
    queries = 1 if settings.quick else 4
    torch.manual_seed(0)
    model = RealmForPreTraining(make_config(settings)).train()
    batch = make_batch(settings, queries)
    facts, scale = describe(batch), 1000 / queries
    with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
        for width, name in ((MAX_LENGTH, "padded"), (0, "longest")):
            write_peer_inputs(model, batch, width, folder=Path(work) / name)
        options = {"shape": shape(settings, num_candidates=batch["candidate_ids"].size(1)), "queries": queries}
        with Peer("pretraining_step", Path(work) / "padded", settings.threads, options) as peer:
            agreement = check_agreement(model, batch, peer.step())
            found = alternate(timed(step(model, batch)), peer, settings.rounds, most_rounds=settings.most_rounds)
            yield _row("pre-training step", PORT + ", padded to 288", 9.0, found, scale, f"{facts} {agreement}")
            in_bf16 = timed(step(model, batch, bf16=True))
            found = alternate(in_bf16, peer, min(3, settings.rounds), most_rounds=settings.rounds)
            note = f"autocast on our side; {_bf16_support()}."
            yield _row("pre-training step, bf16", PORT + ", fp32, padded to 288", 13.0, found, scale, note)
        with Peer("pretraining_step", Path(work) / "longest", settings.threads, options) as peer:
            agreement = check_agreement(model, batch, peer.step())
            found = alternate(timed(step(model, batch)), peer, settings.rounds, most_rounds=settings.most_rounds)
            yield _row("pre-training step", PORT + ", padded to its longest", 3.5, found, scale, agreement)
    products, flops = bare_products(model, batch)
    found = alternate(timed(step(model, batch)), timed(products), settings.rounds, most_rounds=settings.most_rounds)
    note = f"The products alone reach {flops / found.peer / 1e9:.0f} GFLOP/s; the ratio is the share of that limit."
    yield _row("pre-training step", "its bare matrix products, unpadded", 0.7, found, scale, note)


def step(model: RealmForPreTraining, batch: dict[str, torch.Tensor], bf16: bool = False) -> Callable[[], Any]:
    """Forward and backward of the whole batch."""

    def run() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss: torch.Tensor = model(**batch).loss
        loss.backward()
        return loss

    return run


def make_batch(settings: Settings, queries: int) -> dict[str, torch.Tensor]:
    """A batch of the settings' corpus, with seven passages for each query."""
    tokenizer = load_tokenizer()
    others = 1 if settings.quick else CANDIDATES - 1
    return batch_of(load_passages(settings, tokenizer), tokenizer, queries, others)


def describe(batch: dict[str, torch.Tensor]) -> str:
    """The batch in a sentence."""
    rows = batch["candidate_mask"].shape
    own = batch["candidate_ids"] != NULL_PASSAGE
    lengths = batch["candidate_attention_mask"].sum(-1)[own].float()
    return (
        f"{rows[0]} queries of {rows[1]} candidates (one the null passage), real candidates of "
        f"{lengths.mean():.0f} tokens on average, {int((batch['mlm_labels'] >= 0).sum())} masked tokens."
    )


def write_peer_inputs(model: RealmForPreTraining, batch: dict[str, torch.Tensor], width: int, folder: Path) -> None:
    """Weights, and each query's own tensors: candidates padded to `width`, or to their longest for 0."""
    folder.mkdir()
    save_weights(model.embedder, folder / "embedder.safetensors")
    save_weights(model.encoder, folder / "encoder.safetensors")
    for number in range(len(batch["query_input_ids"])):
        one = {name: value[number : number + 1] for name, value in batch.items()}
        query_length = int(one["query_attention_mask"].sum())
        candidate_length = width or int(one["candidate_attention_mask"].sum(-1).max())
        # [CLS] x [SEP] body [SEP]: the candidate without [CLS], title and its [SEP]; at least two tokens fewer.
        joint_length = query_length + width - 2 if width else int(one["joint_attention_mask"].sum(-1).max())
        labels = torch.full((1, joint_length), -100)
        mask = torch.zeros(1, joint_length, dtype=torch.long)
        labelled = one["mlm_labels"] != -100
        labels[0, one["mlm_positions"][labelled]] = one["mlm_labels"][labelled]
        mask[0, one["mlm_positions"][labelled]] = 1
        tensors = {
            "input_ids": one["query_input_ids"][:, :query_length],
            "attention_mask": one["query_attention_mask"][:, :query_length],
            "labels": labels,
            "mlm_mask": mask,
        }
        for part, length in (("candidate", candidate_length), ("joint", joint_length)):
            for kind in ("input_ids", "attention_mask", "token_type_ids"):
                tensors[f"{part}_{kind}"] = _to_width(one[f"{part}_{kind}"], length)
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, folder / f"query-{number}.safetensors"
        )


def _to_width(tensor: torch.Tensor, width: int) -> torch.Tensor:
    return F.pad(tensor, (0, max(0, width - tensor.size(-1))))[..., :width]


def check_agreement(model: RealmForPreTraining, batch: dict[str, torch.Tensor], peer: dict[str, Any]) -> str:
    """Compare loss and gradient with the peer's; nothing is timed where they differ.

    Raises:
        RuntimeError: The losses differ by more than 1e-4.
    """
    loss = step(model, batch)().item()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    if abs(loss - peer["loss"]) > 1e-4 or abs(norm / peer["gradient_norm"] - 1) > 1e-3:
        raise RuntimeError(f"Loss and gradient norm are {loss}, {norm}; the peer says {peer}: not the same work.")
    share = abs(norm / peer["gradient_norm"] - 1)
    return f"Losses differ by {abs(loss - peer['loss']):.0e}, gradient norms by {share:.0e} of theirs."


def _bf16_support() -> str:
    if torch.cpu._is_amx_tile_supported():
        return "the processor multiplies bf16 matrices by AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "the processor has AVX512-BF16 but no AMX"
    return "the processor has no bf16 instructions, so every product is converted and nothing can be gained"


def _row(name: str, beside: str, goal: float, found: Alternation, scale: float, note: str) -> Row:
    return timed_row(found, scale, name=name, beside=beside, unit="ms/query", goal=goal, kind="speedup", note=note)
