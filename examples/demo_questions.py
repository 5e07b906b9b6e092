"""The second half of the demo: fine-tune on questions, answer those about countries never trained on, say why."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from demo_phases import Phases
from factbook import FactbookQuestion
from factbook_task import KS, MAX_PASSAGE_LENGTH, MAX_QUERY_LENGTH, FactbookTask
from realm_hf import Answer, QuestionAnswerer, RealmForOpenQA, RealmForPreTraining, RealmRetriever
from realm_hf.data import NULL_PASSAGE, OpenQAExample, contains_answer, exact_match
from realm_hf.training import OpenQATrainer, OpenQATrainingArguments

# One answer in 25 is longer than the released 10 wordpieces.
MAX_SPAN_WIDTH = 14


def fine_tune(
    pretrained: RealmForPreTraining,
    task: FactbookTask,
    run: Path,
    phases: Phases,
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> tuple[RealmForOpenQA, RealmRetriever]:
    """Train query tower and reader on questions about the seen countries; RUN/open_qa/model is the result.

    Args:
        pretrained: Where both start.
        task: The corpus and its questions.
        run: The demo's run, whose newest generation is the index.
        phases: Of the demo.
        steps: Optimizer steps.
        batch_size: Questions of a step.
        seed: Seed of the span head and of the order.

    Returns:
        The model and the retriever, both as anybody would load them.

    Raises:
        PhaseInterrupted: It was told to stop.
    """
    model = RealmForOpenQA.from_pretraining(pretrained, seed=seed, max_span_width=MAX_SPAN_WIDTH)
    asked = task.asked(country_seen=True, field_seen=True)
    trainer = OpenQATrainer(
        model,
        OpenQATrainingArguments(
            output_dir=str(run / "open_qa"),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=2e-4,
            warmup_steps=10,
            max_query_length=MAX_QUERY_LENGTH,
            reader_seq_len=MAX_QUERY_LENGTH + MAX_PASSAGE_LENGTH,
            save_steps=0,
            seed=seed,
        ),
        train_dataset=[OpenQAExample(q.question, (q.answer,)) for q in asked],
        processing_class=task.tokenizer,
        passages=task.passages,
        index_from=run,
    )
    if not phases.is_done("fine-tuning"):
        phases.train("fine-tuning", trainer.train, trainer.checkpoints)
    folder = run / "open_qa" / "model"
    retriever = RealmRetriever.from_pretrained(folder)
    return RealmForOpenQA.from_pretrained(folder, retriever=retriever), retriever


def evaluate(
    model: RealmForOpenQA, retriever: RealmRetriever, task: FactbookTask, questions: Sequence[FactbookQuestion]
) -> tuple[dict[str, float], dict[str, float], list[Answer]]:
    """Exact match beside three baselines, and recall of passages that hold the answer; in percent.

    Args:
        model: Fine-tuned.
        retriever: What it searches.
        task: The corpus and its questions.
        questions: Those that are asked.

    Returns:
        Exact match by name, recall by depth, and the answers.
    """
    answerer = QuestionAnswerer(model, retriever)
    texts = [question.question for question in questions]
    answers = answerer(texts)
    found = answerer.retrieve(texts, top_k=max(KS)).batch.rows
    others = found[:, : model.config.reader_beam_size][_derangement(len(found))]
    majority = majority_answers(task)
    predictions = {
        "realm": [answer.text for answer in answers],
        "shuffled_retrieval": [answer.text for answer in answerer.read(texts, others)],
        "null_passage": [answer.text for answer in answerer.read(texts, np.full((len(texts), 1), NULL_PASSAGE))],
        "majority": [majority[question.field] for question in questions],
    }
    matched = {
        name: _percent([exact_match(said, [q.answer]) for said, q in zip(given, questions, strict=True)])
        for name, given in predictions.items()
    }
    holds = np.array(
        [
            [contains_answer(text, [question.answer]) for text in retriever.texts(rows)]
            for question, rows in zip(questions, found, strict=True)
        ]
    )
    return matched, {str(k): _percent(holds[:, :k].any(1)) for k in KS}, answers


def majority_answers(task: FactbookTask) -> dict[str, str]:
    """Field -> the answer that most seen countries have."""
    given: dict[str, Counter[str]] = {}
    for question in task.asked(country_seen=True, field_seen=True):
        given.setdefault(question.field, Counter())[question.answer] += 1
    return {field: counts.most_common(1)[0][0] for field, counts in given.items()}


def print_answers(answers: Sequence[Answer], questions: Sequence[FactbookQuestion]) -> None:
    """What was asked, what was answered, and the passage that it rests on."""
    for answer, question in zip(answers, questions, strict=True):
        right = "right" if exact_match(answer.text, [question.answer]) else f"expected {question.answer!r}"
        print(f"\n  {answer.question}\n    {answer.shown}   (p {answer.probability:.2f}; {right})")
        for passage in answer.evidence[:1]:
            text = passage.text
            if answer.row == passage.row:
                start, end = answer.shown_span
                text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
            print(f"    {passage.title}, share {passage.share:.2f}: {text if len(text) < 100 else text[:99] + '…'}")


def _derangement(count: int) -> np.ndarray:
    """For each question another one, the same in every run."""
    order = list(range(count))
    random.Random(0).shuffle(order)  # noqa: S311 - an order, not a secret
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def _percent(hits: Sequence[bool] | np.ndarray) -> float:
    return round(100 * float(np.mean(hits)), 1)
