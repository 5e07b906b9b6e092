"""Questions of people who did not see the passage: asked of encyclopedia articles, judged by answer string.

The articles come as a Parquet file of passages (`title`, `text`), those of an article in a row in reading order; each
row is a passage. The questions come as files of their own, and those are asked that are linked to an article of the
corpus (harness/title_links.py). A passage of any article that holds an answer counts as found; `in_article` counts
those of the article that the question names alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, disable_progress_bars

from realm_hf import RealmForPreTraining, RealmRetriever, RealmTokenizer
from realm_hf.data.passages.build import PassageStore, passages_from_rows
from realm_hf.data.questions.load import OpenQAExample, load_questions
from realm_hf.storage.files import file_sha256, json_sha256
from realm_hf.training.retrieval_evaluation import RetrievalQuestions

from .passage_vectors import passage_vectors
from .results import Line, read_lines, write_lines
from .retrieval import DEPTH, KS, means, sums_by_article
from .title_links import LinkedQuestion, TitleLinks, linked_questions

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from bm25 import bm25_rows

_SHOWN = 12  # questions, when they are looked for


class ArticleQuestions:
    """The questions, and the passages that are searched; both are made once.

    Args:
        articles: The Parquet file.
        files: Of questions, as [`load_questions`] reads them.
        tokenizer: Of the towers.
        folder: Where everything is kept.
        max_length: Wordpieces of a passage, special tokens included; the rest is cut.
        num_proc: Processes that tokenize.

    Raises:
        SystemExit: No question is linked to an article, or the folder holds passages of another length.
    """

    def __init__(
        self,
        articles: Path,
        files: Sequence[Path],
        tokenizer: RealmTokenizer,
        folder: Path,
        *,
        max_length: int,
        num_proc: int = 1,
    ):
        self.tokenizer = tokenizer
        self.asked = asked_questions(articles, files, folder / "questions")
        place = folder / f"articles-{_sha256([articles])}-{max_length}"
        if not (place / "passages.json").is_file():
            disable_progress_bars()
            rows = Dataset.from_pandas(pd.read_parquet(articles)[["title", "text"]], preserve_index=False)
            passages_from_rows(rows, tokenizer, place, max_length=max_length, num_proc=num_proc)
        self.passages = PassageStore.load(place)
        self.names = ", ".join(file.stem for file in files)
        titles = [question.title for question in self.asked]
        #: Of each question a number for its article.
        self.articles = np.unique(titles, return_inverse=True)[1]

    def settings(self) -> dict[str, Any]:
        """What a line was measured on."""
        texts = [[each.example.question, each.example.answers] for each in self.asked]
        return {
            "passages": f"{len(self.passages)} of {self.passages.fingerprint}",
            "questions": len(self.asked),
            "articles": int(self.articles.max()) + 1,
            "asked": f"{self.names} {json_sha256({'questions': texts})[:12]}",
        }

    def line_of_bm25(self) -> Line:
        """The library bm25s on titles and texts."""
        depth = min(DEPTH, len(self.passages))
        return self.figures(bm25_rows(self.passages, [each.example.question for each in self.asked], depth))

    def line(self, model: RealmForPreTraining, encode_dtype: str) -> Line:
        """What the towers of a model find, by exact search.

        Args:
            model: Its towers embed passages and questions.
            encode_dtype: In what the passages are embedded.
        """
        model.eval()
        vectors = passage_vectors(model, self.passages, encode_dtype)
        retriever = RealmRetriever(self.passages, self.tokenizer, embeddings=vectors)
        return self.figures(self._questions.search(model.query_embedder, retriever, DEPTH))

    def figures(self, rows: np.ndarray) -> Line:
        """A line from what was found.

        Args:
            rows: Best first, `[Q, depth]`, negative where there is nothing more; at most DEPTH columns.
        """
        rows = np.pad(rows, ((0, 0), (0, DEPTH - rows.shape[1])), constant_values=-1)
        numbers = range(len(self.asked))
        ranks = self._questions.judge(numbers, rows).ranks()
        own = np.array(
            [
                [row >= 0 and self.passages.title(row) == question.title for row in found]
                for found, question in zip(rows.tolist(), self.asked, strict=True)
            ]
        )
        in_article = self._questions.judge(numbers, np.where(own, rows, -1)).ranks()
        sums = sums_by_article(ranks, self.articles)
        return {**means(sums), "in_article": means(sums_by_article(in_article, self.articles)), "by_article": sums}

    @cached_property
    def _questions(self) -> RetrievalQuestions:
        return RetrievalQuestions([each.example for each in self.asked], self.passages, self.tokenizer)


def asked_questions(articles: Path, files: Sequence[Path], folder: Path) -> list[LinkedQuestion]:
    """The questions that are linked to an article; looked for once, and kept as `<hash>.jsonl`.

    Args:
        articles: The Parquet file.
        files: Of questions.
        folder: Where they are kept.

    Raises:
        SystemExit: There is none.
    """
    place = folder / f"{_sha256([articles, *files])}.jsonl"
    if not place.is_file():
        texts = pd.read_parquet(articles).groupby("title", sort=False)["text"].agg(" ".join)
        examples = [example for file in files for example in load_questions(file)]
        found = linked_questions(examples, TitleLinks(texts.to_dict()))
        if not found:
            raise SystemExit(f"None of {len(examples)} questions is linked to one of {len(texts)} articles.")
        lines = [{"question": e.example.question, "answer": e.example.answers, "title": e.title} for e in found]
        write_lines(place, lines)
        print(
            f"{len(found):,} of {len(examples):,} questions are linked to {len({e.title for e in found}):,} articles:"
        )
        for line in lines[:: -(-len(lines) // _SHOWN)]:
            print(f"  {line['question']} {', '.join(line['answer'])}: {line['title']}")
    return [LinkedQuestion(OpenQAExample(r["question"], tuple(r["answer"])), r["title"]) for r in read_lines(place)]


def in_article_table(lines: Sequence[Line], order: Sequence[str]) -> list[str]:
    """Lines of Markdown: recall where a passage must be of the article that the question names; means over seeds.

    Args:
        lines: Each with `arm` and `in_article`.
        order: The arms, in the order of the table.
    """
    names = [f"recall@{k}" for k in KS]
    parts = [f"| in the article that is named | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for arm in order:
        found = [line["in_article"] for line in lines if line["arm"] == arm]
        if found:
            figures = (f"{np.mean([each[name] for each in found]):.1f}" for name in names)
            parts.append(f"| {arm} | {' | '.join(figures)} |")
    return parts


def _sha256(files: Sequence[Path]) -> str:
    return json_sha256({"files": [file_sha256(file) for file in files]})[:12]
