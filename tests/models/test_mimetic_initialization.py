"""A start from nothing looks at neighbours and passes on what it sees."""

import pytest
import torch
from tiny_encoders import tiny_configuration
from transformers import RobertaConfig

from realm_hf import RealmConfig, RealmKnowledgeAugEncoder
from realm_hf.models.mimetic_initialization import DISTANCES, VALUE_SHARE, place_embeddings, turned

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


def attentions(encoder: RealmKnowledgeAugEncoder) -> list[torch.Tensor]:
    """Attention `[heads, 60, 60]` of each layer, the mean over sixteen random texts."""
    ids = torch.randint(5, 64, (16, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return [layer.mean(0) for layer in encoder.realm(input_ids=ids, output_attentions=True).attentions]


def test_the_first_layers_heads_look_one_place_before_and_behind():
    near = attentions(RealmKnowledgeAugEncoder.from_scratch(RealmConfig(**SIZES)))
    for head, distance in enumerate(DISTANCES[:2]):
        assert torch.diagonal(near[0][head], offset=distance).mean() > 0.7
    assert torch.diagonal(near[1][0], offset=-1).mean() > 0.3
    torch.manual_seed(0)
    plain = attentions(RealmKnowledgeAugEncoder(RealmConfig(**SIZES)).eval())
    assert torch.diagonal(plain[0][0], offset=-1).max() < 0.1


def test_another_head_looks_at_what_is_like_itself():
    second = attentions(RealmKnowledgeAugEncoder.from_scratch(RealmConfig(**SIZES)))[1][1]
    own = torch.diagonal(second)
    assert own.mean() > 2 * (second.sum() - own.sum()) / (60 * 59)


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16, 64])
def test_heads_of_any_width_make_finite_weights(heads: int):
    encoder = RealmKnowledgeAugEncoder.from_scratch(RealmConfig(**SIZES | {"num_attention_heads": heads}))
    for layer in attentions(encoder):
        assert torch.isfinite(layer).all()


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


def test_a_turned_place_is_the_next_one_and_like_no_other():
    table = place_embeddings(50, 16)
    for distance in (-2, -1, 1, 2):
        assert torch.allclose(table[10] @ turned(16, distance).T, table[10 + distance], atol=1e-5)
    products = place_embeddings(512, 64) @ place_embeddings(1, 64)[0]
    assert products[0] == pytest.approx(64.0, rel=1e-5)
    assert products[1:].max() < 64 / 3


def test_a_roberta_starts_as_a_bert_does():
    """Its places count from behind padding; its decoder stays the word embeddings."""
    fields = {name: value for name, value in SIZES.items() if name != "attn_implementation"}
    inner = RobertaConfig(**fields, max_position_embeddings=514, pad_token_id=1)
    encoder = RealmKnowledgeAugEncoder.from_scratch(RealmConfig(encoder_config=inner, attn_implementation="eager"))
    near = attentions(encoder)
    for head, distance in enumerate(DISTANCES[:2]):
        assert torch.diagonal(near[0][head], offset=distance).mean() > 0.7
    assert encoder.get_output_embeddings().weight is encoder.get_input_embeddings().weight


def test_another_encoder_starts_as_transformers_makes_it():
    config = RealmConfig(encoder_config=tiny_configuration("modernbert", 60))
    first, again = (RealmKnowledgeAugEncoder.from_scratch(config, seed=4) for _ in range(2))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert first(torch.tensor([[2, 9, 3]])).logits.shape == (1, 3, 60)
