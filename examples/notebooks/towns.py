"""What the notebooks read: articles about made-up towns, and an encoder from nothing that is small enough to watch.

Nothing is downloaded. With your own articles leave this file out, and start from a trained BERT, such as
`google-bert/bert-base-uncased`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForPreTraining

sys.path.append(str(Path(__file__).resolve().parents[1]))

from realm_hf import RealmTokenizer
from small_world import TRAINED_TOWNS, Town, make_towns

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_articles(path: str | Path) -> list[Town]:
    """Write the articles, one a line, and return the towns. What a passage says once a traveller says again."""
    towns = make_towns()
    travellers = [
        {
            "title": "Travels",
            "text": f"I saw the {town.facts['trade']} of {town.name} on the river {town.facts['river']}.",
        }
        for town in towns
    ]
    articles = [{"title": town.name, "text": town.passage()} for town in towns] + travellers
    Path(path).write_text("".join(json.dumps(article) + "\n" for article in articles), encoding="utf-8")
    return towns


def tiny_bert(folder: str | Path, towns: list[Town]) -> str:
    """A random BERT of two layers whose vocabulary are the words of the towns' passages and questions."""
    texts = [town.passage() for town in towns] + [q.question for town in towns for q in town.questions()]
    texts.append("I saw the of on the river")
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join([*SPECIAL, *words]) + "\n", encoding="utf-8")
    RealmTokenizer(vocab=str(folder / "words.txt"), do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
    )
    BertForPreTraining(config).save_pretrained(folder)
    return str(folder)


def questions_about(towns: list[Town], trained: bool) -> list:
    """Questions about the towns to learn from, or about the others."""
    return [q for town in (towns[:TRAINED_TOWNS] if trained else towns[TRAINED_TOWNS:]) for q in town.questions()]
