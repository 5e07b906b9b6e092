"""Real passages with their own lengths: the packaged Factbook, or a Parquet file with the columns title and text."""

import random
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars

from realm_hf import RealmTokenizer
from realm_hf.data.passages.build import PassageStore, passages_from_rows
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.splitter import split_sentences
from realm_hf.data.taggers.rules import RuleTagger

from .machine import ROOT
from .rows import Settings

sys.path.insert(0, str(ROOT / "examples"))
from factbook import factbook_passages

SCRATCH = ROOT / ".cache" / "bench"
# The vocabulary (30,522 wordpieces) and, for sentence-transformers, the weights; examples/fetch_minilm.py brings both.
MINILM = ROOT / ".cache" / "minilm"
ROWS, QUICK_ROWS = 20_000, 600
MAX_LENGTH = 288


def describe_inputs(settings: Settings) -> str:
    """The corpus in a few words."""
    return settings.inputs


def load_tokenizer() -> RealmTokenizer:
    """The tokenizer of all model-side rows.

    Raises:
        SystemExit: The vocabulary is not there.
    """
    if not (MINILM / "vocab.txt").exists():
        raise SystemExit(f"There is no vocabulary in {MINILM}: run `python examples/fetch_minilm.py` first.")
    tokenizer: RealmTokenizer = RealmTokenizer.from_pretrained(MINILM)
    return tokenizer


def load_passages(settings: Settings, tokenizer: RealmTokenizer) -> PassageStore:
    """At most 20,000 passages of the corpus, drawn with a seed, in wordpieces; kept in .cache/bench.

    The Factbook has 3,124: each comes a second time with its sentences in reverse, for a beam of 5,000 needs as many
    that differ.
    """
    count = QUICK_ROWS if settings.quick else ROWS
    corpus = settings.corpus
    name = "factbook" if corpus is None else f"{corpus.stem}-{corpus.stat().st_size}"
    folder = SCRATCH / f"{name}-{count}"
    if not (folder / "passages.json").exists():
        disable_progress_bars()
        SCRATCH.mkdir(parents=True, exist_ok=True)
        rows = _factbook() if corpus is None else _read(corpus)
        if len(rows) > count:
            rows = random.Random(0).sample(rows, count)  # noqa: S311 - a sample, no secret
        columns = {column: [row[column] for row in rows] for column in ("title", "text")}
        with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
            passages_from_rows(Dataset.from_dict(columns), tokenizer, Path(work) / "store", max_length=MAX_LENGTH)
            (Path(work) / "store").rename(folder)
    return PassageStore(folder)


def make_questions(passages: PassageStore, count: int, seed: int = 0) -> list[OpenQAExample]:
    """Questions made of the passages: a name or date of a sentence is replaced by "what" and asked for.

    The Factbook has questions of its own, but a Parquet file of passages has none; both are treated alike.
    """
    tagger, rng = RuleTagger(), random.Random(seed)  # noqa: S311 - a sample, no secret
    examples: list[OpenQAExample] = []
    rows = rng.sample(range(len(passages)), len(passages))
    for row in rows:
        text = passages.rows[row]["text"]
        sentences = [text[start:end] for start, end in split_sentences(text)]
        sentence = rng.choice(sentences)
        spans = [span for span in tagger([sentence])[0] if span.end - span.start <= 30]
        if spans and 4 <= len(sentence.split()) <= 30:
            span = rng.choice(spans)
            question = f"{sentence[: span.start]}what{sentence[span.end :]}"
            examples.append(OpenQAExample(question, (sentence[span.start : span.end],)))
        if len(examples) == count:
            return examples
    raise ValueError(f"{len(passages)} passages gave only {len(examples)} questions of {count}: take a larger corpus.")


def _factbook() -> list[dict[str, str]]:
    rows = factbook_passages()
    return rows + [{"title": row["title"], "text": _reversed(row["text"])} for row in rows]


def _reversed(text: str) -> str:
    return " ".join(text[start:end] for start, end in reversed(split_sentences(text)))


def _read(corpus: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(corpus, columns=["title", "text"]).to_pylist()
    return rows
