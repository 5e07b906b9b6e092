"""Encoding passages for the index: beside the old port, and beside sentence-transformers with the same weights."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness.alternation import Alternation, alternate, timed
from harness.inputs import MAX_LENGTH, MINILM, SCRATCH, load_passages, load_tokenizer
from harness.peer import Peer
from harness.rows import Row, Settings, timed_row
from safetensors.torch import save_file

from realm_hf import RealmEmbedder, RealmTokenizer
from realm_hf.data.passages.build import PassageStore
from realm_hf.data.passages.in_memory import pack_passages
from realm_hf.generations.embedding import embed_passages
from rows.small_bert import make_config, save_weights, shape

BATCH = 32


def measure(settings: Settings) -> Iterator[Row]:
    """Two rows: from wordpieces beside the port, from texts beside sentence-transformers."""
    tokenizer = load_tokenizer()
    passages = load_passages(settings, tokenizer)
    yield beside_port(settings, passages)
    yield beside_sentence_transformers(settings, passages, tokenizer)


def beside_port(settings: Settings, passages: PassageStore) -> Row:
    """Both from wordpieces at hand; the port in batches of 32, padded to 288 as published."""
    rows = _sample(passages, 32 if settings.quick else 256)
    torch.manual_seed(0)
    embedder = RealmEmbedder(make_config(settings)).eval()
    with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
        folder = Path(work)
        save_weights(embedder, folder / "embedder.safetensors")
        arrays = passages.pad_candidates(rows, MAX_LENGTH)
        wide = {name: np.pad(a, ((0, 0), (0, MAX_LENGTH - a.shape[1]))) for name, a in arrays.items()}
        save_file({name: torch.from_numpy(array) for name, array in wide.items()}, folder / "passages.safetensors")
        with Peer("encoding", folder, settings.threads, {"shape": shape(settings), "batch": BATCH}) as peer:
            ours = torch.from_numpy(embed_passages(embedder, passages, rows=rows))
            difference = _difference(ours, peer)
            found = alternate(
                timed(lambda: embed_passages(embedder, passages, rows=rows)),
                peer,
                settings.rounds,
                most_rounds=settings.most_rounds,
            )
    note = f"{_describe(passages, rows)}; embeddings differ by {difference:.0e} at most."
    beside = f"old port (transformers 4.57.6), batches of {BATCH}, padded to {MAX_LENGTH}"
    return _row("encoding passages, 4 x 256", beside, 6.0, found, len(rows), note)


def beside_sentence_transformers(settings: Settings, passages: PassageStore, tokenizer: RealmTokenizer) -> Row:
    """Both from texts, tokenization included, MiniLM's six layers of 384 on both sides."""
    rows = _sample(passages, 16 if settings.quick else 96)
    texts = [passages.rows[int(row)] for row in rows]
    titles, bodies = ([text[column] for text in texts] for column in ("title", "text"))
    embedder = RealmEmbedder.from_bert(MINILM, pooler="identity").eval()

    def ours() -> np.ndarray:
        # Tokenized as the retriever does when passages are added to it.
        return embed_passages(embedder, pack_passages(bodies, titles, tokenizer, passages.max_length))

    with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
        folder = Path(work)
        options = {"model": str(MINILM), "batch": BATCH, "texts": list(zip(titles, bodies, strict=True))}
        options["max_length"] = MAX_LENGTH
        with Peer("sentence_encoding", folder, settings.threads, options) as peer:
            difference = _difference(_mean_pooled(embedder, passages, rows), peer)
            found = alternate(timed(ours), peer, settings.rounds, most_rounds=settings.most_rounds)
    note = (
        f"{_describe(passages, rows)}, all-MiniLM-L6-v2 on both sides, from texts. The tower is the same (mean-pooled "
        f"states differ by {difference:.0e}); what is read of it is not: ours projects [CLS] to 128, so that the last "
        "layer computes one row of each passage, theirs averages all rows of the last layer."
    )
    beside = f"sentence-transformers, same weights, batches of {BATCH}"
    return _row("encoding passages, MiniLM 6 x 384", beside, 1.3, found, len(rows), note)


def _mean_pooled(embedder: RealmEmbedder, passages: PassageStore, rows: np.ndarray) -> torch.Tensor:
    """What sentence-transformers makes of our tower: the mean over all tokens, normalised."""
    inputs = {name: torch.from_numpy(array) for name, array in passages.pad_candidates(rows).items()}
    mask = inputs["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = embedder.realm(**inputs).last_hidden_state
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def _difference(ours: torch.Tensor, peer: Peer) -> float:
    """Largest difference of the embeddings.

    Raises:
        RuntimeError: It is above 1e-4: the sides do not do the same work.
    """
    theirs = torch.tensor(peer.step()["first_columns"])
    difference = float((ours[:, : theirs.size(1)] - theirs).abs().max())
    if difference > 1e-4:
        raise RuntimeError(f"The peer's embeddings differ by {difference}: not the same work.")
    return difference


def _sample(passages: PassageStore, count: int) -> np.ndarray:
    return np.random.default_rng(0).choice(len(passages), count, replace=False)


def _describe(passages: PassageStore, rows: np.ndarray) -> str:
    return f"{len(rows)} passages of {passages.lengths[rows].mean():.0f} tokens on average"


def _row(name: str, beside: str, goal: float, found: Alternation, passages: int, note: str) -> Row:
    unit = "ms/passage"
    return timed_row(found, 1000 / passages, name=name, beside=beside, unit=unit, goal=goal, kind="speedup", note=note)
