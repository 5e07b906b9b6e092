"""The task of demo and ablations: the Factbook as knowledge, statements to read, questions to find passages for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset

from by_words import word_rows
from factbook import FactbookQuestion, factbook_passages, factbook_questions, factbook_statements
from realm_hf import (
    BM25Source,
    FusedSource,
    IndexSource,
    RealmEmbedder,
    RealmForPreTraining,
    RealmRetriever,
    RealmTokenizer,
    build_index,
    embed_passages,
)
from realm_hf.data import (
    OpenQAExample,
    PassageStore,
    SentenceStore,
    Span,
    Tagger,
    build_sentences,
    passages_from_rows,
    tagger_from_name,
)
from realm_hf.training import RetrievalQuestions

KS = (1, 5, 20)
MAX_PASSAGE_LENGTH = 96
MAX_QUERY_LENGTH = 32
# LayerNorm bounds inner products of embeddings by their 128 dimensions; a tenth of it is a softmax that can learn.
SCORE_SCALE = 0.1

Recall = dict[str, float]


class TopicFreeTagger:
    """A tagger that leaves out the names of the countries: without its country a statement could be about any.

    Args:
        tagger: Finds the spans.
        topics: Names that are not masked.
    """

    def __init__(self, tagger: Tagger, topics: Iterable[str]):
        self.tagger, self.topics = tagger, frozenset(topics)
        names = hashlib.sha256("\n".join(sorted(self.topics)).encode()).hexdigest()
        self.fingerprint = f"topic-free-{tagger.fingerprint}-{names[:16]}"

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """The spans of each text that overlap no topic's name."""
        spans = []
        for text, found in zip(texts, self.tagger(texts), strict=True):
            named = [(at, at + len(name)) for name in self.topics if (at := text.find(name)) >= 0]
            spans.append([s for s in found if all(s.end <= start or end <= s.start for start, end in named)])
        return spans


@dataclass(frozen=True)
class FactbookTask:
    """Passages, statements and questions, all stored under one folder.

    Attributes:
        tokenizer: Made both stores.
        passages: The knowledge corpus, a row for each of `factbook_passages()`.
        sentences: Tagged statements; `.train` and `.heldout`.
        questions: Those asked, in a fixed random order.
    """

    tokenizer: RealmTokenizer
    passages: PassageStore
    sentences: SentenceStore
    questions: list[FactbookQuestion]

    def asked(self, *, country_seen: bool, field_seen: bool, limit: int | None = None) -> list[FactbookQuestion]:
        """The questions of one cell of the table country (seen, held out) x field (seen, held out)."""
        cell = [q for q in self.questions if q.country_seen == country_seen and q.field_seen == field_seen]
        return cell[:limit]

    @cached_property
    def words(self) -> BM25Source:
        """The passages by their words, indexed once."""
        return BM25Source.build(self.passages, self.tokenizer)

    def judged(self, questions: Sequence[FactbookQuestion]) -> RetrievalQuestions:
        """Questions with the passages that are right for them."""
        asked, gold = [OpenQAExample(q.question, ()) for q in questions], [q.passage for q in questions]
        return RetrievalQuestions(asked, self.passages, self.tokenizer, gold_rows=gold)


def prepare_task(folder: Path, tokenizer: RealmTokenizer, *, seed: int = 0, per_fact: int = 2) -> FactbookTask:
    """Build, or find again, the stores under `folder`."""
    passages_dir, sentences_dir = folder / "passages", folder / f"statements-{seed}"
    if passages_dir.is_dir():
        passages = PassageStore.load(passages_dir)
    else:
        rows = Dataset.from_list(factbook_passages())
        passages = passages_from_rows(rows, tokenizer, passages_dir, max_length=MAX_PASSAGE_LENGTH)
    if sentences_dir.is_dir():
        sentences = SentenceStore.load(sentences_dir)
    else:
        statements = Dataset.from_list(factbook_statements(seed, per_fact))
        sentences = build_sentences(
            statements,
            tokenizer,
            TopicFreeTagger(tagger_from_name("rules"), {row["title"] for row in factbook_passages()}),
            sentences_dir,
            max_query_length=MAX_QUERY_LENGTH,
            heldout_fraction=0.02,
        )
    # The gold passage of a question is a row of factbook_passages(): none may have been skipped.
    if len(passages) != len(factbook_passages()):
        raise RuntimeError(f"{passages_dir} holds {len(passages)} passages, expected {len(factbook_passages())}.")
    questions = factbook_questions()
    random.Random(0).shuffle(questions)  # noqa: S311 - an order, not a secret
    return FactbookTask(tokenizer, passages, sentences, questions)


def start_model(
    weights: str, seed: int, pooler: Literal["checkpoint", "identity"] = "identity"
) -> RealmForPreTraining:
    """All towers from one BERT checkpoint, without dropout: the run is a few hundred steps long."""
    return RealmForPreTraining.from_bert(
        weights,
        pooler=pooler,
        seed=seed,
        score_scale=SCORE_SCALE,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def start_as_made(weights: str, seed: int) -> RealmForPreTraining:
    """As [`start_model`], with the towers read as sentence encoders are made: mean of the tokens, cosine."""
    return RealmForPreTraining.from_bert(
        weights,
        seed=seed,
        pooling_mode="mean",
        projection="none",
        normalize=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def index_now(embedder: RealmEmbedder, task: FactbookTask) -> RealmRetriever:
    """A retriever over the passages as `embedder` sees them now."""
    embeddings = embed_passages(embedder, task.passages)
    return RealmRetriever(task.passages, task.tokenizer, index=build_index(embeddings), embeddings=embeddings)


def ranks_of(
    embedder: RealmEmbedder, retriever: RealmRetriever, task: FactbookTask, questions: Sequence[FactbookQuestion]
) -> np.ndarray:
    """Rank of each question's gold passage, from 0; int64 `[Q]`, 20 where it is deeper."""
    return task.judged(questions).ranks(embedder, retriever, max(KS))


def bm25_ranks(task: FactbookTask, questions: Sequence[FactbookQuestion]) -> np.ndarray:
    """Rank of each question's gold passage for BM25 over title and text; int64 `[Q]`, 20 where it is deeper."""
    asked = task.judged(questions)
    found = word_rows(task.words, task.passages, asked.ids, max(KS))
    return asked.judge(range(len(asked)), found).ranks()


def hybrid_ranks(
    embedder: RealmEmbedder, retriever: RealmRetriever, task: FactbookTask, questions: Sequence[FactbookQuestion]
) -> np.ndarray:
    """Likewise for the retriever's index and BM25, fused by reciprocal ranks."""
    fused = retriever.snapshot()  # what is served stays as it is
    fused.candidate_source = FusedSource([task.words, IndexSource()])
    return ranks_of(embedder, fused, task, questions)


def recall_at(ranks: np.ndarray | Sequence[int]) -> Recall:
    """Recall in percent at each depth: {"1": ..., "5": ..., "20": ...}."""
    return {str(k): round(100 * float((np.asarray(ranks) < k).mean()), 1) for k in KS}


def print_recall(rows: Iterable[tuple[str, Recall]]) -> None:
    """A small table, recall in percent."""
    listed = list(rows)
    width = max(len(name) for name, _ in listed)
    print(f"  {'':{width}s}" + "".join(f"{f'recall@{k}':>11s}" for k in KS))
    for name, recall in listed:
        print(f"  {name:{width}s}" + "".join(f"{recall[str(k)]:11.1f}" for k in KS))
