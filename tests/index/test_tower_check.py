"""The one measure of whether a tower made given embeddings: rounding stays below it, other weights do not."""

import copy

import numpy as np
import pytest
import torch
from tiny_worlds import tiny_model

from realm_hf.generations.embedding import embed_passages
from realm_hf.generations.tower_check import tower_movements, tower_tolerance
from realm_hf.models.precision import encoding_in


@pytest.fixture
def tower():
    return tiny_model().embedder.eval()


def test_the_same_tower_moves_nothing_that_float32_does_not_explain(tower, tiny_passages):
    stored = embed_passages(tower, tiny_passages, max_tokens_per_batch=100)

    moved = tower_movements(tower, tiny_passages, stored)

    assert moved.shape == (len(tiny_passages),)
    assert moved.max() < 1e-5 < tower_tolerance("float32")


def test_a_row_is_judged_by_its_own_length(tower, tiny_passages):
    rows = np.array([5, 2])
    stored = embed_passages(tower, tiny_passages, rows=rows) * np.array([[2.0], [1.0]], np.float32)

    assert tower_movements(tower, tiny_passages, stored, rows=rows) == pytest.approx([0.5, 0.0], abs=1e-5)


def test_rows_stored_in_float16_pass_as_float32(tower, tiny_passages):
    stored = embed_passages(tower, tiny_passages).astype(np.float16)

    assert 0 < tower_movements(tower, tiny_passages, stored).max() < tower_tolerance("float32")


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bfloat16_stays_within_its_own_tolerance_and_beyond_that_of_float32(tower, tiny_passages, weights):
    with encoding_in("bfloat16", torch.device("cpu")):
        stored = embed_passages(copy.deepcopy(tower).to(weights), tiny_passages)

    moved = tower_movements(tower, tiny_passages, stored)

    assert tower_tolerance("float32") < moved.max() < tower_tolerance("bfloat16") == tower_tolerance()


def test_other_weights_move_every_row_far_beyond_any_tolerance(tower, tiny_passages):
    stored = embed_passages(tiny_model(seed=1).embedder, tiny_passages)

    assert tower_movements(tower, tiny_passages, stored).min() > 10 * tower_tolerance()


def test_a_coarser_type_is_allowed_more():
    assert tower_tolerance("float32") < tower_tolerance("tf32") < tower_tolerance("bfloat16") < 0.1
