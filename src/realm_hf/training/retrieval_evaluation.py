"""Zero-shot retrieval while training (table 2's metric): how often the served index finds what answers a question.

The questions are embedded by the query tower as it is at that step; the index is the one that training searches, as
old as it then is. A question is judged by its gold passages where it names some, else by its answers, as in
[`realm_hf.data.questions.matching`]: a passage counts that holds one of them.

How many passages hold an answer is not known without a look at all of them. So for questions judged by answers the
first passage that holds one counts alone, and nDCG is 1 / log2(1 + its place).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from realm_hf.data.questions.gold import find_gold_rows
from realm_hf.data.questions.matching import contains_answer, contains_regex
from realm_hf.data.reader_batch import encode_questions
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.metrics.ranking import ndcg_at, recall_at
from realm_hf.retriever.selection import SearchStats
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
        max_length (`int`): A longer question is cut, special tokens included.

    Raises:
        ValueError: A question has neither gold passages nor answers, or names a document that is not there.
    """

    def __init__(
        self,
        examples: Sequence[OpenQAExample],
        passages: PassageStore,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ):
        self.examples, self.passages = list(examples), passages
        for example in self.examples:
            if not example.gold and not example.answers:
                raise ValueError(
                    f"The question {example.question!r} has neither a gold passage nor an answer: nothing that is "
                    "retrieved could be right. Leave it out."
                )
        special = SpecialTokens.from_tokenizer(tokenizer)
        self.ids = encode_questions([one.question for one in self.examples], tokenizer, special, max_length)
        named = any(one.gold for one in self.examples)  # else the corpus need not be looked at
        rows = find_gold_rows(self.examples, passages, tokenizer) if named else [np.zeros(0, np.int64)] * len(self)
        self._gold = [np.unique(passages.duplicate_groups[each]) for each in rows]
        # Of a question that is judged by its answers: what was found before is much the same.
        self._holds: list[dict[int, bool]] = [{} for _ in self.examples]
        self._timed_out: set[int] = set()
        lost = sum(bool(one.gold) and not len(each) for one, each in zip(self.examples, rows, strict=True))
        if lost:
            logger.warning(
                "The gold passages of %d of %d questions for the retrieval are not in the corpus: they count as not "
                "found.",
                lost,
                len(self.examples),
            )

    def __len__(self) -> int:
        return len(self.examples)

    def judge(self, numbers: Sequence[int], rows: np.ndarray) -> Judged:
        """
        Which of the passages that were found are right.

        Args:
            numbers (sequence of Q `int`): Which questions.
            rows (`np.ndarray` of shape `[Q, depth]`): The passages found for each, best first; negative for none.
        """
        hits, relevant = np.zeros(rows.shape, bool), np.ones(len(rows), np.int64)
        for place, number in enumerate(numbers):
            if self.examples[number].gold:
                groups = np.where(rows[place] >= 0, self.passages.duplicate_groups[np.maximum(rows[place], 0)], -1)
                first = np.zeros(len(groups), bool)
                first[np.unique(groups, return_index=True)[1]] = True
                hits[place] = first & np.isin(groups, self._gold[number])
                relevant[place] = len(self._gold[number])
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

    def sums(
        self,
        embedder: RealmEmbedder,
        retriever: RealmRetriever,
        *,
        numbers: Sequence[int],
        bf16: bool = False,
        batch_size: int = 64,
    ) -> list[float]:
        """
        [`FIGURES`] of some questions, each summed over them.

        Args:
            embedder ([`RealmEmbedder`]): The query tower; left in its mode.
            retriever ([`RealmRetriever`]): Over the passages. Its index is searched, whatever its candidate source.
            numbers (sequence of `int`): Which questions.
            bf16 (`bool`, *optional*, defaults to `False`): Embed in bfloat16.
            batch_size (`int`, *optional*, defaults to 64): Questions embedded at once. They are searched for in one
                search, which all ranks make together where they hold the index among them.
        """
        searched = retriever.snapshot()
        searched.candidate_source, searched.search_stats = None, SearchStats()
        depth = max(*RECALL_AT, NDCG_AT)
        ids = [self.ids[number] for number in numbers]
        batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)] or [[]]
        embedded = np.concatenate([encode_queries(embedder, batch, bf16=bf16) for batch in batches])
        found = searched.retrieve(embedded, depth, null_passage=False)
        if not len(numbers):  # a rank may have no question
            return [0.0] * len(FIGURES)
        judged = self.judge(numbers, np.asarray(found.rows))
        recall = judged.recall(RECALL_AT)
        return [float(sum_) for sum_ in (*(recall[k] * len(numbers) for k in RECALL_AT), judged.ndcg(NDCG_AT).sum())]
