"""Encoders read as they were made: the mean of the tokens, no projection or a fitted one, unit length."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_bert import tiny_bert
from tiny_worlds import tiny_tokenizer
from transformers import BertModel

from realm_hf import RealmConfig, RealmEmbedder, RealmForPreTraining, embed_passages
from realm_hf.data import passages_from_rows
from realm_hf.generations.projection import fit_projection

OWN_READING = {"pooling_mode": "mean", "projection": "none", "normalize": True}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"), BertModel, max_position_embeddings=512)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = {"title": ["Nile", "Copper"] * 40, "text": [f"They {'sell ' * (n % 7)}number {n} here." for n in range(80)]}
    return passages_from_rows(Dataset.from_dict(rows), tiny_tokenizer(), tmp_path_factory.mktemp("p") / "s")


TEXTS = ["The river runs north to the sea.", "Copper.", "Many people speak two languages and some speak three."]


def test_own_reading_is_the_normalised_mean_of_the_hidden_states(bert):
    tower = RealmEmbedder.from_bert(bert, **OWN_READING)
    tokens = tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = BertModel.from_pretrained(bert).eval()(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        padded, ragged = tower(**tokens).projected_score, tower.encode(tokens["input_ids"], tokens["attention_mask"])
    assert tower.config.retriever_proj_size == 32 and tower.config.score_scale == 20.0
    torch.testing.assert_close(padded, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(ragged, wanted, atol=1e-6, rtol=0)
    texts = tower.encode(TEXTS, tokenizer=tiny_tokenizer())
    np.testing.assert_allclose(texts, wanted.numpy(), atol=1e-6)


def test_the_embeddings_of_a_corpus_are_those_of_its_passages(bert, store):
    tower = RealmEmbedder.from_bert(bert, **OWN_READING)
    embeddings = embed_passages(tower, store)
    inputs = {name: torch.from_numpy(array) for name, array in store.pad_candidates(np.arange(7)).items()}
    with torch.no_grad():
        np.testing.assert_allclose(embeddings[:7], tower(**inputs).projected_score.numpy(), atol=1e-6)


@pytest.mark.parametrize("projection", ["layer_norm", "linear", "none"])
@pytest.mark.parametrize("pooling_mode", ["cls", "mean"])
def test_every_reading_trains_and_comes_back_from_its_file(bert, tmp_path, pooling_mode, projection):
    size = {} if projection == "none" else {"retriever_proj_size": 8}
    reading = {"pooling_mode": pooling_mode, "projection": projection, "normalize": True, **size}
    model = RealmForPreTraining.from_bert(bert, pooler="identity", **reading)
    tower = model.embedder
    tokens = tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    embeddings = tower(**tokens).projected_score
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))
    embeddings[:, 0].sum().backward()
    without = [name for name, p in tower.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "every weight that is trained is read"
    model.save_pretrained(tmp_path)
    again = RealmForPreTraining.from_pretrained(tmp_path).embedder
    with torch.no_grad():
        assert torch.equal(again(**tokens).projected_score, tower.eval()(**tokens).projected_score)


def test_a_gradient_of_the_mean_equals_finite_differences(bert):
    tower = RealmEmbedder.from_bert(bert, pooling_mode="mean", projection="linear", retriever_proj_size=4).double()
    tokens = tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    weight = tower.realm.encoder.layer[0].output.dense.weight
    loss = lambda: tower(**tokens).projected_score.sin().sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        for row, column in ((0, 1), (5, 7)):
            around = []
            for step in (1e-5, -1e-5):
                weight[row, column] += step
                around.append(float(loss()))
                weight[row, column] -= step
            assert float(gradient[row, column]) == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_the_fitted_projection_keeps_more_than_a_random_one_and_centres(bert, store):
    reading = {"pooling_mode": "mean", "projection": "linear", "retriever_proj_size": 6}
    model = RealmForPreTraining.from_bert(bert, pooler="identity", share_embedders=False, **reading)
    whole = embed_passages(RealmEmbedder.from_bert(bert, pooling_mode="mean", projection="none"), store)
    random = embed_passages(model.embedder, store)
    kept = fit_projection([model.embedder, model.query_embedder], store)
    fitted = embed_passages(model.embedder, store)
    variance = np.var(whole, axis=0).sum()
    assert kept == pytest.approx(np.var(fitted, axis=0).sum() / variance, rel=1e-3)
    assert kept > 1.2 * np.var(random, axis=0).sum() / variance
    np.testing.assert_allclose(fitted.mean(axis=0), 0.0, atol=1e-5)
    assert torch.equal(model.query_embedder.cls.dense.weight, model.embedder.cls.dense.weight)


def test_what_cannot_be_fitted_or_read_is_refused(bert, store, tmp_path):
    without_pooler = tmp_path / "headless"
    BertModel.from_pretrained(bert, add_pooling_layer=False).save_pretrained(without_pooler)
    with pytest.raises(ValueError, match="projection is 'none', so that embeddings have the 32 dimensions"):
        RealmEmbedder(RealmConfig(hidden_size=32, num_attention_heads=2, projection="none", retriever_proj_size=16))
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_projection(RealmEmbedder.from_bert(bert, **OWN_READING), store)
    tower = RealmEmbedder.from_bert(bert, pooling_mode="mean", projection="linear", retriever_proj_size=16)
    with pytest.raises(ValueError, match="10 passages cannot fit 16 dimensions"):
        fit_projection(tower, store, samples=10)
    with pytest.raises(ValueError, match="has no pooler"):
        RealmEmbedder.from_bert(without_pooler)


def test_a_configuration_of_before_reads_as_before():
    config = RealmConfig.from_dict({"model_type": "realm", "hidden_size": 32, "retriever_proj_size": 8})
    assert (config.pooling_mode, config.projection, config.normalize, config.score_scale) == (
        "cls",
        "layer_norm",
        False,
        1.0,
    )
