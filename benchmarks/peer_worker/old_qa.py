"""The old port's open-domain question answering: model, passages as byte strings, index as a buffer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from old_port import load_weights, make_config
from safetensors.torch import load_file
from transformers.models.deprecated.realm.modeling_realm import RealmForOpenQA
from transformers.models.deprecated.realm.retrieval_realm import RealmRetriever
from transformers.models.deprecated.realm.tokenization_realm_fast import RealmTokenizerFast


def load_model(folder: Path, options: dict[str, Any]) -> tuple[RealmForOpenQA, RealmTokenizerFast]:
    """The model with its retriever, and the tokenizer."""
    tokenizer = RealmTokenizerFast.from_pretrained(options["tokenizer"])
    blocks = [text.encode() for text in json.loads((folder / "blocks.json").read_text())]
    model = RealmForOpenQA(make_config(options), RealmRetriever(np.array(blocks, dtype=object), tokenizer))
    load_weights(model, folder / "model.safetensors")
    model.block_emb = load_file(folder / "block_emb.safetensors")["block_emb"]
    return model, tokenizer


def load_questions(folder: Path) -> list[dict[str, Any]]:
    """Questions with their answers."""
    questions: list[dict[str, Any]] = json.loads((folder / "questions.json").read_text())
    return questions
