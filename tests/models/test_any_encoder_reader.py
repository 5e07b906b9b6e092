"""What reads, of any encoder: the scores of the reader, what it starts from, how long an input may be."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_bert import tiny_bert
from tiny_encoders import FAMILIES, TEXT, save_encoder, tiny_configuration, train_tokenizer
from tiny_worlds import tiny_tokenizer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from realm_hf import RealmConfig, RealmForOpenQA, RealmForPreTraining, RealmKnowledgeAugEncoder, RealmReader
from realm_hf.data import build_passages
from realm_hf.data.collators import PreTrainingCollator
from realm_hf.data.masking import example_rng, mask_example

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {family: save_encoder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def joint_inputs(tokenizer):
    """Two questions with their passages, of unequal length; the last six tokens of each passage are its body."""
    batch = tokenizer(
        ["Which river?", "What is it?"],
        [TEXT[1], TEXT[3][:30]],
        padding=True,
        return_tensors="pt",
        return_token_type_ids=True,
    )
    body = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        body[row, length - 7 : length - 1] = True
    return batch.input_ids, batch.attention_mask, batch.token_type_ids, body


@every_family
def test_spans_are_scored_from_the_hidden_states_of_the_encoder(checkpoints, family):
    """First and last hidden state of a span, projected and added, as in ORQA: computed here span by span."""
    original = AutoModel.from_pretrained(checkpoints[family]).eval()
    reader = RealmReader.from_encoders(encoder=checkpoints[family], span_hidden_size=8, max_span_width=3)
    ids, mask, segments, body = joint_inputs(train_tokenizer(family))
    head = reader.qa_outputs
    with torch.no_grad():
        told = {"token_type_ids": segments} if getattr(original.config, "type_vocab_size", 0) > 1 else {}
        states = original(ids, attention_mask=mask, **told).last_hidden_state
        spans = reader.score_spans(ids, mask, segments, body)
        first, last = head.dense_intermediate(states).chunk(2, dim=-1)
        expected = [
            head.dense_output(head.layer_normalization(torch.relu(first[row, start] + last[row, end])))
            for row, start, end in zip(spans.pair, spans.start, spans.end, strict=True)
        ]
    torch.testing.assert_close(spans.logits, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert len(spans.logits) == 2 * (6 + 5 + 4) and spans.logits.std() > 1e-3


@every_family
def test_a_model_that_answers_is_saved_and_reads_the_same(checkpoints, family, tmp_path):
    encoder = checkpoints[family]
    model = RealmForOpenQA.from_encoders(
        embedder=encoder, encoder=encoder, retriever_proj_size=8, span_hidden_size=8, max_span_width=3
    )
    model.save_pretrained(tmp_path)
    inputs = joint_inputs(train_tokenizer(family))
    with torch.no_grad():
        expected = model.reader.score_spans(*inputs).logits
        for loaded in (RealmForOpenQA.from_pretrained(tmp_path).reader, RealmReader.from_pretrained(tmp_path)):
            assert torch.equal(loaded.score_spans(*inputs).logits, expected)


def test_a_bert_computes_the_same_with_its_shortcuts_and_without(tmp_path):
    """`from_bert` takes them, `from_encoders` runs transformers' own model: losses, gradients, spans, embeddings."""
    bert = tiny_bert(tmp_path, BertForMaskedLM, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    read = {"pooling_mode": "mean", "projection": "none", "normalize": True}
    fast = RealmForPreTraining.from_bert(bert, pooler="identity", **read).double()
    plain = RealmForPreTraining.from_encoders(embedder=bert, encoder=bert, **read).double()
    assert plain.config.embedder_config.model_type == "bert"
    assert fast.embedder.realm.takes_prepared_inputs and not plain.embedder.realm.takes_prepared_inputs
    passages = build_passages(
        Dataset.from_list([{"title": text[:5], "text": text} for text in TEXT]),
        tiny_tokenizer(),
        tmp_path / "passages",
    )
    collator = PreTrainingCollator(passages, tiny_tokenizer())
    batch = collator([(masked_query(passages, row), np.array([-1, row, 5 - row])) for row in (0, 4)])
    batch = {name: value for name, value in batch.items() if name != "candidate_ids"}
    losses = [model(**batch).loss for model in (fast, plain)]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-12, rtol=0)
    for loss in losses:
        loss.backward()
    own = {name.replace(".realm.model.", ".realm."): weight for name, weight in plain.named_parameters()}
    own = {name.replace(".cls.model.cls.", ".cls."): weight for name, weight in own.items()}
    learning = {name: weight for name, weight in fast.named_parameters() if weight.grad is not None}
    assert len(learning) > 60
    for name, weight in learning.items():
        torch.testing.assert_close(own[name].grad, weight.grad, atol=1e-12, rtol=1e-9, msg=name)

    inputs = joint_inputs(tiny_tokenizer())
    readers = [RealmForOpenQA.from_pretraining(model, seed=0).reader.double() for model in (fast, plain)]
    readers[1].qa_outputs.load_state_dict(readers[0].qa_outputs.state_dict())  # seeded, but drawn in another order
    with torch.no_grad():
        spans = [reader.score_spans(*inputs).logits for reader in readers]
        vectors = [model.embedder.encode(*inputs[:3]) for model in (fast, plain)]
    torch.testing.assert_close(spans[1], spans[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(vectors[1], vectors[0], atol=1e-12, rtol=0)


def masked_query(passages, row):
    """A passage's first words as a query, the second one masked."""
    return mask_example(
        passages.body_ids(row)[:9],
        np.array([[1, 2]]),
        special_tokens=passages.special_tokens,
        rng=example_rng(0, row, 0),
    )


@pytest.mark.parametrize(("family", "positions"), [("roberta", 64), ("distilbert", 64)])
def test_a_joint_input_longer_than_the_encoder_is_refused_before_training(family, positions, tmp_path):
    """RoBERTa's table has 66 rows, of which two are never a token's."""
    tokenizer = train_tokenizer(family)
    config = RealmConfig(encoder_config=tiny_configuration(family, len(tokenizer)))
    assert config.encoder_positions == positions
    documents = Dataset.from_list([{"title": "", "text": " ".join(TEXT)}])
    passages = build_passages(documents, tokenizer, tmp_path / "passages", max_length=50)
    body = int(passages.body_extents(np.arange(len(passages)))[1].max())
    fits = positions - body - passages.special_tokens.separators
    PreTrainingCollator(passages, tokenizer, fits, 50, config=config)
    with pytest.raises(ValueError, match=rf"up to {positions + 1} tokens .*has {positions} positions: lower .* by 1,"):
        PreTrainingCollator(passages, tokenizer, fits + 1, 50, config=config)
    PreTrainingCollator(
        passages, tokenizer, fits + 1, 40, config=config
    )  # the passage is cut to what there is room for
    model = RealmForOpenQA(
        RealmConfig(**{f"{part}_config": config.encoder_config for part in ("embedder", "encoder")})
    )
    assert model.reader_length == positions, "the reader's inputs are cut"


@every_family
def test_what_masked_language_modelling_leaves_is_a_start_like_the_checkpoint(checkpoints, family, tmp_path):
    trained = RealmKnowledgeAugEncoder.from_encoders(encoder=checkpoints[family])
    trained.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoints[family]).save_pretrained(tmp_path)
    fields = {"retriever_proj_size": 8, "seed": 3}
    expected = RealmForPreTraining.from_encoders(embedder=checkpoints[family], encoder=checkpoints[family], **fields)
    found = RealmForPreTraining.from_encoders(embedder=tmp_path, encoder=tmp_path, **fields)
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_realm_model_is_no_encoder_to_start_from(checkpoints, tmp_path):
    roberta = checkpoints["roberta"]
    RealmReader.from_encoders(encoder=roberta).save_pretrained(tmp_path / "reader")
    RealmKnowledgeAugEncoder(RealmConfig(vocab_size=60, hidden_size=32, num_attention_heads=2)).save_pretrained(
        tmp_path / "bert"
    )
    for place, kind in (("reader", "a RealmReader:"), ("bert", "a RealmKnowledgeAugEncoder of BERT:")):
        with pytest.raises(ValueError, match=rf"{place}' is {kind} load a REALM model with `from_pretrained`"):
            RealmForPreTraining.from_encoders(embedder=roberta, encoder=tmp_path / place)


@every_family
def test_an_encoder_without_a_prediction_head_can_begin_with_a_new_one(checkpoints, family, tmp_path):
    """As a sentence encoder is; the head is tied where its kind ties it, and seeded."""
    AutoModel.from_pretrained(checkpoints[family]).save_pretrained(tmp_path)
    train_tokenizer(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a"):
        RealmKnowledgeAugEncoder.from_encoders(encoder=tmp_path)
    first, again, other = (
        RealmKnowledgeAugEncoder.from_encoders(encoder=tmp_path, new_head=True, seed=seed) for seed in (1, 1, 2)
    )
    whole = RealmKnowledgeAugEncoder.from_encoders(encoder=checkpoints[family])
    ids = torch.tensor([[2, 9, 11, 3]])
    with torch.no_grad():
        logits = [encoder(ids).logits for encoder in (first, again, other)]
        states = [encoder.realm(ids).last_hidden_state for encoder in (first, whole)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    assert torch.equal(states[0], states[1])
    decoder = whole.get_output_embeddings()
    tied = decoder is not None and decoder.weight is whole.get_input_embeddings().weight
    assert not tied or first.get_output_embeddings().weight is first.get_input_embeddings().weight


def test_a_checkpoint_that_lacks_a_layer_is_refused_even_if_the_head_may_be_new(checkpoints, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(checkpoints["electra"])
    weights = {name: value for name, value in model.state_dict().items() if ".layer.1." not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    train_tokenizer("electra").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a ElectraForMaskedLM, 'electra.encoder.layer.1"):
        RealmKnowledgeAugEncoder.from_encoders(encoder=tmp_path, new_head=True)
