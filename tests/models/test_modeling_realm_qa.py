"""Open-domain QA: beams of any size, batches, starting from pre-training, swapping the halves, files."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from realm_hf import RealmForOpenQA, RealmForPreTraining, RealmRetriever

PLACES = ("river", "mountain", "city")
TEXTS = [f"The {PLACES[n % 3]} number {n} lies in the north. It has {7 * n + 3} people." for n in range(9)]
QUESTIONS = ["Where does it lie?", "How many people live in the north of the country?", "What?"]
ANSWERS = [["river", "the zebra"], ["people"], ["zebra"]]


@pytest.fixture
def qa_config(tiny_config):
    tiny_config.max_span_width, tiny_config.span_hidden_size, tiny_config.initializer_range = 3, 8, 0.2
    tiny_config.reader_beam_size, tiny_config.searcher_beam_size, tiny_config.reader_seq_len = 2, 6, 48
    return tiny_config


def retriever_over(texts, tokenizer, size: int = 16) -> RealmRetriever:
    embeddings = np.random.default_rng(0).normal(size=(len(texts), size)).astype(np.float32)
    return RealmRetriever(Dataset.from_dict({"text": texts}), tokenizer, embeddings=embeddings)


@pytest.fixture
def model(qa_config, tokenizer) -> RealmForOpenQA:
    torch.manual_seed(0)
    return RealmForOpenQA(qa_config, retriever_over(TEXTS, tokenizer)).eval()


def ids_of(tokenizer, answers):
    return tokenizer(answers, add_special_tokens=False).input_ids


def ask(model, questions=QUESTIONS, answers=None):
    tokenizer = model.retriever.tokenizer
    answer_ids = None if answers is None else [ids_of(tokenizer, own) for own in answers]
    answer_ids = answer_ids[0] if answers is not None and len(questions) == 1 else answer_ids
    return model(**tokenizer(questions, padding=True, return_tensors="pt"), answer_ids=answer_ids)


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_gives_the_answers_and_the_mean_loss_of_its_questions(model, training):
    batch = ask(model.train(training), answers=ANSWERS)
    single = [ask(model, [question], [answers]) for question, answers in zip(QUESTIONS, ANSWERS, strict=True)]
    losses = torch.stack([one.reader_output.loss for one in single])
    torch.testing.assert_close(batch.reader_output.loss, losses.mean(), atol=1e-5, rtol=0)
    assert losses[2] == 0 and (losses[:2] > 0).all()
    for number, one in enumerate(single):
        assert torch.equal(batch.predicted_answer_ids[number], one.predicted_answer_ids)
    assert batch.reader_output.retriever_correct.shape == (3, 6 if training else 2)


def test_the_answer_is_the_best_span_of_the_beam(model, tokenizer):
    question = tokenizer(QUESTIONS[:1], return_tensors="pt")
    embedding = model.embed_questions(question.input_ids, question.attention_mask)
    rows = model.retriever.retrieve(embedding.detach(), 2, null_passage=False).rows[0]
    *_, inputs = model.retriever(rows, question.input_ids, None, max_length=48)
    body = inputs.token_type_ids.bool() & ~inputs.special_tokens_mask.bool()
    spans = model.reader.score_spans(inputs.input_ids, inputs.attention_mask, inputs.token_type_ids, body)
    relevance = torch.from_numpy(model.retriever.embeddings[rows]) @ embedding[0]
    best = int((spans.logits + relevance[spans.pair]).argmax())
    expected = inputs.input_ids[spans.pair[best], spans.start[best] : spans.end[best] + 1]
    assert torch.equal(model(**question).predicted_answer_ids, expected)


@pytest.mark.parametrize("passages", [1, 4])
def test_a_corpus_smaller_than_the_beam_is_read_whole(model, tokenizer, passages):
    model.retriever = retriever_over(TEXTS[:passages], tokenizer)
    output = ask(model.train(), answers=ANSWERS).reader_output
    assert output.retriever_correct.shape == (3, passages)
    assert output.reader_correct.shape[:2] == (3, min(2, passages))
    assert torch.isfinite(output.loss)


class Beams:
    """A retriever that returns the given rows."""

    def __init__(self, retriever, rows):
        self.retriever, self.rows, self.tokenizer = retriever, np.array(rows), retriever.tokenizer

    def retrieve(self, query_embeddings, k, *, token_ids, null_passage):
        return self

    def beam_embeddings(self, rows):
        return self.retriever.beam_embeddings(rows)

    def __call__(self, *args, **kwargs):
        return self.retriever(*args, **kwargs)


def test_questions_may_have_beams_of_different_sizes_or_none(model):
    whole = model.retriever
    model.retriever = Beams(whole, [[3, 5, 1], [4, -2, -2], [-2, -2, -2]])
    batch = ask(model, answers=[["river"], ["river"], ["river"]])
    for number, rows in enumerate([[3, 5, 1], [4]]):
        model.retriever = Beams(whole, [rows])
        single = ask(model, QUESTIONS[number : number + 1], [["river"]])
        for name in ("retriever_loss", "reader_loss", "block_idx", "start_pos", "end_pos"):
            expected = single.reader_output[name].squeeze()
            torch.testing.assert_close(batch.reader_output[name][number], expected, atol=1e-5, rtol=0)
    assert batch.reader_output.retriever_loss[2] == batch.reader_output.reader_loss[2] == 0
    assert torch.isfinite(batch.reader_output.loss)


def test_both_losses_move_the_query_tower(model):
    for name in ("retriever_loss", "reader_loss"):
        model.zero_grad()
        ask(model.train(), answers=ANSWERS).reader_output[name].sum().backward()
        gradients = [p.grad for p in model.embedder.parameters() if p.requires_grad]
        assert all(gradient is not None and gradient.any() for gradient in gradients), name


def test_the_score_scale_multiplies_the_passages_scores(model, qa_config):
    qa_config.score_scale = 0.0
    output = ask(model.train(), answers=ANSWERS).reader_output
    rivers = int(output.retriever_correct[0].sum())
    assert 0 < rivers <= 3
    torch.testing.assert_close(output.retriever_loss[0], torch.tensor(6 / rivers).log())


def test_the_beam_is_wide_in_training_only(model):
    assert (model.searcher_beam_size, model.train().searcher_beam_size) == (2, 6)


def test_what_is_missing_is_named(model, tokenizer):
    question = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    with pytest.raises(ValueError, match="2 entries for 3 questions"):
        model(**question, answer_ids=[[[5]], [[6]]])
    model.retriever = None
    with pytest.raises(ValueError, match=r"assign `model\.retriever`"):
        model(**question)


def test_files_hold_neither_retriever_nor_index(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) <= {
        name for name in model.state_dict() if name.startswith(("embedder.", "reader."))
    }
    loaded, info = RealmForOpenQA.from_pretrained(tmp_path, retriever=model.retriever, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.retriever is model.retriever
    before, after = (ask(one, answers=ANSWERS) for one in (model, loaded))
    assert torch.equal(before.reader_output.loss, after.reader_output.loss)


@pytest.fixture
def pretrained(qa_config) -> RealmForPreTraining:
    torch.manual_seed(5)
    qa_config.share_embedders = False
    return RealmForPreTraining(qa_config).eval()


def same_weights(one, other) -> bool:
    other = other.state_dict()
    return all(torch.equal(value, other[name]) for name, value in one.state_dict().items() if name in other)


@pytest.mark.parametrize("shared", [False, True])
def test_fine_tuning_starts_from_the_query_tower_and_the_encoder(qa_config, shared, tmp_path):
    qa_config.share_embedders = shared
    torch.manual_seed(5)
    pretrained = RealmForPreTraining(qa_config)
    pretrained.save_pretrained(tmp_path)
    for source in (pretrained, tmp_path, str(tmp_path)):
        model = RealmForOpenQA.from_pretraining(source)
        assert same_weights(model.embedder, pretrained.query_embedder)
        assert same_weights(model.reader.realm, pretrained.encoder.realm)
        assert shared == same_weights(model.embedder, pretrained.embedder)
        assert not model.training


def test_the_span_head_is_seeded_and_nothing_is_shared(pretrained):
    torch.manual_seed(1)
    first = RealmForOpenQA.from_pretraining(pretrained)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert same_weights(first.reader.qa_outputs, RealmForOpenQA.from_pretraining(pretrained).reader.qa_outputs)
    other = RealmForOpenQA.from_pretraining(pretrained, seed=1)
    assert not same_weights(first.reader.qa_outputs, other.reader.qa_outputs)
    storages = {parameter.data_ptr() for parameter in pretrained.parameters()}
    assert not storages & {parameter.data_ptr() for parameter in first.parameters()}


def test_fields_may_be_overridden_and_unknown_ones_are_named(pretrained, tokenizer):
    retriever = retriever_over(TEXTS, tokenizer)
    model = RealmForOpenQA.from_pretraining(pretrained, retriever, reader_beam_size=4, max_span_width=2)
    assert (model.config.reader_beam_size, model.reader.qa_outputs.max_span_width) == (4, 2)
    assert model.retriever is retriever
    assert pretrained.config.reader_beam_size == 2
    with pytest.raises(ValueError, match="no field reader_beam"):
        RealmForOpenQA.from_pretraining(pretrained, reader_beam=4)


def test_the_halves_are_swapped_one_by_one(model, pretrained, tmp_path):
    """The paper's ablation, table 2: one half pre-trained, the other not."""
    other = RealmForOpenQA.from_pretraining(pretrained, model.retriever)
    own_reader, own_embedder = model.reader, model.embedder
    model.reader = other.reader
    mixed, wanted = (ask(one.train(), answers=ANSWERS).reader_output for one in (model, other))
    assert not torch.allclose(mixed.retriever_loss, wanted.retriever_loss)
    model.embedder = other.embedder
    assert torch.equal(ask(model, answers=ANSWERS).reader_output.loss, wanted.loss)
    model.reader, model.embedder = own_reader, other.embedder
    model.save_pretrained(tmp_path)
    loaded = RealmForOpenQA.from_pretrained(tmp_path)
    assert same_weights(loaded.reader, own_reader)
    assert same_weights(loaded.embedder, other.embedder)
    assert not same_weights(loaded.embedder, own_embedder)


def test_all_towers_start_from_bert(qa_config, tmp_path):
    from transformers import BertConfig, BertForPreTraining

    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    bert = BertForPreTraining(BertConfig(**{name: getattr(qa_config, name) for name in fields}))
    bert.save_pretrained(tmp_path)
    models = [RealmForOpenQA.from_bert(tmp_path, retriever_proj_size=16, seed=seed) for seed in (0, 0, 1)]
    for model in models:
        for tower in (model.embedder.realm, model.reader.realm):
            assert same_weights(bert.bert, tower)
    assert same_weights(models[0].reader.qa_outputs, models[1].reader.qa_outputs)
    assert not same_weights(models[0].reader.qa_outputs, models[2].reader.qa_outputs)


def test_a_resized_model_answers_as_before(model, tmp_path):
    before = ask(model, answers=ANSWERS).reader_output.loss
    model.resize_token_embeddings(model.config.vocab_size + 2)
    model.save_pretrained(tmp_path)
    loaded = RealmForOpenQA.from_pretrained(tmp_path, retriever=model.retriever)
    assert loaded.config.vocab_size == loaded.embedder.get_input_embeddings().num_embeddings
    torch.testing.assert_close(ask(loaded, answers=ANSWERS).reader_output.loss, before)


def test_unread_parts_are_frozen_in_both_towers(model):
    ask(model.train(), answers=ANSWERS).reader_output.loss.backward()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert all(".predictions." in name or name.startswith("reader.realm.pooler.") for name in frozen)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
