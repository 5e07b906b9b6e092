"""Answering questions: batches of 32 beside the old port, which takes one question at a time."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.alternation import alternate, timed
from harness.inputs import SCRATCH, load_passages, load_tokenizer, make_questions
from harness.peer import Peer
from harness.rows import Row, Settings, timed_row

from realm_hf import RealmTokenizer
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.qa.answers import Answer
from rows.open_qa import PORT, make_world, write_world

BATCH = 32


def measure(settings: Settings) -> Iterator[Row]:
    """One row; both sides answer the same 32 questions from the same passages, from text to text."""
    tokenizer = load_tokenizer()
    passages = load_passages(settings, tokenizer)
    world = make_world(settings, passages, tokenizer, beam=5)
    world.model.eval()
    examples = make_questions(passages, 4 if settings.quick else BATCH)
    questions = [example.question for example in examples]
    answerer = QuestionAnswerer(world.model, world.retriever, tokenizer, batch_size=BATCH)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
        write_world(world, examples, Path(work))
        with Peer("answering", Path(work), settings.threads, world.options) as peer:
            same = _count_same(answerer(questions), peer.step()["answers"], tokenizer)
            found = alternate(
                timed(lambda: answerer(questions)), peer, settings.rounds, most_rounds=settings.most_rounds
            )
    yield timed_row(
        found,
        1000 / len(questions),
        name=f"answering, batches of {BATCH}",
        beside=PORT,
        unit="ms/question",
        goal=10.0,
        kind="speedup",
        note=(
            f"5 of {len(passages):,} passages read a question, 4 x 256 towers with random weights; {same} of "
            f"{len(questions)} answers are the same."
        ),
    )


def _count_same(ours: list[Answer], theirs: list[str], tokenizer: RealmTokenizer) -> int:
    """Answers that are the same; ours are slices of the text, the port's are joined wordpieces.

    The port tokenizes the question a second time from what the tokenizer made of it, which now and then gives another
    question; so not all need be the same.

    Raises:
        RuntimeError: Fewer than three in four are: the sides do not do the same work.
    """
    texts = [tokenizer.decode(tokenizer(answer.text, add_special_tokens=False).input_ids) for answer in ours]
    same = sum(_letters(text) == _letters(other) for text, other in zip(texts, theirs, strict=True))
    if same < 0.75 * len(ours):
        raise RuntimeError(f"Only {same} of {len(ours)} answers agree: {texts[:3]} here, {theirs[:3]} there.")
    return same


def _letters(text: str) -> str:
    """Without spaces and marks of wordpieces: a span may begin inside a word."""
    return text.replace("##", "").replace(" ", "")
