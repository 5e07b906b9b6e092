"""A small made-up world, for the examples that change knowledge: towns, their passages, questions about them.

    python examples/small_world.py --output_dir runs/small_world      # a few minutes on two cores

Names, rivers, mayors and trades are drawn at random, so that nothing is right because a model has read it before: what
an answer rests on is the passages. The reader learns from questions about 60 towns and is asked about 12 others.
"""

from __future__ import annotations

import argparse
import logging
import random
from dataclasses import dataclass
from pathlib import Path

import datasets
import transformers
from datasets import Dataset

from factbook_task import start_model
from fetch_minilm import DEFAULT_FOLDER
from realm_hf import RealmForOpenQA, RealmTokenizer
from realm_hf.data import OpenQAExample, PassageStore, passages_from_rows
from realm_hf.training import OpenQATrainer, OpenQATrainingArguments

DEFAULT_WORLD = Path("runs/small_world")
TRAINED_TOWNS, ASKED_TOWNS = 60, 12
MAX_LENGTH = 80


def _words(text: str) -> list[str]:
    return text.split()


# One name, one town: names that share a part are found for each other.
FIRST = _words(
    "Amber Anchor Arrow Autumn Badger Barley Beaver Birch Blossom Canyon Cedar Cherry Clover Cobalt Copper Coral "
    "Crane Crystal Dolphin Dragon Eagle Elm Ember Falcon Fern Fox Garnet Ginger Granite Harvest Hawk Hazel Heron "
    "Honey Indigo Iron Ivory Ivy Jasmine Juniper Lantern Laurel Lavender Lemon Lily Linen Magnolia Maple Marble "
    "Meadow Mint Misty Moss Myrtle Oak Olive Opal Orchard Otter Owl Pearl Pepper Pine Plum Poppy Quartz Raven "
    "Robin Rose Ruby Sable Saffron"
)
SECOND = _words("Bay Bridge Creek Falls Field Harbor Hill Point Springs Valley")
GIVEN = _words("Anna Bela Clara David Erna Felix Greta Hugo Ida Jonas Karin Leo Marta Nils Olga Paul Rosa Stefan Vera")
FAMILY = _words("Adler Brandt Conrad Dreyer Ebert Falk Grimm Haas Jansen Keller Lorenz Maurer Petri Roth Sommer Vogt")
TRADES = _words("apples barrels bells bricks candles carpets cheese clocks glass honey knives lace paper ropes salt")
RIVERS = _words("Ander Bode Cale Dorn Eller Fulda Garn Hase Ilm Jade Leine Mulde Nette Oker Rhume Selke Unstrut")

QUESTIONS = {
    "mayor": ("Who is the mayor of {town}?", "What is the name of the mayor of {town}?"),
    "river": ("On which river does {town} lie?", "Which river flows through {town}?"),
    "trade": ("What is {town} known for?", "What does {town} sell?"),
    "year": ("When was {town} founded?", "In which year was {town} founded?"),
}


@dataclass(frozen=True)
class Town:
    """A town and what its passage says of it."""

    name: str
    facts: dict[str, str]

    def passage(self) -> str:
        """Three sentences with the four facts."""
        return (
            f"{self.name} lies on the river {self.facts['river']} and was founded in {self.facts['year']}. "
            f"The town is known for its {self.facts['trade']}. Its mayor is {self.facts['mayor']}."
        )

    def questions(self) -> list[OpenQAExample]:
        """Every question about the town."""
        return [
            OpenQAExample(words.format(town=self.name), (self.facts[field],), id=f"{self.name} {field}")
            for field, forms in QUESTIONS.items()
            for words in forms
        ]


def make_towns(seed: int = 0) -> list[Town]:
    """The towns, in the order of their passages; the last `ASKED_TOWNS` are never trained on."""
    rng = random.Random(seed)  # noqa: S311 - a made-up world
    names = [f"{first} {rng.choice(SECOND)}" for first in rng.sample(FIRST, TRAINED_TOWNS + ASKED_TOWNS)]
    return [
        Town(
            name,
            {
                "river": rng.choice(RIVERS),
                "year": str(rng.randint(1100, 1899)),
                "trade": rng.choice(TRADES),
                "mayor": f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}",
            },
        )
        for name in names
    ]


def make_world(folder: Path, weights: str, steps: int, seed: int = 0) -> Path:
    """Build the passages and fine-tune on them, or go on where that was interrupted.

    Returns:
        The directory that holds model, retriever and tokenizer.
    """
    towns = make_towns(seed)
    tokenizer = RealmTokenizer.from_pretrained(weights)
    rows = Dataset.from_dict({"title": [town.name for town in towns], "text": [town.passage() for town in towns]})
    corpus = folder / "data" / "passages"
    if not corpus.is_dir():
        passages_from_rows(rows, tokenizer, corpus, max_length=MAX_LENGTH)
    passages = PassageStore.load(corpus)
    trained, asked = towns[:TRAINED_TOWNS], towns[TRAINED_TOWNS:]
    OpenQATrainer(
        RealmForOpenQA.from_pretraining(start_model(weights, seed), seed=seed),
        OpenQATrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=3e-4,
            warmup_steps=10,
            searcher_beam_size=20,
            reader_beam_size=3,
            reader_seq_len=MAX_LENGTH + 16,
            max_query_length=32,
            eval_steps=steps // 2,
            save_steps=0,
            seed=seed,
        ),
        train_dataset=[question for town in trained for question in town.questions()],
        eval_dataset=[question for town in asked for question in town.questions()],
        processing_class=tokenizer,
        passages=passages,
    ).train(resume_from_checkpoint=(folder / "checkpoints").is_dir()).exit_if_interrupted()
    return folder / "model"


def small_world(folder: Path = DEFAULT_WORLD, weights: str = str(DEFAULT_FOLDER), steps: int = 120) -> Path:
    """The directory of the world's model, which is trained if it is not there."""
    if not (folder / "model" / "retriever.json").is_file():
        print(f"Training on a small world first, into {folder} (a few minutes).")
        make_world(folder, weights, steps)
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=DEFAULT_WORLD)
    parser.add_argument("--weights", default=str(DEFAULT_FOLDER), help="any BERT checkpoint: folder or Hub id")
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    print(make_world(args.output_dir, args.weights, args.steps))


if __name__ == "__main__":
    main()
