"""Towers, encoder and reader of any encoder of transformers: each property for each family."""

import pytest
import torch
from tiny_encoders import FAMILIES, TEXT, save_encoder, tiny_configuration, train_tokenizer
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, DistilBertConfig, GPT2Config, T5Config

from realm_hf import (
    RealmConfig,
    RealmEmbedder,
    RealmForOpenQA,
    RealmForPreTraining,
    RealmKnowledgeAugEncoder,
    RealmReader,
)
from realm_hf.models.any_encoder import positions_of
from realm_hf.models.modeling_any_tower import RealmAnyTower
from realm_hf.models.tower_files import same_tower, tower_of_weights

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {family: save_encoder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def padded(tokenizer, texts, pairs=None):
    batch = tokenizer(texts, pairs, padding=True, return_tensors="pt", return_token_type_ids=True)
    return batch.input_ids, batch.attention_mask, batch.token_type_ids


def pre_training_batch(tokenizer):
    """Two queries of unequal length, three candidates each, two masked positions."""
    query_ids, query_mask, _ = padded(tokenizer, [TEXT[0], TEXT[3][:30]])
    candidates, candidate_mask, segments = padded(tokenizer, ["", "Seine", "Tower"] * 2, ["", TEXT[1], TEXT[2]] * 2)
    positions = torch.tensor([[1, 3], [2, 0]])
    labels = torch.tensor([[int(query_ids[0, 1]), int(query_ids[0, 3])], [int(query_ids[1, 2]), -100]])
    query_ids[0, [1, 3]] = query_ids[1, 2] = tokenizer.mask_token_id
    joint_ids, joint_mask, joint_segments = padded(
        tokenizer, [TEXT[0]] * 3 + [TEXT[3][:30]] * 3, ["", TEXT[1], TEXT[2]] * 2
    )
    joint_ids[:3, [1, 3]] = tokenizer.mask_token_id
    joint_ids[3:, 2] = tokenizer.mask_token_id
    return {
        "query_input_ids": query_ids,
        "query_attention_mask": query_mask,
        "candidate_input_ids": candidates.view(2, 3, -1),
        "candidate_attention_mask": candidate_mask.view(2, 3, -1),
        "candidate_token_type_ids": segments.view(2, 3, -1),
        "joint_input_ids": joint_ids.view(2, 3, -1),
        "joint_attention_mask": joint_mask.view(2, 3, -1),
        "joint_token_type_ids": joint_segments.view(2, 3, -1),
        "mlm_positions": positions,
        "mlm_labels": labels,
    }


def reader_batch(tokenizer):
    ids, mask, segments = padded(tokenizer, ["Which river?", "What is it?"], [TEXT[1], TEXT[3][:30]])
    body = torch.zeros_like(mask, dtype=torch.bool)
    for row in range(2):
        last = int(mask[row].sum()) - 1
        body[row, last - 6 : last] = True
    return ids, mask, segments, body


@every_family
def test_the_encoder_predicts_as_the_masked_language_model_does(checkpoints, family):
    original = AutoModelForMaskedLM.from_pretrained(checkpoints[family]).eval()
    encoder = RealmKnowledgeAugEncoder.from_encoders(encoder=checkpoints[family])
    ids, mask, _ = padded(train_tokenizer(family), TEXT[:3])
    with torch.no_grad():
        expected, logits = original(ids, attention_mask=mask).logits, encoder(ids, mask).logits
        chosen = encoder(ids, mask, mlm_positions=torch.tensor([[2, 5]] * 3)).logits
    used = mask.bool()
    torch.testing.assert_close(logits[used], expected[used], atol=1e-6, rtol=0)
    torch.testing.assert_close(chosen, expected[:, [2, 5]], atol=1e-5, rtol=0)
    assert expected[used].std() > 0.1


@every_family
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_embedding_is_what_the_encoder_gives_pooled_and_projected(checkpoints, family, pooling):
    original = AutoModel.from_pretrained(checkpoints[family]).eval()
    embedder = RealmEmbedder.from_encoders(
        embedder=checkpoints[family], pooling_mode=pooling, projection="none", normalize=True
    )
    ids, mask, _ = padded(train_tokenizer(family), TEXT[:3])
    with torch.no_grad():
        states = original(ids, attention_mask=mask).last_hidden_state
        pooled = states[:, 0] if pooling == "cls" else (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = torch.nn.functional.normalize(pooled, dim=-1)
        torch.testing.assert_close(embedder(ids, mask).projected_score, expected, atol=1e-5, rtol=0)
    assert embedder.config.score_scale == 20.0
    # Three texts, three embeddings.
    assert (expected @ expected.T - torch.eye(3)).max() < 0.9999


@every_family
def test_gradients_are_those_of_finite_differences(checkpoints, family):
    """Of pre-training and of reading, along random directions of all weights that are trained."""
    tokenizer = train_tokenizer(family)
    batch = pre_training_batch(tokenizer)
    model = RealmForPreTraining.from_encoders(
        embedder=checkpoints[family], encoder=checkpoints[family], retriever_proj_size=8
    ).double()
    ids, mask, segments, body = reader_batch(tokenizer)
    reader = RealmReader.from_encoders(encoder=checkpoints[family], span_hidden_size=8, max_span_width=3).double()

    def read():
        return torch.tanh(reader.score_spans(ids, mask, segments, body).logits).sum()

    # ModernBERT's attention computes in float32 whatever its weights are: a longer step, and less asked of it.
    size, close = (1e-5, 1e-3) if family == "modernbert" else (1e-6, 1e-4)
    for trained, loss in ((model, lambda: model(**batch).loss), (reader, read)):
        weights = [weight for weight in trained.parameters() if weight.requires_grad]
        value = loss()
        value.backward()
        assert all(weight.grad is not None for weight in weights), "a weight is trained, but nothing reads it"
        # A ReLU whose kink lies within a step spoils that direction (and which words these tokenizers learn changes
        # from process to process, so no seed can promise that none does); a wrong gradient spoils every direction.
        agree = 0
        for direction_seed in range(3):
            generator = torch.Generator().manual_seed(direction_seed)
            direction = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
            slope = sum((weight.grad * step).sum() for weight, step in zip(weights, direction, strict=True))
            moved = []
            with torch.no_grad():
                for sign in (1.0, -2.0):
                    for weight, step in zip(weights, direction, strict=True):
                        weight.add_(sign * size * step)
                    moved.append(loss())
                for weight, step in zip(weights, direction, strict=True):
                    weight.add_(size * step)
            measured = (moved[0] - moved[1]) / (2 * size)
            agree += bool(slope.abs() > 1e-3) and torch.allclose(measured, slope, rtol=close, atol=1e-6)
        assert agree >= 2


@every_family
def test_ragged_equals_padded(checkpoints, family):
    """Chunks of one row and the padded whole give the same, in all three kinds of model."""
    tokenizer = train_tokenizer(family)
    ids, mask, segments, body = reader_batch(tokenizer)
    assert mask.sum(1).unique().numel() == 2, "rows of one length prove nothing"
    with torch.no_grad():
        embedder = RealmEmbedder.from_encoders(embedder=checkpoints[family], retriever_proj_size=8).double()
        whole = embedder(ids, mask, segments).projected_score
        for tokens in (1, 10_000):
            ragged = embedder.encode(ids, mask, segments, max_tokens_per_chunk=tokens)
            torch.testing.assert_close(ragged, whole, atol=1e-9, rtol=0)

        encoder = RealmKnowledgeAugEncoder.from_encoders(encoder=checkpoints[family]).double()
        rows = torch.tensor([[1, 4], [3, 0]])
        expected = encoder(ids, mask, segments).logits.gather(
            1, rows[..., None].expand(-1, -1, encoder.config.vocab_size)
        )
        states = encoder.hidden_states_at(rows, ids, mask, segments, max_tokens_per_chunk=1)
        torch.testing.assert_close(encoder.cls(states), expected, atol=1e-9, rtol=0)

        reader = RealmReader.from_encoders(encoder=checkpoints[family], span_hidden_size=8, max_span_width=3).double()
        alone = [
            reader.score_spans(ids[[r], :n], None, segments[[r], :n], body[[r], :n]).logits
            for r, n in enumerate(mask.sum(1).tolist())
        ]
        spans = reader.score_spans(ids, mask, segments, body, max_tokens_per_chunk=10_000)
        torch.testing.assert_close(spans.logits, torch.cat(alone), atol=1e-9, rtol=0)


@every_family
def test_saved_and_loaded_it_computes_the_same(checkpoints, family, tmp_path):
    batch = pre_training_batch(train_tokenizer(family))
    model = RealmForPreTraining.from_encoders(
        embedder=checkpoints[family], encoder=checkpoints[family], retriever_proj_size=8, share_embedders=False
    )
    model.save_pretrained(tmp_path / "model")
    loaded = RealmForPreTraining.from_pretrained(tmp_path / "model")
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    assert str(checkpoints[family]) not in (tmp_path / "model" / "config.json").read_text()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    decoder = loaded.encoder.get_output_embeddings()
    assert decoder.weight is loaded.encoder.get_input_embeddings().weight

    embedder = model.query_embedder
    embedder.save_pretrained(tmp_path / "embedder")
    assert same_tower(RealmEmbedder.from_pretrained(tmp_path / "embedder"), embedder)
    # A snapshot of training holds weights only; buffers are made anew.
    again = tower_of_weights(embedder.config.to_dict(), embedder.state_dict())
    ids, mask = batch["query_input_ids"], batch["query_attention_mask"]
    with torch.no_grad():
        assert torch.equal(again(ids, mask).projected_score, embedder(ids, mask).projected_score)


@every_family
def test_fine_tuning_starts_from_what_was_pre_trained(checkpoints, family):
    model = RealmForPreTraining.from_encoders(
        embedder=checkpoints[family], encoder=checkpoints[family], retriever_proj_size=8
    )
    qa = RealmForOpenQA.from_pretraining(model)
    assert same_tower(qa.embedder, model.embedder)
    ours, theirs = qa.reader.realm.state_dict(), model.encoder.realm.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@every_family
def test_more_words_can_be_added(checkpoints, family, tmp_path):
    model = RealmForPreTraining.from_encoders(
        embedder=checkpoints[family], encoder=checkpoints[family], retriever_proj_size=8
    )
    words = model.config.vocab_size + 7
    model.resize_token_embeddings(words)
    ids = torch.tensor([[words - 1, words - 2]])
    assert model.encoder(ids).logits.shape == (1, 2, words)
    model.save_pretrained(tmp_path)
    loaded = RealmForPreTraining.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encoder(ids).logits, model.encoder(ids).logits)
    torch.testing.assert_close(loaded.embedder(ids).projected_score, model.embedder(ids).projected_score)


@every_family
def test_the_last_position_can_be_used_and_no_further(family):
    """What the configuration says of positions is what the encoder has."""
    config = tiny_configuration(family, 50)
    assert positions_of(config) == 64
    tower = RealmAnyTower.from_config(config).eval()
    ids = torch.full((1, 64), 9)
    assert tower(ids).last_hidden_state.shape == (1, 64, 32)
    if family not in ("modernbert", "deberta-v2"):  # whose positions are relative
        with pytest.raises((IndexError, RuntimeError)):
            tower(torch.full((1, 65), 9))


def test_embedder_and_encoder_may_be_of_different_kinds_and_sizes():
    roberta, modern = tiny_configuration("roberta", 50), tiny_configuration("modernbert", 60)
    modern.hidden_size = 48
    config = RealmConfig(embedder_config=roberta, encoder_config=modern, retriever_proj_size=8)
    assert (config.hidden_size, config.encoder_hidden_size, config.max_position_embeddings) == (32, 48, 64)
    qa = RealmForOpenQA(config).eval()
    assert qa.reader.qa_outputs.dense_intermediate.in_features == 48
    assert qa.embedder(torch.tensor([[1, 9, 2]])).projected_score.shape == (1, 8)


def test_without_other_encoders_the_configuration_has_no_entry_of_them(tmp_path):
    config = RealmConfig()
    assert not {"embedder_config", "encoder_config"} & set(config.to_dict())
    config.save_pretrained(tmp_path)
    assert "embedder_config" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("part", ["embedder_config", "encoder_config"])
def test_a_file_may_not_name_code_of_a_repository_inside_an_encoder(part):
    inner = {"model_type": "roberta", "attn_implementation": "somebody/kernels"}
    with pytest.raises(ValueError, match="somebody/kernels"):
        RealmConfig.from_dict({"model_type": "realm", part: inner})


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (GPT2Config(), "'gpt2', a decoder"),
        (T5Config(), "'t5', a decoder"),
        (BertConfig(is_decoder=True), "'bert', a decoder"),
        ({"model_type": "no-such-thing"}, "'no-such-thing', which transformers does not know"),
    ],
    ids=str,
)
def test_a_decoder_is_refused(encoder, message):
    with pytest.raises(ValueError, match=message):
        RealmConfig(embedder_config=encoder)


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded before the mistake was found")

    monkeypatch.setattr(AutoModel, "from_pretrained", refuse)
    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", refuse)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_bad_pairs_are_refused_before_anything_is_loaded(checkpoints, tmp_path):
    roberta, modern = checkpoints["roberta"], checkpoints["modernbert"]
    with pytest.raises(ValueError, match=r"different tokenizers .*give two encoders of one tokenizer"):
        RealmForPreTraining.from_encoders(embedder=roberta, encoder=modern)

    GPT2Config(vocab_size=500).save_pretrained(tmp_path / "decoder")
    with pytest.raises(ValueError, match=r"The embedder .*decoder' is of type 'gpt2', a decoder"):
        RealmForPreTraining.from_encoders(embedder=tmp_path / "decoder", encoder=roberta)

    tiny_configuration("roberta", 400).save_pretrained(tmp_path / "hollow")
    train_tokenizer("roberta").save_pretrained(tmp_path / "hollow")
    with pytest.raises(ValueError, match=r"The encoder .*hollow' has no weights"):
        RealmForPreTraining.from_encoders(embedder=roberta, encoder=tmp_path / "hollow")

    without_mask = save_encoder(tmp_path / "maskless", "modernbert")
    tokenizer = train_tokenizer("modernbert")
    tokenizer.mask_token = None
    tokenizer.save_pretrained(without_mask)
    with pytest.raises(ValueError, match="has no mask token"):
        RealmForPreTraining.from_encoders(embedder=without_mask, encoder=without_mask)

    for file in ("tokenizer.json", "tokenizer_config.json"):
        (without_mask / file).unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        RealmEmbedder.from_encoders(embedder=without_mask)

    small = save_encoder(tmp_path / "small", "distilbert")
    DistilBertConfig(vocab_size=20, dim=32, n_heads=2).save_pretrained(small)
    with pytest.raises(ValueError, match=r"has \d+ tokens, the embedder 20"):
        RealmEmbedder.from_encoders(embedder=small)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_parts_and_fields_are_checked_by_name(checkpoints):
    roberta = checkpoints["roberta"]
    with pytest.raises(ValueError, match="takes embedder and encoder, but it was given embedder"):
        RealmForPreTraining.from_encoders(embedder=roberta)
    with pytest.raises(ValueError, match="takes encoder, but it was given neither"):
        RealmReader.from_encoders()
    with pytest.raises(ValueError, match="no field pooling, score"):
        RealmEmbedder.from_encoders(embedder=roberta, score=1, pooling="mean")


def test_an_encoder_without_a_prediction_head_is_refused(checkpoints, tmp_path):
    AutoModel.from_pretrained(checkpoints["roberta"]).save_pretrained(tmp_path)
    train_tokenizer("roberta").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d weights of a RobertaForMaskedLM, 'lm_head"):
        RealmForPreTraining.from_encoders(embedder=checkpoints["roberta"], encoder=tmp_path)
    RealmReader.from_encoders(encoder=tmp_path)
