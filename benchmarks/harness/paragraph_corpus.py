"""SQuAD's paragraphs as a knowledge corpus of shorter passages, with all that arms share: each part is made once.

Paragraphs are cut into passages at their sentences, so that no text is lost to a short limit; the row of a paragraph
is the number of its document. A paragraph scores as its best passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, disable_progress_bars

from realm_hf import RealmEmbedder, RealmTokenizer
from realm_hf.data import tagger_from_name
from realm_hf.data.passages.build import PassageStore, build_passages, passages_from_rows
from realm_hf.data.passages.recurring import RecurringSpans, find_recurring_spans
from realm_hf.data.reader_batch import encode_questions
from realm_hf.data.sentences.build import SentenceStore, build_sentences
from realm_hf.data.sentences.recurring import RecurringMasks, find_recurring_masks
from realm_hf.models.configuration_realm import MAX_QUERY_LENGTH
from realm_hf.retriever.bm25 import BM25Source
from realm_hf.training.prefetch import encode_queries

from .answered_masks import find_answered_masks

HELD_OUT = 0.01  # of the paragraphs: their sentences are evaluated on
KEPT_BACK = 20  # of so many paragraphs one is kept back: REALM masks none of its sentences, and they are asked
ANSWERED_DEPTH = 2  # of BM25's passages for a masked sentence, one of which holds what is masked
_QUESTIONS_AT_ONCE = 256


class ParagraphCorpus:
    """Passages, sentences, spans and BM25 index of a file of paragraphs.

    Args:
        file: `passages.parquet`, see harness/squad.py.
        tokenizer: Of the model.
        folder: Where everything is kept.
        max_passage_length: Wordpieces of a passage, special tokens included.
        max_query_length: Wordpieces of a masked sentence, special tokens included.
        num_proc: Processes that cut, tag and tokenize.
        whole: Each paragraph is one passage, its end cut where it is too long, so that both have the same rows.

    Raises:
        SystemExit: The folder holds another corpus, or a paragraph is empty.
    """

    def __init__(
        self,
        file: Path,
        tokenizer: RealmTokenizer,
        folder: Path,
        *,
        max_passage_length: int,
        max_query_length: int,
        num_proc: int = 1,
        whole: bool = False,
    ):
        disable_progress_bars()
        self.frame = pd.read_parquet(file)[["title", "text"]]
        self.tokenizer, self.folder = tokenizer, folder
        self.max_query_length, self.num_proc = max_query_length, num_proc
        place = folder / f"{'paragraphs' if whole else 'passages'}-{max_passage_length}"
        if not (place / "passages.json").is_file():
            build = passages_from_rows if whole else build_passages
            build(self._documents, tokenizer, place, max_length=max_passage_length, num_proc=num_proc)
        self.passages = PassageStore.load(place)
        documents = np.asarray(self.passages.documents)
        #: First passage of each paragraph.
        self.first = np.searchsorted(documents, np.arange(len(self.frame)))
        if not np.array_equal(np.unique(documents), np.arange(len(self.frame))):
            raise SystemExit(
                f"{place} does not hold passages of each of the {len(self.frame)} paragraphs: remove the folder, or "
                "see whether empty paragraphs were left out."
            )
        #: Of each paragraph: a number for its text, and one for its article.
        self.groups = pd.factorize(self.frame["text"])[0]
        titles = self.frame["title"].to_numpy()
        self.articles = np.concatenate([[0], np.cumsum(titles[1:] != titles[:-1])])

    def __len__(self) -> int:
        return len(self.frame)

    # As examples/bm25.py reads a store of passages.

    def title(self, row: int) -> str:
        """Title of a paragraph."""
        return str(self.frame["title"].iat[row])

    def text(self, row: int) -> str:
        """Text of a paragraph."""
        return str(self.frame["text"].iat[row])

    @property
    def _documents(self) -> Dataset:
        return Dataset.from_pandas(self.frame, preserve_index=False)

    @cached_property
    def sentences(self) -> SentenceStore:
        """The sentences whose spans are masked, tagged by rules."""
        place = self.folder / f"sentences-{self.max_query_length}"
        if not (place / "sentences.json").is_file():
            tagger = tagger_from_name("rules")
            sizes: dict[str, Any] = {"max_query_length": self.max_query_length, "heldout_fraction": HELD_OUT}
            sizes |= {"num_proc": self.num_proc, "tagger_num_proc": self.num_proc}
            build_sentences(self._documents, self.tokenizer, tagger, place, **sizes)
        return SentenceStore(place)

    @cached_property
    def kept_back(self) -> np.ndarray:
        """Which sentences are of paragraphs that are kept back, bool by row of the store."""
        documents = np.asarray(self.sentences.rows.with_format("numpy")["document"][:])
        return documents % KEPT_BACK == 0

    @cached_property
    def masks(self) -> RecurringMasks:
        """Which salient spans other passages answer."""
        path = self.folder / f"masks-{self.sentences.fingerprint}-{self.passages.fingerprint}.npz"
        if not path.is_file():
            find_recurring_masks(self.sentences, self.passages, self.tokenizer).save(path)
        return RecurringMasks.load(path, self.passages, self.sentences)

    @cached_property
    def answered(self) -> RecurringMasks:
        """Which of them the best passages by BM25 answer, so many as are candidates."""
        path = self.folder / f"answered-{ANSWERED_DEPTH}-{self.sentences.fingerprint}-{self.passages.fingerprint}.npz"
        if not path.is_file():
            found = find_answered_masks(
                self.masks,
                self.sentences,
                self.passages,
                self.bm25.index,
                depth=ANSWERED_DEPTH,
                room=self.max_query_length - 2,
            )
            found.save(path)
        return RecurringMasks.load(path, self.passages, self.sentences)

    @cached_property
    def recurring(self) -> RecurringSpans:
        """Spans that passages of one article share."""
        path = self.folder / f"recurring-{self.passages.fingerprint}.npz"
        if not path.is_file():
            find_recurring_spans(self.passages, self.tokenizer).save(path)
        return RecurringSpans.load(path, self.passages)

    @cached_property
    def bm25(self) -> BM25Source:
        """BM25 over the passages."""
        place = self.folder / f"bm25-{self.passages.fingerprint}"
        if not place.is_dir():
            BM25Source.build(self.passages, self.tokenizer).save(place)
        return BM25Source.load(place)

    def ranks(
        self,
        vectors: np.ndarray,
        tower: RealmEmbedder,
        questions: Sequence[str],
        gold: Sequence[int],
        *,
        bf16: bool = False,
    ) -> np.ndarray:
        """At which rank, from 0, each question's paragraph is among all paragraphs, `[Q]`, by exact search.

        A paragraph that scores as much as the gold one stands before it, so that a tower that maps all texts to one
        place finds nothing.

        Args:
            vectors: Of all passages, `[N, D]`.
            tower: Embeds the questions.
            questions: Texts.
            gold: The paragraph of each.
            bf16: Embed the questions in bfloat16.
        """
        ids = encode_questions(questions, self.tokenizer, self.passages.special_tokens, MAX_QUERY_LENGTH)
        ranks = []
        for start in range(0, len(ids), _QUESTIONS_AT_ONCE):
            asked = encode_queries(tower, ids[start : start + _QUESTIONS_AT_ONCE], bf16=bf16)
            # [n, N] -> [n, paragraphs]
            scores = np.maximum.reduceat(asked @ vectors.T, self.first, axis=1)
            right = np.asarray(gold[start : start + len(asked)])
            own = scores[np.arange(len(asked)), right]
            others = self.groups[None] != self.groups[right][:, None]
            ranks.append(((scores >= own[:, None]) & others).sum(1))
        return np.concatenate(ranks)
