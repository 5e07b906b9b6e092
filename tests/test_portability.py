"""The same weights elsewhere in memory, and on a processor that heeds it: the same answer, scores within 1e-5."""

from copy import deepcopy

import pytest
import torch
from promises import move_weights, products_as_on_amd, same_answers, same_scores, weights_loaded_at
from safetensors.torch import load_file
from tiny_answerers import tiny_answerer
from tiny_worlds import tiny_model

from realm_hf import RealmEmbedder, RealmForPreTraining
from realm_hf.qa.answerer import QuestionAnswerer

OFFSETS = [4, 12, 32]
QUESTIONS = ["How many people has island number 2?", "Where lies the harbour?", "What?", "road"]


@pytest.mark.parametrize("offset", OFFSETS)
def test_embeddings_stay_within_the_tolerance_wherever_the_weights_lie(embedder, offset):
    ids = torch.arange(5, 25).view(1, 20)
    with torch.no_grad(), products_as_on_amd():
        expected = embedder.encode(ids)
        found = move_weights(deepcopy(embedder), offset).encode(ids)
    same_scores(found, expected)


def test_the_amd_products_differ_in_their_bits(embedder):
    """Else the tests around this one would prove nothing on a processor of another kind."""
    ids = torch.arange(5, 25).view(1, 20)
    with torch.no_grad(), products_as_on_amd():
        assert not torch.equal(move_weights(deepcopy(embedder), 12).encode(ids), embedder.encode(ids))


@pytest.mark.parametrize("offset", OFFSETS)
def test_answers_are_the_same_wherever_the_weights_lie(countries, offset):
    answerer = tiny_answerer(countries)
    with products_as_on_amd():
        expected = [answer.to_dict() for answer in answerer(QUESTIONS)]
        moved = QuestionAnswerer(move_weights(deepcopy(answerer.model), offset), answerer.retriever)
        assert same_answers([answer.to_dict() for answer in moved(QUESTIONS)], expected)


def test_losses_and_gradients_stay_within_the_tolerance(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with weights_loaded_at(12):
        loaded = RealmForPreTraining.from_pretrained(tmp_path)
    ids = torch.arange(5, 65).view(1, 3, 20)
    batch = {
        "query_input_ids": ids[:, 0],
        "query_attention_mask": torch.ones_like(ids[:, 0]),
        "candidate_input_ids": ids,
        "candidate_attention_mask": torch.ones_like(ids),
        "joint_input_ids": ids,
        "joint_attention_mask": torch.ones_like(ids),
        "mlm_positions": torch.tensor([[4]]),
        "mlm_labels": torch.tensor([[7]]),
    }
    results = []
    for each in (model.train(), loaded.train()):
        with products_as_on_amd():
            output = each(**batch)
            output.loss.backward()
        results.append([output.loss.detach(), *(p.grad for p in each.parameters() if p.grad is not None)])
    for found, expected in zip(*results, strict=True):
        same_scores(found, expected)


def test_what_is_stored_is_the_same_to_the_bit_wherever_it_was_loaded(embedder, tmp_path):
    embedder.save_pretrained(tmp_path / "first")
    with weights_loaded_at(12):
        loaded = RealmEmbedder.from_pretrained(tmp_path / "first")
    assert {parameter.data_ptr() % 64 for parameter in loaded.parameters()} == {12}
    loaded.save_pretrained(tmp_path / "again")
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
