"""Changes one fact on a live retriever, without training, and asks before and after.

    python examples/edit_knowledge.py                                    # on the small world of small_world.py
    make demo
    python examples/edit_knowledge.py --model runs/demo/open_qa/model --new_answer Codrington \
        --question "what is the capital city of Antigua and Barbuda?" \
        --others "what is the capital city of Jordan?" "what money is used in Antigua and Barbuda?"

The passage that the answer stands in gets the new answer in its place; only this passage is embedded again. Then all
questions are asked once more, the passage is put back, and they are asked a third time. `--save` keeps the edit: the
directory is a whole retriever, to be loaded beside the same model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import transformers

from realm_hf import Answer, QuestionAnswerer, RealmForOpenQA, RealmRetriever
from small_world import QUESTIONS, TRAINED_TOWNS, make_towns, small_world


@dataclass(frozen=True)
class Edit:
    """What happened to one fact.

    Args:
        row: The passage that was replaced.
        old_text: Its text before.
        new_text: Its text after.
        before: Answers before, that about the fact first.
        after: Answers to the same questions after.
        restored: Answers after the passage was put back.
        seconds: Time of the edit.
    """

    row: int
    old_text: str
    new_text: str
    before: list[Answer]
    after: list[Answer]
    restored: list[Answer]
    seconds: float

    @property
    def changed(self) -> list[str]:
        """Questions that are answered differently after the edit."""
        return [a.question for a, b in zip(self.before, self.after, strict=True) if a.text != b.text]


def edit_one_fact(answerer: QuestionAnswerer, question: str, new_answer: str, others: Sequence[str]) -> Edit:
    """Ask, replace the answer in its passage, ask again, put the passage back, ask again."""
    asked = [question, *others]
    before = answerer(asked)
    fact, retriever = before[0], answerer.retriever
    if fact.row is None:
        raise SystemExit(f"{question!r} has no answer to replace.")
    (old_text,) = retriever.texts([fact.row])
    start, end = fact.shown_span
    new_text = old_text[:start] + new_answer + old_text[end:]
    started = time.perf_counter()
    retriever.replace_passages(fact.row, new_text)
    seconds = time.perf_counter() - started
    after = answerer(asked)
    retriever.replace_passages(fact.row, old_text)
    return Edit(fact.row, old_text, new_text, before, after, answerer(asked), seconds)


def print_edit(edit: Edit) -> None:
    print(f"Passage {edit.row}, before: {edit.old_text}\nPassage {edit.row}, after:  {edit.new_text}\n")
    rows = [("question", "before", "after", "put back")]
    rows += [
        (before.question, *(f"{answer.shown} ({answer.probability:.2f})" for answer in (before, after, restored)))
        for before, after, restored in zip(edit.before, edit.after, edit.restored, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for before, after in zip(edit.before, edit.after, strict=True):
        if before.text != after.text:
            print(f"Changed: {before.question} {before.text!r} is now {after.text!r}.")
    same = sum(a.text == b.text for a, b in zip(edit.before, edit.restored, strict=True))
    print(
        f"The edit took {edit.seconds * 1000:.0f} ms. {len(edit.changed)} of {len(edit.before)} answers changed; "
        f"with the passage put back, {same} are what they were."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a fine-tuned model with its retriever (default: the small world's)")
    parser.add_argument("--retriever", help="the retriever, where it is not beside the model")
    parser.add_argument("--question", help="the question whose answer shall change")
    parser.add_argument("--new_answer", help="what it shall be")
    parser.add_argument("--others", nargs="*", default=[], help="questions whose answers shall stay")
    parser.add_argument("--save", type=Path, help="a directory for the edited retriever")
    args = parser.parse_args()
    if args.model and not (args.question and args.new_answer):
        parser.error("--model needs --question and --new_answer.")
    transformers.utils.logging.disable_progress_bar()
    if args.question is None:
        town, *rest = make_towns()[TRAINED_TOWNS:]
        args.question, args.new_answer = QUESTIONS["mayor"][0].format(town=town.name), "Wilma Zander"
        args.others = [forms[0].format(town=town.name) for field, forms in QUESTIONS.items() if field != "mayor"]
        args.others += [forms[0].format(town=other.name) for other in rest for forms in QUESTIONS.values()]
    folder = args.model or small_world()
    retriever = RealmRetriever.from_pretrained(args.retriever or folder)
    answerer = QuestionAnswerer(RealmForOpenQA.from_pretrained(folder), retriever)
    edit = edit_one_fact(answerer, args.question, args.new_answer, args.others)
    print_edit(edit)
    if args.save:
        retriever.replace_passages(edit.row, edit.new_text)
        retriever.save_pretrained(args.save)
        print(f"The edited retriever is in {args.save}.")


if __name__ == "__main__":
    main()
