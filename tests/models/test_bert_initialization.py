"""`from_bert` takes any BERT checkpoint, all of its weights, and says what a checkpoint lacks."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, DistilBertConfig

from realm_hf import RealmConfig, RealmEmbedder, RealmForPreTraining, RealmKnowledgeAugEncoder, RealmScorer

IDS = torch.tensor([[2, 17, 30, 3], [2, 40, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def save_bert(path, model_class=BertForPreTraining, layout="safetensors", **fields):
    torch.manual_seed(3)
    fields = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    } | fields
    bert = model_class(BertConfig(vocab_size=50, layer_norm_eps=1e-6, **fields)).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    bert.save_pretrained(path)
    if layout == "bin":
        (path / "model.safetensors").unlink()
        torch.save(bert.state_dict(), path / "pytorch_model.bin")
    return bert


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("model_class", [BertForPreTraining, BertForMaskedLM])
def test_the_encoder_is_the_checkpoints_masked_language_model(tmp_path, model_class, layout):
    bert = save_bert(tmp_path, model_class, layout)
    pooler = "checkpoint" if model_class is BertForPreTraining else "identity"
    model = RealmForPreTraining.from_bert(tmp_path, retriever_proj_size=16, pooler=pooler)
    outputs = bert(IDS, attention_mask=MASK)
    logits = outputs.prediction_logits if model_class is BertForPreTraining else outputs.logits
    torch.testing.assert_close(model.encoder(IDS, MASK).logits, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("model_class", [BertForPreTraining, BertModel])
def test_the_embedder_projects_the_checkpoints_pooled_output(tmp_path, model_class, layout):
    bert = save_bert(tmp_path, model_class, layout)
    model = RealmEmbedder.from_bert(tmp_path, retriever_proj_size=16)
    base = bert if model_class is BertModel else bert.bert
    expected = model.cls(base(IDS, attention_mask=MASK).pooler_output)
    torch.testing.assert_close(model(IDS, MASK).projected_score, expected, atol=1e-5, rtol=0)


def test_configuration_comes_from_the_checkpoint_but_for_the_overrides(tmp_path):
    save_bert(tmp_path)
    config = RealmForPreTraining.from_bert(tmp_path, score_scale=0.1, marginalization="span").config
    assert type(config) is RealmConfig
    assert (config.hidden_act, config.hidden_size, config.layer_norm_eps, config.vocab_size) == ("gelu", 32, 1e-6, 50)
    assert (config.score_scale, config.marginalization, config.retriever_proj_size) == (0.1, "span", 128)


def test_without_a_prediction_head_the_head_starts_from_the_word_embeddings(tmp_path):
    bert = save_bert(tmp_path, BertModel)
    model = RealmKnowledgeAugEncoder.from_bert(tmp_path)
    head = model.cls.predictions
    assert head.decoder.weight is model.realm.embeddings.word_embeddings.weight
    assert torch.equal(head.decoder.weight, bert.embeddings.word_embeddings.weight)
    hidden = torch.nn.functional.gelu(bert(IDS, attention_mask=MASK).last_hidden_state)
    normed = torch.nn.functional.layer_norm(hidden, (32,), eps=1e-6)
    torch.testing.assert_close(model(IDS, MASK).logits, normed @ head.decoder.weight.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [16, 48])
def test_an_identity_pooler_keeps_the_geometry_of_cls(tmp_path, size):
    bert = save_bert(tmp_path, BertModel, initializer_range=0.02)
    model = RealmEmbedder.from_bert(tmp_path, pooler="identity", retriever_proj_size=size, seed=5)
    weight = model.cls.dense.weight
    gram = weight @ weight.T if size <= 32 else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(min(size, 32)), atol=1e-5, rtol=0)
    # tanh is linear there: the embedding is the layer normalization of the projected [CLS].
    cls = bert(IDS, attention_mask=MASK).last_hidden_state[:, 0]
    expected = torch.nn.functional.layer_norm(cls @ weight.T, (size,), eps=1e-12)
    cosine = torch.nn.functional.cosine_similarity(model(IDS, MASK).projected_score, expected)
    assert cosine.min() > 0.999


def test_all_towers_start_equal_and_untied_towers_are_two(tmp_path):
    save_bert(tmp_path)
    for model in (
        RealmForPreTraining.from_bert(tmp_path, share_embedders=False, pooler="identity"),
        RealmScorer.from_bert(tmp_path, share_embedders=False, pooler="identity"),
    ):
        query, passage = model.query_embedder, model.embedder
        assert torch.equal(query(IDS, MASK).projected_score, passage(IDS, MASK).projected_score)
        assert query.cls.dense.weight is not passage.cls.dense.weight


def test_the_seed_decides_the_projection_and_leaves_the_global_generator_alone(tmp_path):
    save_bert(tmp_path)
    before = torch.random.get_rng_state()
    first, again, other = (RealmEmbedder.from_bert(tmp_path, seed=seed).cls.dense.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_unread_parts_are_frozen_and_the_rest_is_trainable(tmp_path):
    save_bert(tmp_path)
    model = RealmForPreTraining.from_bert(tmp_path)
    fresh = RealmForPreTraining(model.config)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in fresh.named_parameters() if p.requires_grad
    }


def test_fewer_layers_than_the_checkpoint_has_are_allowed_and_more_are_refused(tmp_path):
    save_bert(tmp_path)
    assert len(RealmEmbedder.from_bert(tmp_path, num_hidden_layers=1).realm.encoder.layer) == 1
    with pytest.raises(ValueError, match=r"lacks 16 BERT weights.*more layers"):
        RealmEmbedder.from_bert(tmp_path, num_hidden_layers=3)


def test_a_checkpoint_without_a_pooler_asks_for_the_identity(tmp_path):
    save_bert(tmp_path, BertForMaskedLM)
    with pytest.raises(ValueError, match="has no pooler: pass `pooler='identity'`"):
        RealmForPreTraining.from_bert(tmp_path)


def test_the_encoder_alone_needs_no_pooler(tmp_path):
    save_bert(tmp_path, BertForMaskedLM)
    assert RealmKnowledgeAugEncoder.from_bert(tmp_path)(IDS, MASK).logits.shape == (2, 4, 50)


def test_a_checkpoint_without_bert_weights_is_refused(tmp_path):
    save_bert(tmp_path)
    torch.save({"classifier.weight": torch.zeros(2, 2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="BERT weights"):
        RealmEmbedder.from_bert(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    DistilBertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"type 'distilbert'.*start from type 'bert'"):
        RealmEmbedder.from_bert(tmp_path)


def test_a_misspelt_override_is_named(tmp_path):
    save_bert(tmp_path)
    with pytest.raises(ValueError, match="no field projection_size"):
        RealmEmbedder.from_bert(tmp_path, projection_size=64)


def test_an_unknown_pooler_is_named(tmp_path):
    with pytest.raises(ValueError, match="'mean': choose"):
        RealmEmbedder.from_bert(tmp_path, pooler="mean")
