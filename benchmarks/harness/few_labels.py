"""Fine-tuning the towers on a few questions with their paragraphs, as dense retrievers are: in-batch negatives, and a
passage that BM25 finds for the question and that does not answer it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from realm_hf import RealmForPreTraining, RealmRetriever
from realm_hf.data.masking import example_rng
from realm_hf.data.passages.store import NULL_PASSAGE
from realm_hf.data.questions.answer_finder import AnswerFinder
from realm_hf.data.reader_batch import encode_questions
from realm_hf.data.recurring_span_queries import RecurringSpanCollator, RecurringSpanExample
from realm_hf.models.configuration_realm import MAX_QUERY_LENGTH
from realm_hf.models.losses import inverse_cloze_loss
from realm_hf.training.arguments import InverseClozeTrainingArguments
from realm_hf.training.contrastive import ContrastiveTrainer

from .paragraph_corpus import ParagraphCorpus
from .squad import Questions

QUERY, BOTH = "query tower", "both towers"
_NEGATIVES = 20


@dataclass(frozen=True)
class LabelledQuestion:
    """A question as it is trained on.

    Args:
        ids: Wordpieces, without special tokens.
        positives: Passages of its paragraph that hold the answer; all of them where none does.
        negatives: Passages of other paragraphs that BM25 finds and that hold no answer.
    """

    ids: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


def labelled(corpus: ParagraphCorpus, questions: Questions) -> list[LabelledQuestion]:
    """The passages of each question."""
    passages, finder = corpus.passages, AnswerFinder(corpus.passages, corpus.tokenizer)
    ids = encode_questions(questions.texts, corpus.tokenizer, passages.special_tokens, MAX_QUERY_LENGTH)
    # The vectors give candidates their scores, and are not searched.
    nothing = np.zeros((len(passages), 1), np.float32)
    retriever = RealmRetriever(passages, corpus.tokenizer, embeddings=nothing, candidate_source=corpus.bm25)
    asked = np.zeros((len(ids), 1), np.float32)
    found = np.asarray(retriever.retrieve(asked, _NEGATIVES, token_ids=ids, null_passage=False).rows)
    ends = np.append(corpus.first[1:], len(passages))
    texts = corpus.groups[np.asarray(passages.documents)]
    made = []
    for example, gold, own, rows in zip(questions.examples, questions.gold, ids, found, strict=True):
        of_gold = np.arange(corpus.first[gold], ends[gold])
        answers = finder.find(of_gold, example.answers).has_answer
        rows = rows[rows >= 0]
        wrong = rows[~finder.find(rows, example.answers).has_answer & (texts[rows] != corpus.groups[gold])]
        made.append(LabelledQuestion(own[1:-1], of_gold[answers] if answers.any() else of_gold, wrong))
    return made


class QuestionTrainer(ContrastiveTrainer):
    """Trains towers on questions.

    Args:
        model: Its towers are trained, as far as they have trainable parameters.
        args: The arguments.
        corpus: The passages.
        questions: What is trained on.
    """

    name = "few labels"

    def __init__(
        self,
        model: RealmForPreTraining,
        args: InverseClozeTrainingArguments,
        corpus: ParagraphCorpus,
        questions: Sequence[LabelledQuestion],
    ):
        super().__init__(model, args, corpus.passages, len(questions), corpus.tokenizer)
        self.questions = list(questions)
        self.collator = RecurringSpanCollator(corpus.passages, args.max_query_length)

    def batch_of(self, rows: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """Questions, a passage that answers each and one that does not, as for recurring spans."""
        return self.collator([self._visit(int(row), int(epoch)) for row, epoch in zip(rows, epochs, strict=True)])

    def _visit(self, row: int, epoch: int) -> RecurringSpanExample:
        question, rng = self.questions[row], example_rng(self.args.seed, epoch, row)
        negative = int(rng.choice(question.negatives)) if len(question.negatives) else NULL_PASSAGE
        return RecurringSpanExample(
            question.ids, NULL_PASSAGE, int(rng.choice(question.positives)), negative, kept=True
        )

    def contrast(self, embeddings: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Among the positives and negatives of all questions."""
        passages, (positives, negatives, _) = embeddings[1:].flatten(0, 1), groups
        return inverse_cloze_loss(embeddings[0], passages, torch.cat([positives, negatives]), self.scale)


def fine_tuned(
    model: RealmForPreTraining,
    towers: str,
    corpus: ParagraphCorpus,
    questions: Sequence[LabelledQuestion],
    run: Path,
    **settings: Any,
) -> RealmForPreTraining:
    """A model whose towers learned from questions.

    Args:
        model: Where they start; its towers are one.
        towers: QUERY: the passages' vectors stay; BOTH: one tower for questions and passages goes on learning.
        corpus: The passages.
        questions: What is trained on.
        run: The run directory, removed at the end.
        settings: Arguments of the training.
    """
    if towers == QUERY:
        model = with_own_query_tower(model)
        model.embedder.requires_grad_(False)
    steps = settings["max_steps"]
    args = InverseClozeTrainingArguments(
        output_dir=str(run), warmup_steps=max(1, steps // 10), save_steps=0, disable_tqdm=True, **settings
    )
    shutil.rmtree(run, ignore_errors=True)  # of a call that was stopped
    QuestionTrainer(model, args, corpus, questions).train().exit_if_interrupted()
    shutil.rmtree(run)
    return model.eval()


def with_own_query_tower(model: RealmForPreTraining) -> RealmForPreTraining:
    """A copy with two towers, both as the one that there was."""
    config = type(model.config).from_dict({**model.config.to_dict(), "share_embedders": False})
    twin = RealmForPreTraining(config)
    twin.load_state_dict(model.state_dict(), strict=False)
    twin.query_embedder.load_state_dict(model.query_embedder.state_dict())
    return twin
