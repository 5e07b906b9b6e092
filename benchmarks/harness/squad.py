"""SQuAD as a corpus of paragraphs and questions, from the three Parquet files that the programs are given.

`passages.parquet` has title and text, a paragraph a row, those of one article in a row; the questions have question,
answer (a list) and passage, the row of the paragraph that they were asked about.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, disable_progress_bars
from transformers import BertConfig, BertForMaskedLM, set_seed

from realm_hf import RealmTokenizer
from realm_hf.data.passages.build import PassageStore, passages_from_rows
from realm_hf.data.questions.load import OpenQAExample


@dataclass(frozen=True)
class Questions:
    """Questions with the rows of the paragraphs that they were asked about."""

    examples: list[OpenQAExample]
    gold: list[int]

    @classmethod
    def read(cls, path: Path) -> Questions:
        """All questions of a Parquet file."""
        frame = pd.read_parquet(path)
        pairs = zip(frame["question"], frame["answer"], strict=True)
        return cls([OpenQAExample(q, tuple(dict.fromkeys(map(str, a)))) for q, a in pairs], frame["passage"].tolist())

    def sample(self, count: int, seed: int) -> Questions:
        """`count` of them, drawn without replacement; all, in their order, where there are no more."""
        if count >= len(self.gold):
            return self
        return self.take(random.Random(seed).sample(range(len(self.gold)), count))  # noqa: S311 - a sample, no secret

    def take(self, places: Sequence[int]) -> Questions:
        """Those at `places`."""
        return Questions([self.examples[place] for place in places], [self.gold[place] for place in places])

    def with_gold(self) -> list[OpenQAExample]:
        """The questions, each with the row of its paragraph as a gold passage."""
        return [replace(example, gold=(row,)) for example, row in zip(self.examples, self.gold, strict=True)]

    @property
    def texts(self) -> list[str]:
        """What is asked."""
        return [example.question for example in self.examples]


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name the files."""
    for name in ("passages", "train", "dev"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="a Parquet file")


def store_paragraphs(
    file: Path, tokenizer: RealmTokenizer, folder: Path, max_length: int, rows: np.ndarray | None = None
) -> PassageStore:
    """One passage a paragraph, so that the row numbers of the questions hold; made once.

    Args:
        file: `passages.parquet`.
        tokenizer: Of the towers.
        folder: Where the passages are kept.
        max_length: Wordpieces of a passage; the rest is cut.
        rows: Rows of the file to take, in their order; all by default.

    Raises:
        SystemExit: Passages were left out, or the folder holds others.
    """
    frame = pd.read_parquet(file)[["title", "text"]]
    frame = frame if rows is None else frame.iloc[rows]
    if not (folder / "passages.json").is_file():
        disable_progress_bars()
        passages_from_rows(Dataset.from_pandas(frame, preserve_index=False), tokenizer, folder, max_length=max_length)
    passages = PassageStore.load(folder)
    if len(passages) != len(frame) or passages.max_length != max_length:
        raise SystemExit(
            f"{folder} holds {len(passages)} passages of at most {passages.max_length} wordpieces, not {len(frame)} "
            f"of {max_length}: remove the folder, or see whether empty paragraphs were left out."
        )
    return passages


def random_bert(folder: Path, vocabulary: int, seed: int) -> str:
    """A random BERT, 4 layers of 256: clean of any text that its authors may have seen."""
    set_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)
