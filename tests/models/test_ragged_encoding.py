"""Encoding without padding equals encoding with it: plans, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_hf import RealmEmbedder
from realm_hf.models.ragged_encoding import divide_chunks, equal_chunks, plan_chunks, ragged_apply, ragged_tokens


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=80),
    max_tokens=st.integers(100, 5000),
    min_tokens=st.integers(0, 1000),
)
def test_plans_hold_every_row_once_within_the_budget_and_the_padding_limit(lengths, max_tokens, min_tokens):
    chunks = plan_chunks(lengths, max_tokens, min_tokens)
    assert sorted(row for chunk in chunks for row in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        padded = lengths[chunk[0]] * len(chunk)
        assert lengths[chunk[0]] == max(lengths[row] for row in chunk)
        assert padded <= max_tokens or len(chunk) == 1
        assert padded - sum(lengths[row] for row in chunk) <= 0.1 * padded or padded <= min_tokens


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), more=st.integers(0, 60))
def test_chunks_are_divided_into_as_many_as_are_asked_for_and_keep_every_row(lengths, more):
    chunks = plan_chunks(lengths, 1000)
    divided = divide_chunks(chunks, len(chunks) + more)
    assert len(divided) == len(chunks) + more and all(divided)
    rows = [row for chunk in divided for row in chunk]
    assert list(dict.fromkeys(rows)) == [row for chunk in chunks for row in chunk]
    assert len(rows) == len(lengths) + max(0, len(divided) - len(lengths)), "a row is repeated only for want of rows"
    assert all(lengths[chunk[0]] == max(lengths[row] for row in chunk) for chunk in divided)


def test_random_lengths_waste_less_than_a_tenth_where_padding_would_waste_half():
    lengths = torch.randint(8, 289, (128,), generator=torch.Generator().manual_seed(0)).tolist()
    chunks = plan_chunks(lengths, 4096)
    padded = sum(lengths[chunk[0]] * len(chunk) for chunk in chunks)
    assert sum(lengths) / padded > 0.9
    assert sum(lengths) / (128 * max(lengths)) < 0.6


def rows(generator, count, width, vocabulary):
    lengths = torch.randint(1, width + 1, (count,), generator=generator)
    mask = (torch.arange(width) < lengths.unsqueeze(1)).long()
    return torch.randint(5, vocabulary, (count, width), generator=generator) * mask, mask


def test_with_the_chunks_of_other_ranks_values_and_gradients_stay_the_same(tiny_config):
    torch.manual_seed(0)
    model = RealmEmbedder(tiny_config).double()
    ids, mask = rows(torch.Generator().manual_seed(1), 3, 23, tiny_config.vocab_size)
    calls, found = [], []
    model.realm.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    for most in (1, 2, 7):
        calls.clear()
        model.zero_grad()
        with equal_chunks(lambda own, most=most: max(own, most)):
            embeddings = model.encode(ids, mask)
        embeddings.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append(torch.cat([embeddings.detach().flatten(), *(gradient.flatten() for gradient in gradients)]))
        assert len(calls) == most
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("max_tokens", [None, 1, 40, 100])
@pytest.mark.parametrize("segments", [False, True])
def test_chunks_give_the_embeddings_and_gradients_of_the_padded_whole(tiny_config, max_tokens, segments):
    torch.manual_seed(0)
    model = RealmEmbedder(tiny_config).double()
    ids, mask = rows(torch.Generator().manual_seed(1), 9, 23, tiny_config.vocab_size)
    types = (torch.arange(23) > 4).long().expand_as(ids) * mask if segments else None
    weights = torch.randn(9, tiny_config.retriever_proj_size, dtype=torch.float64)

    whole = model(ids, mask, types).projected_score
    (whole * weights).sum().backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    model.zero_grad()
    chunked = model.encode(ids, mask, types, max_tokens)
    (chunked * weights).sum().backward()

    torch.testing.assert_close(chunked, whole, atol=1e-12, rtol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-11, rtol=0)


def test_rows_are_cut_to_the_longest_of_their_chunk_and_come_back_in_order():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    ids, extra = torch.arange(12).view(3, 4), torch.tensor([10, 20, 30])
    seen = []

    def fn(ids, mask, segments, extra):
        assert segments is None
        seen.append((*ids.shape, mask is not None))
        return (ids if mask is None else ids * mask).sum(-1) + extra

    result = ragged_apply(fn, ids, mask, None, extra, max_tokens_per_chunk=4)
    assert result.tolist() == [0 + 1 + 10, 4 + 5 + 6 + 7 + 20, 8 + 30]
    # A chunk without padding has no mask.
    assert seen == [(1, 4, False), (2, 2, True)]


def test_a_mask_with_holes_keeps_what_lies_behind_them():
    mask = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]])
    result = ragged_apply(lambda ids, mask, _: (ids * mask).sum(-1), torch.ones(2, 4, dtype=torch.long), mask)
    assert result.tolist() == [2, 1]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        ragged_apply(lambda ids, mask, _: ids, torch.zeros(0, 4, dtype=torch.long), None)


@pytest.mark.parametrize("max_tokens", [None, 1, 40])
def test_wanted_tokens_come_by_row_and_position_without_work_on_padding(embedder, max_tokens):
    ids, mask = rows(torch.Generator().manual_seed(0), 9, 17, embedder.config.vocab_size)
    wanted = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4) & (mask == 1)
    wanted[3] = False
    encoded = []

    def tower(ids, mask, segments):
        encoded.append(ids.numel())
        return embedder.realm(ids, attention_mask=mask, token_type_ids=segments, return_dict=True).last_hidden_state

    found = ragged_tokens(tower, wanted, ids, mask, max_tokens_per_chunk=max_tokens)
    torch.testing.assert_close(found, tower(ids, mask, None)[wanted], atol=1e-5, rtol=0)
    if max_tokens == 1:
        # A row without wanted tokens is not encoded.
        assert sum(encoded[:-1]) == int(mask.sum() - mask[3].sum())


def test_a_wanted_token_behind_the_attended_ones_is_encoded_too(embedder):
    ids, mask = torch.full((1, 6), 7), torch.tensor([[1, 1, 1, 0, 0, 0]])
    wanted = torch.tensor([[0, 0, 1, 0, 1, 0]]).bool()

    def tower(ids, mask, segments):
        return embedder.realm(ids, attention_mask=mask, return_dict=True).last_hidden_state

    torch.testing.assert_close(ragged_tokens(tower, wanted, ids, mask), tower(ids, mask, None)[wanted])


def test_wanting_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to encode"):
        ragged_tokens(lambda *_: None, torch.zeros(2, 3).bool(), torch.zeros(2, 3).long(), None)
