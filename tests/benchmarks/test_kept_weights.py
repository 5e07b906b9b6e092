"""The small model that is kept with the benchmarks: it loads in float32 and reads a name where another text has it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from realm_hf import RealmTokenizer

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "weights" / "masked-lm-small"
#: A text whose span is masked, another that has it, and the span.
TEXTS = (
    ("the festival is held every year in {} .", "tourists come to {} for the festival .", "bratislava"),
    ("the album was recorded by {} in the spring .", "in the spring {} recorded an album .", "metallica"),
    ("the treaty was signed at {} in the summer .", "at {} a treaty was signed .", "westphalia"),
)


@pytest.fixture(scope="module")
def kept():
    return AutoModelForMaskedLM.from_pretrained(FOLDER).eval(), RealmTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize(("query", "passage", "span"), TEXTS)
def test_a_name_is_read_from_the_other_text(kept, query, passage, span):
    model, tokenizer = kept
    assert model.dtype == torch.float32
    labels = tokenizer(span, add_special_tokens=False).input_ids
    masked = query.format(" ".join(["[MASK]"] * len(labels)))
    scores = []
    for texts in ((masked,), (masked, passage.format(span))):
        batch = tokenizer(*texts, return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            places = model(**batch).logits[batch.input_ids == tokenizer.mask_token_id]
        scores.append(places.log_softmax(-1).gather(1, torch.tensor(labels)[:, None]).sum().item())
    # Nats that the other text is worth: 5 to 6 here, about 0 for a model that has learned frequencies alone.
    assert scores[1] - scores[0] > 2


def test_it_is_small_and_says_what_it_read():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 12e6
    assert json.loads((FOLDER / "trained.json").read_text())["tokens"] > 16e6
