"""A knowledge corpus of whole, related articles with questions that it answers, out of a larger file of passages.

    python benchmarks/wikipedia_corpus.py --articles articles.parquet --questions nq.jsonl webq.jsonl \
        --min_passages 20000 --output_dir runs/wikipedia

Reads passages with columns `title` and `text` in reading order, and questions as JSON lines (`question`, `answer`: a
list). An article is a *seed* if a question names its title and its text holds an answer; then the articles that the
seeds name most often are added, whole, until there are enough passages. Writes `knowledge.parquet` (title, text) and
`questions.jsonl` (question, answer, title).
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd

_LONGEST_TITLE = 6  # words


def normalise(text: str) -> str:
    """Lower case, letters and digits only, one space between words and around the whole."""
    return " " + " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split()) + " "


def windows(words: list[str]) -> list[str]:
    """All runs of up to `_LONGEST_TITLE` words; single words only if they are long enough to be a name."""
    return [
        " " + " ".join(words[start:end]) + " "
        for start in range(len(words))
        for end in range(start + 1, min(len(words), start + _LONGEST_TITLE) + 1)
        if end - start > 1 or len(words[start]) > 5
    ]


def main() -> None:
    """Choose articles and questions, write both files and say what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=Path, required=True)
    parser.add_argument("--questions", type=Path, nargs="+", required=True)
    parser.add_argument("--min_passages", type=int, default=20000)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    frame = pd.read_parquet(args.articles)
    sizes = frame.groupby("title", sort=False).size()
    bodies = {title: normalise(" ".join(texts)) for title, texts in frame.groupby("title", sort=False)["text"]}
    by_name: dict[str, list[str]] = {}
    for title in bodies:
        by_name.setdefault(normalise(re.sub(r"\(.*\)", "", title)), []).append(title)

    questions, seeds = [], Counter[str]()
    for path in args.questions:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answers = [answer for answer in row["answer"] if len(normalise(answer)) > 5]
            named = [t for run in windows(normalise(row["question"]).split()) for t in by_name.get(run, [])]
            titles = [t for t in named if any(normalise(answer) in bodies[t] for answer in answers)]
            if titles:
                questions.append({"question": row["question"], "answer": answers, "title": titles[0]})
                seeds[titles[0]] += 1

    mentions = Counter[str]()
    for title in seeds:
        mentions.update(
            {t for run in set(windows(bodies[title].split())) for t in by_name.get(run, []) if t not in seeds}
        )
    chosen = set(seeds)
    for title, _ in sorted(mentions.items(), key=lambda item: (-item[1], item[0])):
        if sum(sizes[t] for t in chosen) >= args.min_passages:
            break
        chosen.add(title)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    kept = frame[frame["title"].isin(chosen)]
    kept.to_parquet(args.output_dir / "knowledge.parquet", index=False)
    with (args.output_dir / "questions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
    print(f"{len(kept):,} passages of {len(chosen):,} articles ({len(seeds):,} of them named by a question)")
    print(f"{len(questions):,} questions; written to {args.output_dir}")


if __name__ == "__main__":
    main()
