"""A knowledge corpus of whole, related articles with questions that it answers, out of a larger file of passages.

    python benchmarks/wikipedia_corpus.py --articles articles.parquet --questions nq.jsonl webq.jsonl \
        --min_words 1000000 --output_dir runs/wikipedia

Reads passages with columns `title` and `text` in reading order, and questions as JSON lines (`question`, `answer`: a
list). An article is a candidate if a question is linked to it (harness/title_links.py). Candidates that most other
candidates name come first (so that the articles belong together), whole, until there are enough words. Writes
`knowledge.parquet` (a row an article: title, text) and `questions.jsonl` (question, answer, title).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import pandas as pd
from harness.title_links import TitleLinks, long_enough


def main() -> None:
    """Choose articles and questions, write both files and say what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=Path, required=True)
    parser.add_argument("--questions", type=Path, nargs="+", required=True)
    parser.add_argument("--min_words", type=int, default=1_000_000)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    frame = pd.read_parquet(args.articles)
    articles = frame.groupby("title", sort=False)["text"].agg(" ".join)
    links = TitleLinks(articles.to_dict())

    questions = []
    for path in args.questions:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            titles = links.linked(row["question"], row["answer"])
            if titles:
                questions.append(
                    {"question": row["question"], "answer": long_enough(row["answer"]), "title": titles[0]}
                )
    candidates = {question["title"] for question in questions}

    naming = Counter[str]()
    for title in candidates:
        naming.update((set(links.named(links.bodies[title])) & candidates) - {title})
    chosen: list[str] = []
    words = 0
    for title in sorted(candidates, key=lambda t: (-naming[t], t)):
        if words >= args.min_words:
            break
        chosen.append(title)
        words += len(articles[title].split())
    kept = [question for question in questions if question["title"] in set(chosen)]

    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = pd.DataFrame({"title": chosen, "text": [articles[title] for title in chosen]})
    rows.to_parquet(args.output_dir / "knowledge.parquet", index=False)
    with (args.output_dir / "questions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(question, ensure_ascii=False) + "\n" for question in kept)
    print(f"{len(chosen):,} articles of {words:,} words (of {len(candidates):,} that a question names)")
    print(f"{len(kept):,} questions; written to {args.output_dir}")


if __name__ == "__main__":
    main()
