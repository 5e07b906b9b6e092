"""The warm start by recurring spans: its loss by hand, learning, and a resume."""

import json

import numpy as np
import pytest
import torch
from tiny_worlds import articles_that_share_words, bag_of_words_start, tiny_model, tiny_tokenizer

from realm_hf.data import find_recurring_spans
from realm_hf.training import RecurringSpanTrainer, RecurringSpanTrainingArguments


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Articles of three passages, of which two share two words."""
    texts = ["They say {} here and go on with it.", "And {} is what is said.", "It is late today."]
    passages = articles_that_share_words(tmp_path_factory.mktemp("spans") / "passages", 48, texts)
    return passages, find_recurring_spans(passages, tiny_tokenizer())


def trainer_of(corpus, run, model=None, **settings):
    passages, spans = corpus
    common = {"max_steps": 4, "per_device_train_batch_size": 4, "max_query_length": 48, "learning_rate": 1e-3}
    args = RecurringSpanTrainingArguments(
        output_dir=str(run), use_cpu=True, bf16=False, disable_tqdm=True, **{**common, **settings}
    )
    return RecurringSpanTrainer(
        tiny_model() if model is None else model,
        args,
        train_dataset=passages,
        recurring=spans,
        processing_class=tiny_tokenizer(),
    )


def steps(run):
    lines = (run / "log.jsonl").read_text().splitlines()
    return {record["step"]: record for record in map(json.loads, lines) if "loss" in record}


def test_the_loss_is_that_of_all_positives_and_negatives_of_the_whole_batch(corpus, tmp_path):
    passages, _ = corpus
    trainer = trainer_of(corpus, tmp_path, max_steps=1, gradient_accumulation_steps=2)
    rows, epochs = trainer.order(np.arange(8))
    examples = [trainer.dataset.visit(int(r), int(e)) for r, e in zip(rows, epochs, strict=True)]
    tower, special, groups = trainer.model.embedder, passages.special_tokens, passages.duplicate_groups
    total = 0.0
    with torch.no_grad():

        def embedded(ids, segments=None):
            mask = torch.ones(1, len(ids), dtype=torch.long)
            return tower.eval().encode(torch.tensor([list(ids)]), mask, segments)[0]

        def passage(row):
            inputs = {name: torch.from_numpy(a) for name, a in passages.pad_candidates(np.array([row])).items()}
            return tower.encode(*(inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")))[0]

        candidates = [e.positive for e in examples] + [e.negative for e in examples if e.negative >= 0]
        for example in examples:
            query = embedded([special.cls, *example.query_ids.tolist(), special.sep])
            own = groups[example.positive]
            wrong = [row for row in candidates if groups[row] != own and groups[row] != groups[example.source]]
            scores = torch.stack([query @ passage(row) for row in [example.positive, *wrong]]) * trainer.scale
            total -= float(torch.log_softmax(scores, 0)[0])
    trainer.train()
    assert steps(tmp_path)[1]["loss"] == pytest.approx(total / 8, rel=1e-4)


def test_gradients_of_chunks_are_those_of_one_batch(corpus, tmp_path):
    found = []
    for name, batch, chunks in (("whole", 8, 1), ("chunks", 2, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": chunks}
        # In float64: of a random model all embeddings are nearly equal, and their differences are what has a gradient.
        trainer = trainer_of(corpus, tmp_path / name, tiny_model().double(), **sizes)
        trainer.module.train()
        trainer.accumulate(1)
        found.append({n: p.grad for n, p in trainer.model.embedder.named_parameters() if p.grad is not None})
    whole, chunked = found
    assert whole.keys() == chunked.keys() and len(whole) > 20
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, atol=1e-12, rtol=1e-8, msg=name)


def test_it_learns_to_find_the_other_passage(corpus, tmp_path):
    model = bag_of_words_start(tiny_model())
    trainer_of(corpus, tmp_path, model, max_steps=40, per_device_train_batch_size=16).train()
    record = steps(tmp_path)
    first, last = (np.mean([record[step]["loss"] for step in some]) for some in (range(1, 6), range(36, 41)))
    assert last < 0.8 * first


def test_a_stopped_training_goes_on_as_if_it_had_not_been(corpus, tmp_path):
    trainer_of(corpus, tmp_path / "whole").train()
    trainer_of(corpus, tmp_path / "parts", save_steps=2).train()
    trainer_of(corpus, tmp_path / "parts").train(resume_from_checkpoint=tmp_path / "parts" / "checkpoints" / "step-2")
    whole, parts = (steps(tmp_path / name) for name in ("whole", "parts"))
    assert [parts[n]["loss"] for n in range(1, 5)] == pytest.approx([whole[n]["loss"] for n in range(1, 5)], rel=1e-6)
