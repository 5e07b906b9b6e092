"""A start from nothing looks at neighbours and passes on what it sees."""

import pytest
import torch

from realm_hf import RealmConfig, RealmKnowledgeAugEncoder
from realm_hf.models.mimetic_initialization import VALUE_SHARE, sinusoids

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": "eager",
}


def attention_by_distance(encoder: RealmKnowledgeAugEncoder) -> torch.Tensor:
    """Mean attention of the first layer to a token at distance 0, 1, ... 20."""
    ids = torch.randint(5, 64, (16, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = encoder.realm(input_ids=ids, output_attentions=True).attentions[0].mean((0, 1))
    return torch.stack([torch.diagonal(first, offset=distance).mean() for distance in range(21)])


def test_it_looks_at_neighbours_from_the_first_step():
    near = attention_by_distance(RealmKnowledgeAugEncoder.from_scratch(RealmConfig(**SIZES)))
    torch.manual_seed(0)
    plain = attention_by_distance(RealmKnowledgeAugEncoder(RealmConfig(**SIZES)).eval())
    assert near[1] > 1.5 * near[20]
    assert plain[1] == pytest.approx(float(plain[20]), rel=0.05)


def test_a_value_reaches_its_reader_as_it_was():
    attention = RealmKnowledgeAugEncoder.from_scratch(RealmConfig(**SIZES)).realm.encoder.layer[1].attention
    passed = attention.output.dense.weight @ attention.self.value.weight
    assert torch.allclose(passed, VALUE_SHARE * torch.eye(64), atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (
        RealmKnowledgeAugEncoder.from_scratch(RealmConfig(**SIZES), seed).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("realm.encoder.layer.0.attention.self.query.weight", "realm.embeddings.word_embeddings.weight"):
        assert not torch.equal(first[name], other[name])


def test_the_global_stream_of_random_numbers_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    RealmKnowledgeAugEncoder.from_scratch(RealmConfig(**SIZES))
    assert torch.equal(torch.rand(3), expected)


def test_inner_products_of_positions_fall_with_distance():
    table = sinusoids(50, 64)
    products = table @ table[0]
    assert torch.all(products[:4].diff() < 0)
    assert products[0] == pytest.approx(32.0)
