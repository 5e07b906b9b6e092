"""Zero-shot retrieval while training (table 2's metric): how often the served index finds what answers a question.

The questions are embedded by the query tower as it is at that step; the index is the one that training searches, as
old as it then is. A warm start has none: there the passages are embedded anew each time. A question is judged by its
gold passages where it names some, else by its answers, as in [`realm_hf.data.questions.matching`]: a passage counts
that holds one of them.

How many passages hold an answer is not known without a look at all of them. So for questions judged by answers the
first passage that holds one counts alone, and nDCG is 1 / log2(1 + its place).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from realm_hf.data.questions.gold import find_gold_rows
from realm_hf.data.questions.matching import contains_answer, contains_regex
from realm_hf.data.reader_batch import encode_questions
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.metrics.ranking import ndcg_at, recall_at
from realm_hf.models.cut_lengths import MAX_QUERY_LENGTH
from realm_hf.retriever.selection import SearchStats
from realm_hf.runs.records import EVALUATION_PREFIX
from realm_hf.training.prefetch import encode_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from realm_hf.data.passages.store import PassageStore
    from realm_hf.data.questions.load import OpenQAExample
    from realm_hf.models.modeling_realm import RealmEmbedder
    from realm_hf.retriever.retriever import RealmRetriever

logger = logging.getLogger(__name__)

RECALL_AT = (1, 5, 20)
NDCG_AT = 10
#: Of the sums over questions.
FIGURES = (*(f"recall_at_{k}" for k in RECALL_AT), f"ndcg_at_{NDCG_AT}")


@dataclass(frozen=True)
class Judged:
    """
    What was found for Q questions.

    Args:
        hits (`np.ndarray`, bool `[Q, depth]`): Whether the passage at each place is right.
        relevant (`np.ndarray`, int64 `[Q]`): How many are counted as right.
    """

    hits: np.ndarray
    relevant: np.ndarray

    def recall(self, ks: Sequence[int]) -> dict[int, float]:
        """The share of the questions with a right passage among the first k, from 0 to 1; see [`recall_at`]."""
        return recall_at(self.hits, ks)

    def ranks(self) -> np.ndarray:
        """The place of the first right passage of each question, from 0; int64 `[Q]`, `depth` where there is none."""
        return np.where(self.hits.any(1), self.hits.argmax(1), self.hits.shape[1])

    def ndcg(self, k: int) -> np.ndarray:
        """The nDCG of the first k places of each question, float64 `[Q]`, from 0 to 1; see [`ndcg_at`]."""
        return ndcg_at(self.hits, self.relevant, k)


class RetrievalQuestions:
    """
    Questions with what answers them: tokenized and looked up once, judged as often as one likes.

    Args:
        examples (sequence of [`OpenQAExample`]): The questions, each with `gold` passages or answers.
        passages ([`PassageStore`]): What is searched.
        tokenizer (`PreTrainedTokenizerBase`): The one that made the passages.
        max_length (`int`, *optional*, defaults to 64): A longer question is cut, special tokens included.
        gold_rows (sequence of `int` or of collections of `int`, *optional*): The rows that are right for each
            question, where they are known: neither `gold` nor answers are looked at then.

    Raises:
        ValueError: A question has neither gold passages nor answers, or names a document that is not there; or
            `gold_rows` has not one entry for each question.
    """

    def __init__(
        self,
        examples: Sequence[OpenQAExample],
        passages: PassageStore,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = MAX_QUERY_LENGTH,
        *,
        gold_rows: Sequence[int | Collection[int]] | None = None,
    ):
        self.examples, self.passages = list(examples), passages
        if gold_rows is not None and len(gold_rows) != len(self):
            raise ValueError(f"{len(self)} questions and {len(gold_rows)} gold rows: give one for each.")
        for example in self.examples:
            if gold_rows is None and not example.gold and not example.answers:
                raise ValueError(
                    f"The question {example.question!r} has neither a gold passage nor an answer: nothing that is "
                    "retrieved could be right. Leave it out."
                )
        special = SpecialTokens.from_tokenizer(tokenizer)
        self.ids = encode_questions([one.question for one in self.examples], tokenizer, special, max_length)
        rows = self._look_up(tokenizer) if gold_rows is None else [_as_rows(each) for each in gold_rows]
        # None: it is judged by its answers.
        self._gold = [None if each is None else np.unique(passages.duplicate_groups[each]) for each in rows]
        # Of a question that is judged by its answers: what was found before is much the same.
        self._holds: list[dict[int, bool]] = [{} for _ in self.examples]
        self._timed_out: set[int] = set()

    def __len__(self) -> int:
        return len(self.examples)

    def _look_up(self, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray | None]:
        """The rows of each question's gold passages; `None` where it names none."""
        if not any(one.gold for one in self.examples):  # the corpus need not be looked at
            return [None] * len(self)
        found = find_gold_rows(self.examples, self.passages, tokenizer)
        rows = [each if one.gold else None for one, each in zip(self.examples, found, strict=True)]
        lost = sum(each is not None and not len(each) for each in rows)
        if lost:
            logger.warning(
                "The gold passages of %d of %d questions for the retrieval are not in the corpus: they count as not "
                "found.",
                lost,
                len(self.examples),
            )
        return rows

    def judge(self, numbers: Sequence[int], rows: np.ndarray) -> Judged:
        """
        Which of the passages that were found are right.

        Args:
            numbers (sequence of Q `int`): Which questions.
            rows (`np.ndarray` of shape `[Q, depth]`): The passages found for each, best first; negative for none.
        """
        hits, relevant = np.zeros(rows.shape, bool), np.ones(len(rows), np.int64)
        for place, number in enumerate(numbers):
            gold = self._gold[number]
            if gold is not None:
                groups = np.where(rows[place] >= 0, self.passages.duplicate_groups[np.maximum(rows[place], 0)], -1)
                first = np.zeros(len(groups), bool)
                first[np.unique(groups, return_index=True)[1]] = True
                hits[place] = first & np.isin(groups, gold)
                relevant[place] = len(gold)
            else:
                held = (
                    at for at, row in enumerate(rows[place].tolist()) if row >= 0 and self._holds_answer(number, row)
                )
                at = next(held, None)
                if at is not None:
                    hits[place, at] = True
        return Judged(hits, relevant)

    def _holds_answer(self, number: int, row: int) -> bool:
        known, example = self._holds[number], self.examples[number]
        if row not in known and number not in self._timed_out:
            rule = contains_regex if example.regex else contains_answer
            try:
                known[row] = rule(self.passages.text(row), example.answers)
            except TimeoutError as error:
                self._timed_out.add(number)
                logger.warning("The question %r counts as not found: %s", example.question, error)
        return number not in self._timed_out and known[row]

    def search(
        self,
        embedder: RealmEmbedder,
        retriever: RealmRetriever,
        depth: int,
        *,
        numbers: Sequence[int] | None = None,
        bf16: bool = False,
        batch_size: int = 64,
    ) -> np.ndarray:
        """
        What a retriever finds.

        Args:
            embedder ([`RealmEmbedder`]): The query tower; left in its mode.
            retriever ([`RealmRetriever`]): Over the passages; its candidate source is used if it has one.
            depth (`int`): Passages of each question.
            numbers (sequence of Q `int`, *optional*): Which questions; all by default.
            bf16 (`bool`, *optional*, defaults to `False`): Embed in bfloat16.
            batch_size (`int`, *optional*, defaults to 64): Questions embedded and searched at once.

        Returns:
            `np.ndarray`: int64 `[Q, depth]`, rows of passages, best first; negative for none.
        """
        chosen = range(len(self)) if numbers is None else numbers
        found = [np.zeros((0, depth), np.int64)]
        for start in range(0, len(chosen), batch_size):
            ids = [self.ids[number] for number in chosen[start : start + batch_size]]
            queries = encode_queries(embedder, ids, bf16=bf16)
            found.append(np.asarray(retriever.retrieve(queries, depth, token_ids=ids, null_passage=False).rows))
        return np.concatenate(found)

    def ranks(self, embedder: RealmEmbedder, retriever: RealmRetriever, depth: int = 20) -> np.ndarray:
        """
        The place, from 0, at which each question's first right passage is found; int64 `[Q]`, `depth` where it is not
        among the first `depth`. The arguments are those of [`search`].
        """
        return self.judge(range(len(self)), self.search(embedder, retriever, depth)).ranks()

    def averages(self, sums: Sequence[float]) -> dict[str, float]:
        """What [`sums`] came to over all questions, as means from 0 to 1 with the names of an evaluation."""
        return {f"{EVALUATION_PREFIX}{name}": value / len(self) for name, value in zip(FIGURES, sums, strict=True)}

    def sums(
        self,
        embedder: RealmEmbedder,
        retriever: RealmRetriever,
        *,
        numbers: Sequence[int],
        bf16: bool = False,
    ) -> list[float]:
        """
        [`FIGURES`] of some questions, each summed over them.

        Args:
            embedder ([`RealmEmbedder`]): The query tower; left in its mode.
            retriever ([`RealmRetriever`]): Over the passages. Its index is searched, whatever its candidate source.
            numbers (sequence of `int`): Which questions.
            bf16 (`bool`, *optional*, defaults to `False`): Embed in bfloat16.
        """
        if not len(numbers):  # a rank may have no question
            return [0.0] * len(FIGURES)
        searched = retriever.snapshot()
        searched.candidate_source, searched.search_stats = None, SearchStats()
        found = self.search(embedder, searched, max(*RECALL_AT, NDCG_AT), numbers=numbers, bf16=bf16)
        judged = self.judge(numbers, found)
        recall = judged.recall(RECALL_AT)
        return [*(recall[k] * len(numbers) for k in RECALL_AT), float(judged.ndcg(NDCG_AT).sum())]


def _as_rows(gold: int | Collection[int]) -> np.ndarray:
    return np.array(list(gold) if isinstance(gold, Collection) else [gold], np.int64)
