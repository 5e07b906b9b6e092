"""Masked language modelling as a warm start: it learns, resumes, counts right, and REALM starts from its weights."""

import json

import numpy as np
import pytest
import torch
from tiny_worlds import articles_that_share_words, tiny_model, tiny_tokenizer
from torch.nn import functional as F

from realm_hf import RealmForPreTraining, RealmKnowledgeAugEncoder
from realm_hf.data import find_recurring_spans
from realm_hf.training import MaskedLMTrainer, MaskedLMTrainingArguments, save_trained_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Articles of two passages that share two words, drawn at random."""
    folder = tmp_path_factory.mktemp("pairs") / "passages"
    passages = articles_that_share_words(folder, 40, ["They say {} here.", "And {} is what is said."], words=80)
    return passages, find_recurring_spans(passages, tiny_tokenizer())


def trainer_of(corpus, run, model=None, recurring=True, **settings):
    passages, spans = corpus
    common = {"max_steps": 4, "per_device_train_batch_size": 8, "max_length": 48, "learning_rate": 2e-3}
    args = MaskedLMTrainingArguments(
        output_dir=str(run), use_cpu=True, bf16=False, disable_tqdm=True, **{**common, **settings}
    )
    return MaskedLMTrainer(
        tiny_model().encoder if model is None else model,
        args,
        train_dataset=passages,
        processing_class=tiny_tokenizer(),
        recurring=spans if recurring else None,
        rows=np.arange(64),
        eval_rows=np.arange(64, 80),
    )


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_loss_is_the_mean_over_all_masked_wordpieces_of_the_step(corpus, tmp_path):
    trainer = trainer_of(corpus, tmp_path, max_steps=1, gradient_accumulation_steps=3)
    rows, epochs = trainer.order(np.arange(24))
    examples = [trainer.dataset.visit(int(r), int(e)) for r, e in zip(rows, epochs, strict=True)]
    total, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            segments = torch.arange(len(example.input_ids)) >= example.boundary
            logits = trainer.model(
                input_ids=torch.from_numpy(example.input_ids)[None], token_type_ids=segments[None].long()
            ).logits[0, example.positions]
            total += float(F.cross_entropy(logits, torch.from_numpy(example.labels), reduction="sum"))
            count += len(example.labels)
    trainer.train()
    (step,) = [record for record in log_of(tmp_path) if "loss" in record]
    assert step["loss"] == pytest.approx(total / count, rel=1e-5) and step["masked_tokens"] == count
    assert step["tokens"] == sum(len(example.input_ids) for example in examples)


def test_it_learns_to_read_a_span_in_the_second_passage(corpus, tmp_path):
    trainer = trainer_of(corpus, tmp_path, max_steps=150, eval_steps=150, pair_probability=1.0)
    trainer.train()
    first, last = (record for record in log_of(tmp_path) if "eval_loss" in record)
    assert last["eval_loss"] < first["eval_loss"] - 2.0
    assert last["eval_word_loss"] >= last["eval_loss"]
    assert abs(first["eval_utility"]) < 0.2


def test_a_stopped_training_goes_on_as_if_it_had_not_been(corpus, tmp_path):
    trainer_of(corpus, tmp_path / "whole").train()
    trainer_of(corpus, tmp_path / "parts", max_steps=4, save_steps=2).train()
    resumed = trainer_of(corpus, tmp_path / "parts", max_steps=4)
    resumed.train(resume_from_checkpoint=tmp_path / "parts" / "checkpoints" / "step-2")
    whole, parts = ({r["step"]: r["loss"] for r in log_of(tmp_path / n) if "loss" in r} for n in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=1e-6) and len(whole) == 4


def test_other_passages_or_spans_are_not_resumed_in_silence(corpus, tmp_path):
    trainer_of(corpus, tmp_path).train()
    with pytest.raises(Exception, match="recurring"):
        trainer_of(corpus, tmp_path, max_steps=6, recurring=False).train(resume_from_checkpoint=True)


def test_of_a_whole_model_only_the_encoder_is_trained(corpus, tmp_path):
    model = tiny_model()
    towers = {name: weight.clone() for name, weight in model.state_dict().items() if "embedder" in name}
    before = model.encoder.cls.predictions.transform.dense.weight.clone()
    trainer_of(corpus, tmp_path, model=model).train()
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in towers.items())
    assert not torch.equal(model.encoder.cls.predictions.transform.dense.weight, before)


def test_towers_and_encoder_start_from_what_it_leaves(corpus, tmp_path):
    trainer = trainer_of(corpus, tmp_path)
    trainer.train()
    save_trained_model(trainer, tiny_tokenizer())

    encoder = RealmKnowledgeAugEncoder.from_pretrained(tmp_path / "model")
    model = RealmForPreTraining.from_bert(tmp_path / "model", pooler="identity", retriever_proj_size=16)

    words = encoder.realm.embeddings.word_embeddings.weight
    for tower in (model.embedder.realm, model.encoder.realm):
        assert torch.equal(tower.embeddings.word_embeddings.weight, words)
        assert torch.equal(
            tower.encoder.layer[1].output.dense.weight, encoder.realm.encoder.layer[1].output.dense.weight
        )
    assert torch.equal(
        model.encoder.cls.predictions.transform.dense.weight, encoder.cls.predictions.transform.dense.weight
    )


def test_a_sequence_longer_than_the_positions_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="max_length is 256, the encoder has 128 positions"):
        trainer_of(corpus, tmp_path, max_length=256)
