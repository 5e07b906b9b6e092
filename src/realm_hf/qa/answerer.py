"""`QuestionAnswerer`: from questions to answers, batch by batch, without padding and without a loop over spans."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from realm_hf.data.collators import check_tokenizer, pad_rows
from realm_hf.data.passages.build import NULL_PASSAGE, PassageStore
from realm_hf.data.reader_batch import encode_questions
from realm_hf.data.vocabulary import SpecialTokens, require_fast_tokenizer
from realm_hf.index.base import ABSENT
from realm_hf.models.cut_lengths import MAX_QUERY_LENGTH
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.losses import relevance_scores
from realm_hf.models.precision import in_float64
from realm_hf.models.prompts import room_beside_prompt
from realm_hf.models.reading import Beam
from realm_hf.models.transfer import to_device
from realm_hf.progress import progress_bar
from realm_hf.qa.answers import Answer
from realm_hf.qa.best_spans import best_spans
from realm_hf.qa.evidence import ReadPassages
from realm_hf.retriever.retriever import RealmRetriever, RetrievalBatch

if TYPE_CHECKING:
    from realm_hf.models.modeling_realm_qa import RealmForOpenQA

__all__ = ["QuestionAnswerer", "RetrievedQuestions"]


@dataclass(frozen=True)
class RetrievedQuestions:
    """
    B questions and the passages found for them.

    Args:
        question_ids (`list[np.ndarray]`, B of int64): `[CLS] question [SEP]`.
        embeddings (`torch.Tensor` of shape `(B, D)`): Of the questions, by the query tower.
        batch ([`RetrievalBatch`]): Rows and scores `[B, K]`, without the null passage; K is at most the corpus.
    """

    question_ids: list[np.ndarray]
    embeddings: torch.Tensor
    batch: RetrievalBatch


class QuestionAnswerer:
    """
    Answers questions from a corpus.

    Each batch of questions is embedded at once, searched for at once, and read in chunks of similar length. A question
    gets the same answer alone and in any batch.

    Args:
        model ([`RealmForOpenQA`]): Query tower and reader.
        retriever ([`RealmRetriever`], *optional*): The corpus; `model.retriever` by default. Give it the passage tower
            (`embedder`) for [`Answer`]'s null probability.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): `retriever.tokenizer` by default.
        batch_size (`int`, *optional*, defaults to 32): Questions read at once. Memory grows with it, and with `top_k`.
        max_question_length (`int`, *optional*, defaults to `MAX_QUERY_LENGTH`):
            Wordpieces of `[CLS] question [SEP]`; what is longer is cut, the `[SEP]` kept.
        device (`str` or `torch.device`, *optional*): Where the model is moved; its own by default.

    Raises:
        ValueError: If there is no retriever or tokenizer, or the passages were built with another tokenizer.

    Example:
    ```python
    >>> answerer = QuestionAnswerer(RealmForOpenQA.from_pretrained(folder), RealmRetriever.from_pretrained(folder))
    >>> answer = answerer("What is the capital of Nicaragua?")[0]
    >>> answer.text, answer.title
    ('Managua', 'Nicaragua')
    ```
    """

    def __init__(
        self,
        model: RealmForOpenQA,
        retriever: RealmRetriever | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 32,
        max_question_length: int = MAX_QUERY_LENGTH,
        device: str | torch.device | None = None,
    ):
        retriever = cast("RealmRetriever | None", model.retriever) if retriever is None else retriever
        if retriever is None:
            raise ValueError("There is nothing to search: pass `retriever`, or set `model.retriever`.")
        tokenizer = retriever.tokenizer if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ValueError("There is no tokenizer: pass `tokenizer`, or make the retriever with one.")
        require_fast_tokenizer(tokenizer)
        if isinstance(retriever.passages, PassageStore):
            check_tokenizer(retriever.passages, tokenizer)
        if max_question_length < 3:
            raise ValueError(f"max_question_length is {max_question_length}: [CLS], a wordpiece and [SEP] take 3.")
        self.model = model
        self.retriever = retriever
        self.tokenizer = tokenizer
        self.batch_size = _at_least_one("batch_size", batch_size)
        self.max_question_length = max_question_length
        self._special_tokens = SpecialTokens.from_tokenizer(tokenizer)
        if device is not None:
            torch.nn.Module.to(model, device)

    def __call__(
        self, questions: str | Sequence[str], *, top_k: int | None = None, batch_size: int | None = None
    ) -> list[Answer]:
        """
        Answer questions.

        A question without a wordpiece (empty, or white space) is not searched for and has no answer. Characters that
        the vocabulary lacks become `[UNK]`; they neither fail nor help. Equal questions get equal answers.

        Args:
            questions (`str` or sequence of `str`): One or any number.
            top_k (`int`, *optional*): Passages read a question; `config.reader_beam_size` by default. May exceed the
                corpus.
            batch_size (`int`, *optional*): Questions read at once; that of the object by default.

        Returns:
            `list[Answer]`: One for each question, also for a single one.

        Raises:
            TypeError: If a question is no string.
            ValueError: If `top_k` or `batch_size` is not positive, or an embedding holds NaN.
        """
        top_k = self.model.config.reader_beam_size if top_k is None else top_k
        answers: list[Answer] = []
        # Another thread may change the knowledge meanwhile: rows, wordpieces and texts must be of one moment.
        now = copy.copy(self)
        now.retriever = self.retriever.snapshot()
        with self._evaluating():
            for texts in self._batches(questions, batch_size, "answering"):
                found = now._retrieve(texts, top_k)
                answers += now._answer(texts, found.question_ids, found.embeddings, now._beam(found.batch))
        return answers

    def retrieve(
        self, questions: str | Sequence[str], *, top_k: int | None = None, batch_size: int | None = None
    ) -> RetrievedQuestions:
        """
        Embed questions and search, without reading: for figures such as recall.

        Args:
            questions (`str` or sequence of `str`): At least one.
            top_k (`int`, *optional*): Passages of each question; `config.reader_beam_size` by default.
            batch_size (`int`, *optional*): Questions at once; that of the object by default.

        Returns:
            [`RetrievedQuestions`]: A question without a wordpiece has no passage, all its rows are -2.

        Raises:
            TypeError, ValueError: As for answering; `ValueError` also if there is no question.
        """
        top_k = self.model.config.reader_beam_size if top_k is None else top_k
        with self._evaluating():
            parts = [self._retrieve(texts, top_k) for texts in self._batches(questions, batch_size, "searching")]
        if not parts:
            raise ValueError("There is no question to retrieve for: give at least one.")
        batches = [part.batch for part in parts]
        return RetrievedQuestions(
            question_ids=[ids for part in parts for ids in part.question_ids],
            embeddings=torch.cat([part.embeddings for part in parts]),
            batch=RetrievalBatch(
                rows=np.concatenate([batch.rows for batch in batches]),
                scores=np.concatenate([batch.scores for batch in batches]),
                excluded=np.concatenate([batch.excluded for batch in batches]),
                duplicates=np.concatenate([batch.duplicates for batch in batches]),
                generation=batches[-1].generation,
            ),
        )

    def read(self, questions: str | Sequence[str], rows: np.ndarray, *, batch_size: int | None = None) -> list[Answer]:
        """
        Answer from given passages instead of those that would be retrieved: for ablations, and for a second opinion.

        Args:
            questions (`str` or sequence of `str`): Q questions.
            rows (`np.ndarray`, int64 `[Q, K]`): The passages to read for each; -1 is the null passage, in which no
                answer stands, -2 none. Their relevance scores come from the stored embeddings.
            batch_size (`int`, *optional*): Questions read at once; that of the object by default.

        Returns:
            `list[Answer]`: One for each question.

        Raises:
            ValueError: If `rows` has another shape, or the retriever has no embeddings.
            IndexError: If a row is no passage.
        """
        texts = [questions] if isinstance(questions, str) else list(questions)
        rows = np.where(np.asarray(rows) == NULL_PASSAGE, ABSENT, rows)
        if rows.ndim != 2 or len(rows) != len(texts):
            raise ValueError(
                f"`rows` has shape {list(rows.shape)} for {len(texts)} questions: give [{len(texts)}, K]."
            )
        answers: list[Answer] = []
        with self._evaluating():
            for batch in self._batches(texts, batch_size, "reading"):
                question_ids, embeddings = self._embed(batch)
                given = rows[len(answers) : len(answers) + len(batch)]
                beam = Beam(given, self.retriever.beam_embeddings(given))
                answers += self._answer(batch, question_ids, embeddings, beam)
        return answers

    def _batches(self, questions: str | Sequence[str], batch_size: int | None, doing: str) -> Iterator[list[str]]:
        texts = [questions] if isinstance(questions, str) else list(questions)
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"A question is {text!r}, a {type(text).__name__}: questions must be strings.")
        size = self.batch_size if batch_size is None else _at_least_one("batch_size", batch_size)
        # The bar of a single batch would be seen when all is over.
        with progress_bar(len(texts), doing, "questions", None if len(texts) > size else False) as bar:
            for start in range(0, len(texts), size):
                batch = texts[start : start + size]
                yield batch
                bar.update(len(batch))

    def _retrieve(self, texts: list[str], top_k: int) -> RetrievedQuestions:
        _at_least_one("top_k", top_k)
        question_ids, embeddings = self._embed(texts)
        batch = self.retriever.retrieve(
            embeddings, min(top_k, len(self.retriever)), token_ids=question_ids, null_passage=False
        )
        nothing_asked = [len(ids) <= 2 for ids in question_ids]
        batch.rows[nothing_asked], batch.scores[nothing_asked] = ABSENT, -np.inf
        return RetrievedQuestions(question_ids, embeddings, batch)

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> tuple[list[np.ndarray], torch.Tensor]:
        """`[CLS] question [SEP]` of each, and the embeddings `[B, D]`."""
        question_ids = self._question_ids(texts)
        input_ids, attention_mask = pad_rows(question_ids, self._special_tokens.pad)
        sent = to_device({"input_ids": input_ids, "attention_mask": attention_mask}, self.model.device)
        facts = RowFacts.of(input_ids, attention_mask)
        return question_ids, self.model.embed_questions(sent["input_ids"], sent["attention_mask"], facts)

    def _question_ids(self, texts: list[str]) -> list[np.ndarray]:
        config = self.model.embedder.config
        room = room_beside_prompt(config, "query", min(self.max_question_length, config.max_position_embeddings))
        return encode_questions(texts, self.tokenizer, self._special_tokens, room)

    def _beam(self, found: RetrievalBatch) -> Beam:
        """The passages found. An index may compress: its scores find them, but no probability rests on those."""
        stored = self.retriever.embeddings is not None
        return Beam(found.rows, self.retriever.beam_embeddings(found.rows) if stored else None, found.scores)

    @torch.no_grad()
    def _answer(
        self, texts: list[str], question_ids: list[np.ndarray], queries: torch.Tensor, beam: Beam
    ) -> list[Answer]:
        joint = self.retriever.reader_batch(question_ids, beam.rows, self.model.reader_length)
        null = self.retriever.null_embedding()
        sent = beam.to_device(joint, queries.device, {} if null is None else {"null": null})
        read = self.model.read_beam(queries, sent, joint.facts())
        probabilities, of_null = self._retrieval_probabilities(queries, read.relevance, sent.get("null"))
        found = best_spans(read, sent["input_ids"])
        passages = ReadPassages(
            self.retriever, joint, found, probabilities[joint.question, joint.rank], self.tokenizer
        )
        return [
            passages.answer(number, text, None if of_null is None else float(of_null[number]))
            for number, text in enumerate(texts)
        ]

    def _retrieval_probabilities(
        self, queries: torch.Tensor, relevance: torch.Tensor, null: torch.Tensor | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """p(z|x) `[B, S]` in float64, and the null passage's `[B]` where its embedding `(D,)` is known."""
        if null is None:
            return torch.softmax(in_float64(relevance), -1).nan_to_num(0.0).cpu().numpy(), None
        of_null = relevance_scores(queries, null.expand(len(queries), 1, -1), self.model.config.score_scale)
        shares = torch.softmax(in_float64(torch.cat([of_null, relevance], dim=-1)), -1).cpu().numpy()
        return shares[:, 1:], shares[:, 0]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout; the training mode comes back."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}: at least 1 is needed.")
    return value
