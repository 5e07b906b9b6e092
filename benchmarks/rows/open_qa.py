"""What answering and fine-tuning share: one model, one corpus, one index, written down for the peer.

The passages' embeddings are random: which passages are read has no bearing on the time, and both sides find the same.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.inputs import MINILM
from harness.rows import Settings
from safetensors.torch import save_file

from realm_hf import RealmForOpenQA, RealmRetriever, RealmTokenizer
from realm_hf.data.passages.build import PassageStore
from realm_hf.data.questions.load import OpenQAExample
from rows.small_bert import make_config, save_weights, shape

PORT = "old port (transformers 4.57.6), one by one"


@dataclass(frozen=True)
class World:
    """Model and retriever of our side, and the fields from which the peer builds its own."""

    model: RealmForOpenQA
    retriever: RealmRetriever
    tokenizer: RealmTokenizer
    passages: PassageStore
    options: dict[str, Any]


def make_world(settings: Settings, passages: PassageStore, tokenizer: RealmTokenizer, beam: int) -> World:
    """Seeded weights and embeddings; `beam` passages are searched for in training, five are read."""
    fields = {"num_block_records": len(passages), "searcher_beam_size": beam, "reader_beam_size": 5}
    embeddings = np.random.default_rng(0).standard_normal((len(passages), 128), np.float32)
    torch.manual_seed(0)
    retriever = RealmRetriever(passages, tokenizer, embeddings=embeddings)
    model = RealmForOpenQA(make_config(settings, **fields), retriever)
    return World(model, retriever, tokenizer, passages, {"shape": shape(settings, **fields), "tokenizer": str(MINILM)})


def write_world(world: World, examples: list[OpenQAExample], folder: Path) -> None:
    """Weights, embeddings, texts and questions for the peer."""
    save_weights(world.model, folder / "model.safetensors")
    embeddings = world.retriever.embeddings
    assert embeddings is not None
    save_file({"block_emb": torch.from_numpy(np.asarray(embeddings))}, folder / "block_emb.safetensors")
    (folder / "blocks.json").write_text(json.dumps(list(world.passages.rows["text"])))
    questions = [{"question": example.question, "answers": example.answers} for example in examples]
    (folder / "questions.json").write_text(json.dumps(questions))
