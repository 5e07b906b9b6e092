"""Retrieving the candidates of coming steps while this one computes.

The main thread asks at step boundaries only, and hands the worker all that its answer depends on: the example
positions, the served generation, the query weights. So what a step trains on does not depend on how fast the worker
is, and a resumed run retrieves the same. (A worker that read the live weights beside the optimizer read torn ones: 27
of 30 embeddings differed between two identical runs.)

An index that all ranks search together is searched by the main thread, when it asks: there the ranks come to each
search in one order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from realm_hf.data.collators import pad_rows
from realm_hf.data.masking import MaskedQuery, Skip, example_rng, mask_example
from realm_hf.data.passages.store import NULL_PASSAGE
from realm_hf.index.base import Collective
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.precision import autocast
from realm_hf.models.transfer import to_device
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.training.data_order import DataOrder

if TYPE_CHECKING:
    from realm_hf.data.sentences.build import SentenceStore
    from realm_hf.data.sentences.recurring import RecurringMasks
    from realm_hf.data.vocabulary import SpecialTokens
    from realm_hf.generations.store import Generation, GenerationInfo
    from realm_hf.models.modeling_realm import RealmEmbedder
    from realm_hf.training.arguments import RealmTrainingArguments


class MaskedExamples:
    """Draws the examples: position in the stream -> a sentence with one of its spans masked, or nothing.

    Args:
        sentences ([`SentenceStore`]): The sentences.
        order ([`DataOrder`]): Their order.
        args ([`RealmTrainingArguments`]): `masking` and `max_masked_tokens` are read.
        max_query_length (`int`): Where sentences are cut, special tokens included.
        special_tokens ([`SpecialTokens`]): Of the tokenizer.
        recurring ([`RecurringMasks`], *optional*): Which spans may be masked; all by default.
    """

    def __init__(
        self,
        sentences: SentenceStore,
        order: DataOrder,
        args: RealmTrainingArguments,
        max_query_length: int,
        special_tokens: SpecialTokens,
        recurring: RecurringMasks | None = None,
    ):
        self.max_query_length = max_query_length
        self.sentences, self.order, self.args, self.special_tokens = sentences, order, args, special_tokens
        self.recurring = recurring

    def __call__(self, positions: np.ndarray) -> list[MaskedQuery]:
        """The examples at `positions` `[n]`; those whose mask does not fit are left out, so there may be fewer."""
        rows, epochs = self.order(positions)
        visits = (self.visit(int(row), int(epoch)) for row, epoch in zip(rows, epochs, strict=True))
        return [masked for masked in visits if not isinstance(masked, Skip)]

    def first(self, count: int) -> list[MaskedQuery]:
        """The first `count` sentences as they are always masked: for evaluation and probes."""
        masked = (self.visit(row, 0) for row in range(len(self.sentences)))
        return list(islice((m for m in masked if not isinstance(m, Skip)), count))

    def visit(self, row: int, epoch: int) -> MaskedQuery | Skip:
        """Sentence `row` as it is masked in `epoch`: the same whoever asks, and whenever."""
        sentence = self.sentences[row]
        kept = slice(None) if self.recurring is None else self.recurring.kept(self.sentences.row_of(row))
        return mask_example(
            sentence.input_ids,
            sentence.spans[kept],
            special_tokens=self.special_tokens,
            rng=example_rng(self.order.seed, epoch, row),
            mode="salient" if self.args.masking == "recurring" else self.args.masking,
            max_masked=self.args.max_masked_tokens,
            max_query_length=self.max_query_length,
        )


def encode_queries(embedder: RealmEmbedder, queries: Sequence[np.ndarray], *, bf16: bool = False) -> np.ndarray:
    """Embed queries for a search: no gradient, no dropout.

    Args:
        embedder ([`RealmEmbedder`]): A tower; left in the mode it was in.
        queries (`Sequence[np.ndarray]`): Token ids of each, special tokens included.
        bf16 (`bool`, *optional*, defaults to `False`): Compute in bfloat16, as the run does; else in the embedder's
            own numbers, or the caller's autocast.

    Returns:
        float32 `[n, D]`.
    """
    if not queries:
        return np.zeros((0, embedder.config.retriever_proj_size), dtype=np.float32)
    input_ids, attention_mask = pad_rows(queries, padding=0)
    facts = RowFacts.of(input_ids, attention_mask)
    sent = to_device({"input_ids": input_ids, "attention_mask": attention_mask}, embedder.device)
    training = embedder.training
    embedder.eval()
    with torch.no_grad(), autocast(embedder.device, bf16):
        embeddings = embedder.encode_tokens(sent["input_ids"], sent["attention_mask"], facts=facts, role="query")
    embedder.train(training)
    return embeddings.float().cpu().numpy()


class LiveIndex:
    """An opened generation, the retriever over it and, for `query_encoder="snapshot"`, the weights it was built from.

    Args:
        generation ([`Generation`]): As opened from the store.
        retriever ([`RealmRetriever`]): Over the same rows.
        encoder ([`RealmEmbedder`], *optional*): Frozen; `None` if queries are encoded by the live tower.
        bf16 (`bool`, *optional*, defaults to `False`): Whether the run encodes in bfloat16.
    """

    def __init__(
        self, generation: Generation, retriever: RealmRetriever, encoder: RealmEmbedder | None, *, bf16: bool = False
    ):
        self.generation, self.retriever, self.encoder, self.bf16 = generation, retriever, encoder, bf16

    @property
    def name(self) -> str:
        """The generation's name."""
        return self.generation.name

    @property
    def info(self) -> GenerationInfo:
        """The generation's manifest."""
        return self.generation.info

    @property
    def is_collective(self) -> bool:
        """Whether all ranks search it together, on their main threads."""
        return isinstance(self.retriever.index, Collective)

    def close(self) -> None:
        """Give the generation back."""
        self.generation.close()

    def retrieve(
        self, examples: Sequence[MaskedQuery], k: int, embeddings: np.ndarray | None = None
    ) -> tuple[np.ndarray, int]:
        """Candidates of each example: int64 `[n, k]`, null passage first, -2 for none; and how many were excluded."""
        if not examples and not self.is_collective:
            return np.zeros((0, k), dtype=np.int64), 0
        if embeddings is None:
            assert self.encoder is not None
            embeddings = encode_queries(self.encoder, [e.input_ids for e in examples], bf16=self.bf16)
        found = self.retriever.retrieve(
            embeddings,
            k,
            # Masked: what searches by words must not see the answer.
            token_ids=[e.input_ids for e in examples],
            exclude=[e.sentence_ids for e in examples],
            null_passage=True,
        )
        return np.asarray(found.rows), int(np.sum(found.excluded))


@dataclass(frozen=True)
class RetrievedStep:
    """Everything a step trains on, as far as it was known before the step.

    Args:
        step (`int`): The optimizer step it is for.
        micro_batches (`list`): For each micro-batch its examples and their
            candidates `[n, K]`.
        generation (`str`): Name of the generation that was searched.
        snapshot_step (`int`): Step of the weights behind it.
        created (`float`): When it was built, Unix time in seconds.
        excluded (`int`): Passages left out because they contain the sentence.
        skipped (`int`): Examples left out because their mask did not fit.
        search_seconds (`float`): Time that encoding and search took.
    """

    step: int
    micro_batches: list[tuple[list[MaskedQuery], np.ndarray]]
    generation: str
    snapshot_step: int
    created: float
    excluded: int
    skipped: int
    search_seconds: float

    def embedded(self) -> np.ndarray:
        """Rows of the passages that go through the tower: those that examples of a micro-batch share once, no null."""
        return np.concatenate([np.unique(rows[rows > NULL_PASSAGE]) for _, rows in self.micro_batches])


class CandidatePrefetcher:
    """A queue of retrieved steps with one worker thread behind it.

    Args:
        examples ([`MaskedExamples`]): Draws the examples.
        reading (`Callable`): Opens the generation that is served; a request holds on to the one of the time when it
            was made.
        embed (`Callable`, *optional*): Encodes queries by the live tower, on the calling thread; `None` to use the
            generation's own encoder.
    """

    def __init__(
        self,
        examples: MaskedExamples,
        reading: Callable[[], AbstractContextManager[LiveIndex]],
        embed: Callable[[list[MaskedQuery]], np.ndarray] | None,
    ):
        self._examples, self._reading, self._embed = examples, reading, embed
        # Its encoder leaves `torch.autocast` in every pass; leaving the outermost one empties the cache of bfloat16
        # weights that all threads share, also for the step under way, whose gradients would be summed otherwise, by
        # chance. Inside a level that never ends, no level of this thread is the outermost.
        self._worker = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="retrieval-ahead", initializer=torch.autocast_increment_nesting
        )
        self._queue: deque[tuple[int, Future[RetrievedStep]]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def request(self, step: int, positions: np.ndarray, k: int) -> None:
        """Begin to retrieve for `step`. Called between steps only, and on every rank.

        Args:
            step (`int`): The optimizer step.
            positions (`np.ndarray` of shape `[accumulation, batch]`, int64): Positions.
            k (`int`): Candidates of an example, the null passage counted.
        """
        reading = ExitStack()
        served = reading.enter_context(self._reading())
        started = time.perf_counter()
        # The live tower embeds here, between two steps: its weights change while the worker runs.
        prepared = None if self._embed is None else self._prepare(positions)
        spent = time.perf_counter() - started

        def work() -> RetrievedStep:
            with reading:
                began = time.perf_counter() - spent
                drawn, embeddings = prepared or self._prepare(positions)
                rows, excluded = served.retrieve([e for micro in drawn for e in micro], k, embeddings)
                return RetrievedStep(
                    step=step,
                    micro_batches=_deal(drawn, rows),
                    generation=served.name,
                    snapshot_step=served.info.snapshot_step,
                    created=served.info.created,
                    excluded=excluded,
                    skipped=positions.size - len(rows),
                    search_seconds=time.perf_counter() - began,
                )

        self._queue.append((step, _done(work()) if served.is_collective else self._worker.submit(work)))

    def _prepare(self, positions: np.ndarray) -> tuple[list[list[MaskedQuery]], np.ndarray | None]:
        """Each micro-batch's examples and, where the live tower encodes queries, their embeddings."""
        drawn = [self._examples(micro) for micro in positions]
        return drawn, None if self._embed is None else self._embed([e for micro in drawn for e in micro])

    def take(self, step: int) -> RetrievedStep:
        """What was retrieved for `step`, the oldest of the queue; waits for it, and raises what the worker raised."""
        asked, future = self._queue.popleft()
        if asked != step:
            raise RuntimeError(f"step {step} was asked for, but the queue begins with {asked}")
        return future.result()

    def state(self) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        """What a checkpoint keeps of the queue: the retrieved rows. Masks are drawn again from their positions."""
        steps = [future.result() for _, future in self._queue]
        facts = [
            {
                "step": s.step,
                "name": s.generation,
                "snapshot_step": s.snapshot_step,
                "created": s.created,
                "excluded": s.excluded,
            }
            for s in steps
        ]
        rows = {
            f"rows.{s.step}": torch.from_numpy(np.concatenate([rows for _, rows in s.micro_batches])) for s in steps
        }
        return facts, rows

    def restore(self, facts: dict[str, Any], positions: np.ndarray, rows: np.ndarray) -> None:
        """Put a step back that [`state`] had given, as if it had just been retrieved."""
        drawn = [self._examples(micro) for micro in positions]
        step = RetrievedStep(
            step=facts["step"],
            micro_batches=_deal(drawn, rows),
            generation=facts["name"],
            snapshot_step=facts["snapshot_step"],
            created=facts["created"],
            excluded=facts["excluded"],
            skipped=positions.size - len(rows),
            search_seconds=0.0,
        )
        self._queue.append((step.step, _done(step)))

    def close(self) -> None:
        """Drop what is pending and end the worker."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._queue.clear()


def _done(step: RetrievedStep) -> Future[RetrievedStep]:
    future: Future[RetrievedStep] = Future()
    future.set_result(step)
    return future


def _deal(drawn: list[list[MaskedQuery]], rows: np.ndarray) -> list[tuple[list[MaskedQuery], np.ndarray]]:
    """Share the rows of a whole step out to its micro-batches."""
    ends = np.cumsum([len(micro) for micro in drawn])
    return list(zip(drawn, np.split(rows, ends[:-1]), strict=True))
