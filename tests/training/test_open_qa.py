"""Fine-tuning computes ORQA's losses, learns, counts what has no answer, stops in time, and can be resumed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from question_worlds import answerless, qa_model, qa_trainer, questions
from tiny_worlds import load_world, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from realm_hf.generations.embedding import embed_passages
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.records import read_log
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.open_qa_arguments import OpenQATrainingArguments
from realm_hf.training.pretraining import RealmTrainer


def steps(run):
    return [record for record in read_log(run / "log.jsonl") if "loss" in record]


def losses(run):
    return [record["loss"] for record in steps(run)]


def evaluations(run):
    return [record for record in read_log(run / "log.jsonl") if "eval_exact_match" in record]


def one_step(trainer):
    """Record, gradients and beam of one step that is not taken."""
    seen = {}

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, trainer, **kwargs):
            trainer.module.train()
            computed = trainer.accumulate(1)
            seen["record"] = computed.record(computed.sums.tolist())
            seen["gradients"] = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
            trainer.optimizer.zero_grad(set_to_none=True)

    trainer.callbacks.append(Watch())
    trainer.train()
    return seen["record"], seen["gradients"]


# The losses


def test_losses_are_those_of_the_reader_of_transformers_4(world, tmp_path):
    """The model's own `forward` makes its inputs from texts, question by question, and knows nothing of this code."""
    examples = questions(world)[:4]
    made = qa_trainer(world, tmp_path, examples=examples, max_steps=1, searcher_beam_size=20, reader_beam_size=12)
    model, tokenizer = made.model, tiny_tokenizer()
    expected = []

    class Reference(TrainerCallback):
        def on_train_begin(self, args, state, control, trainer, **kwargs):
            with trainer.index.reading() as served:
                model.retriever = served.retriever
                model.train()
                for example in examples:
                    answers = tokenizer(list(example.answers), add_special_tokens=False)["input_ids"]
                    output = model(**tokenizer([example.question], return_tensors="pt"), answer_ids=answers)
                    reader = output.reader_output
                    expected.append([reader.retriever_loss.item(), reader.reader_loss.item()])
                model.retriever = None

    made.callbacks.append(Reference())
    record, _ = one_step(made)
    retriever, reader = np.mean(expected, axis=0)
    assert record["retriever_loss"] == pytest.approx(retriever, abs=1e-5)
    assert record["reader_loss"] == pytest.approx(reader, abs=1e-5)
    assert record["loss"] == pytest.approx(retriever + reader, abs=1e-5)
    assert min(np.array(expected).min(axis=0)) > 0.01


def test_batched_loss_and_gradient_are_the_mean_of_single_ones_with_answerless_as_zero(world, tmp_path):
    examples = questions(world)[:4]
    examples[1], examples[2] = answerless(examples[1]), replace(examples[2], answers=("oil", "gas", "fish"))
    common = {"max_steps": 1, "max_grad_norm": 0.0}
    record, gradients = one_step(qa_trainer(world, tmp_path / "batch", examples=examples, **common))
    singles = [
        one_step(qa_trainer(world, tmp_path / str(n), examples=[example], per_device_train_batch_size=1, **common))
        for n, example in enumerate(examples)
    ]
    for name in ("loss", "retriever_loss", "reader_loss"):
        assert record[name] == pytest.approx(np.mean([single[name] for single, _ in singles]), abs=1e-5)
    assert [single["loss"] for single, _ in singles].count(0.0) == 1
    for name, gradient in gradients.items():
        mean = sum(single[name] for _, single in singles) / 4
        torch.testing.assert_close(gradient, mean, atol=1e-5, rtol=1e-4, msg=name)
    assert (record["answerless"], record["reader_answerless"]) == (1, sum(s["reader_answerless"] for s, _ in singles))


def test_one_batch_of_four_equals_four_batches_of_one(world, tmp_path):
    qa_trainer(world, tmp_path / "a").train()
    qa_trainer(world, tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4).train()
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-5)


def test_search_uses_the_very_embeddings_that_carry_the_gradient(world, tmp_path):
    made = qa_trainer(world, tmp_path, qa_model(dropout=0.3), max_steps=1)
    embedded, searched = [], []
    embed, search = made.model.embed_questions, made.search

    def spied_embed(*inputs):
        embedded.append(embed(*inputs))
        return embedded[-1]

    def spied_search(retriever, queries, *rest):
        searched.append(queries)
        return search(retriever, queries, *rest)

    made.model.embed_questions, made.search = spied_embed, spied_search
    one_step(made)
    # With dropout a second encoding would give other values.
    assert embedded[0].requires_grad and not searched[0].requires_grad
    assert torch.equal(embedded[0], searched[0])


def test_reader_loss_alone_reaches_the_query_tower(world, tmp_path):
    """The retriever's score is inside the softmax over spans; a beam in which every passage counts as right has no
    loss of its own.
    """
    made = qa_trainer(world, tmp_path, max_steps=1)
    search = made.search

    def all_right(*arguments):
        beam = search(*arguments)
        return replace(beam, has_answer=np.ones_like(beam.has_answer))

    made.search = all_right
    record, gradients = one_step(made)
    assert record["retriever_loss"] == pytest.approx(0.0, abs=1e-5) and record["reader_loss"] > 0.1
    assert gradients["embedder.cls.dense.weight"].abs().max() > 1e-4


@pytest.mark.parametrize(("wide", "read", "expected"), [(5000, 3, (60, 3)), (2, 4, (4, 4)), (200, 100, (60, 60))])
def test_beams_are_limited_to_the_corpus_and_hold_what_is_read(world, tmp_path, wide, read, expected):
    made = qa_trainer(world, tmp_path, max_steps=1, searcher_beam_size=wide, reader_beam_size=read)
    one_step(made)
    assert made.beam.rows.shape == (4, expected[0]) and made.beam.embeddings.shape[1] == expected[0]
    assert np.bincount(made.beam.read.question).tolist() == [expected[1]] * 4
    assert (made.beam.rows >= 0).all()


def test_answers_wider_than_the_readers_spans_count_for_the_retriever_only(world, tmp_path):
    example = questions(world)[0]
    passages, _ = load_world(world)
    whole = replace(example, answers=(passages.text(0).removesuffix("."),))
    model = qa_model(max_span_width=2)
    record, _ = one_step(
        qa_trainer(world, tmp_path, model, [whole], per_device_train_batch_size=1, searcher_beam_size=60, max_steps=1)
    )
    assert record["answerless"] == 0 and record["reader_answerless"] == 1
    assert record["retriever_loss"] > 0 and record["reader_loss"] == 0


def test_regular_expression_trains_like_the_answer_that_it_describes(world, tmp_path):
    plain = questions(world)[:8]
    patterns = [replace(e, answers=(rf"\b{e.answers[0][:-1]}\w\b",), regex=True) for e in plain]
    qa_trainer(world, tmp_path / "plain", examples=plain).train()
    qa_trainer(world, tmp_path / "regex", examples=patterns, dev=patterns).train()
    assert losses(tmp_path / "plain") == losses(tmp_path / "regex")
    assert evaluations(tmp_path / "regex")[-1]["eval_answer_recall"] > 0


def test_bfloat16_trains_close_to_float32_with_float32_weights(world, tmp_path):
    # The whole corpus is read: a beam would change with the last digit of a score.
    settings = {"searcher_beam_size": 60, "reader_beam_size": 60}
    qa_trainer(world, tmp_path / "a", bf16=False, **settings).train()
    made = qa_trainer(world, tmp_path / "b", bf16=True, dev=questions(world)[:3], **settings)
    made.train()
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=0.02)
    assert losses(tmp_path / "b") != losses(tmp_path / "a")
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}


def test_gradient_checkpointing_changes_no_loss(world, tmp_path):
    qa_trainer(world, tmp_path / "a").train()
    qa_trainer(world, tmp_path / "b", gradient_checkpointing=True).train()
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-6)


# Training


def test_it_learns_to_answer_questions_about_places_that_it_was_not_trained_on(world, tmp_path):
    asked = questions(world)
    model = qa_model(num_hidden_layers=1, score_scale=1.0)
    made = qa_trainer(
        world,
        tmp_path,
        model,
        asked[:48],
        dev=asked[48:],
        max_steps=60,
        per_device_train_batch_size=8,
        searcher_beam_size=20,
        learning_rate=3e-3,
        eval_steps=20,
    )
    result = made.train()
    first, *_, last = evaluations(tmp_path)
    assert first["eval_exact_match"] < 0.2 and last["eval_exact_match"] > 0.6
    assert result.metrics["eval_exact_match"] == last["eval_exact_match"]
    assert np.mean(losses(tmp_path)[-10:]) < np.mean(losses(tmp_path)[:10]) - 2
    assert np.mean([r["span_accuracy"] for r in steps(tmp_path)[-10:]]) > 0.8


def test_every_trainable_parameter_moves_and_the_index_does_not(world, tmp_path):
    made = qa_trainer(world, tmp_path)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
    passages, _ = load_world(world)
    vectors = embed_passages(qa_model().embedder, passages)
    made.train()
    still = [name for name, p in made.model.named_parameters() if p.requires_grad and torch.equal(before[name], p)]
    assert still == []
    served = RealmRetriever.from_pretrained(tmp_path / "model")
    assert np.array_equal(served.embeddings, vectors)
    assert len(list((tmp_path / "index").glob("step-*"))) == 1


def test_answerless_questions_are_counted_and_teach_nothing(world, tmp_path):
    examples = [answerless(example) for example in questions(world)[:4]]
    examples[3] = questions(world)[3]
    made = qa_trainer(world, tmp_path, examples=examples, max_steps=2, searcher_beam_size=60)
    made.train()
    assert [record["answerless"] for record in steps(tmp_path)] == [3, 3]
    assert all(record["questions"] == 4 for record in steps(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["trained_questions"]["questions"] == 8 and summary["trained_questions"]["answerless"] == 6
    none = qa_trainer(world, tmp_path / "none", examples=examples[:3], per_device_train_batch_size=3, max_steps=1)
    record, gradients = one_step(none)
    assert record["loss"] == 0.0 and record["answerless"] == record["reader_answerless"] == 3
    assert all(not gradient.any() for gradient in gradients.values())


def test_micro_batch_without_any_span_still_gives_every_parameter_a_gradient(world, tmp_path):
    """Other processes wait for all gradients."""
    made = qa_trainer(world, tmp_path, max_steps=1)
    search = made.search

    def nothing(retriever, queries, ids, *rest):
        beam = search(retriever, queries, ids, *rest)
        read = retriever.reader_batch(ids, np.full((len(ids), 1), -2), 64)
        return replace(beam, read=read, gold=np.zeros((3, 0), np.int64))

    made.search = nothing
    record, gradients = one_step(made)
    assert gradients.keys() == {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert record["reader_loss"] == 0 and record["retriever_loss"] > 0 and record["reader_answerless"] == 4


@pytest.mark.parametrize("refresh", ["off", "sync"])
def test_resumed_run_repeats_losses_and_figures_exactly(world, tmp_path, refresh):
    asked = questions(world)
    settings = {
        "max_steps": 8,
        "save_steps": 3,
        "eval_steps": 2,
        "save_total_limit": None,
        "refresh": refresh,
        "refresh_steps": 2,
        "learning_rate": 3e-3,
        "gradient_accumulation_steps": 2,
    }

    def run(model):
        return qa_trainer(world, tmp_path / "run", model, asked[:40], dev=asked[40:], **settings)

    run(qa_model(dropout=0.1)).train()
    before, best = losses(tmp_path / "run"), (tmp_path / "run" / "summary.json").read_text()
    answered = [record["eval_exact_match"] for record in evaluations(tmp_path / "run")]
    run(qa_model(dropout=0.1)).train(resume_from_checkpoint=tmp_path / "run" / "checkpoints" / "step-3")
    assert losses(tmp_path / "run") == before and len(before) == 8
    assert [record["eval_exact_match"] for record in evaluations(tmp_path / "run")] == answered
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["model"] == json.loads(best)["model"]


def test_lost_index_is_built_again_from_the_first_weights_on_resume(world, tmp_path):
    qa_trainer(world, tmp_path, max_steps=4, save_steps=2, save_total_limit=None).train()
    before = losses(tmp_path)
    shutil.rmtree(tmp_path / "index")
    made = qa_trainer(world, tmp_path, max_steps=4)
    made.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-2")
    assert losses(tmp_path) == pytest.approx(before, abs=1e-6), "the trained tower would embed the passages otherwise"


# The best weights


class Scripted(TrainerCallback):
    """Development figures as given, one an evaluation, in place of real ones."""

    def __init__(self, trainer, figures):
        self.figures, self.trainer = iter(figures), trainer
        trainer.evaluate = self.evaluate

    def evaluate(self):
        trainer = self.trainer
        value = next(self.figures)
        if trainer.best.consider(trainer.step, value, trainer.index.state()["generation"]):
            trainer.best.save(trainer.model)
        trainer.ends_early = trainer.best.exhausted
        return {"eval_exact_match": value}


def test_training_ends_when_patience_does_and_the_best_weights_become_the_model(world, tmp_path):
    made = qa_trainer(world, tmp_path, max_steps=50, eval_steps=2, early_stopping_patience=2)
    at_best = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            if record["step"] == 4:
                at_best.update({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    made.callbacks.append(Watch())
    Scripted(made, [0.1, 0.2, 0.5, 0.5, 0.4])
    result = made.train()
    assert (result.step, result.interrupted) == (8, False)
    model = RealmForOpenQA.from_pretrained(tmp_path / "model")
    assert all(torch.equal(at_best[name], p) for name, p in model.named_parameters())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"] == {"step": 4, "value": 0.5} and summary["steps"] == 8
    assert [record["step"] for record in evaluations(tmp_path)] == [0, 2, 4, 6, 8]
    assert [folder.name for folder in (tmp_path / "best").iterdir()] == ["step-4"]

    again = qa_trainer(world, tmp_path, max_steps=50, eval_steps=2, early_stopping_patience=2)
    Scripted(again, [0.4])
    assert again.train(resume_from_checkpoint=True).step == 8, "an early end is an end"
    patient = qa_trainer(world, tmp_path, max_steps=50, eval_steps=2, early_stopping_patience=3)
    Scripted(patient, [0.3])
    assert patient.train(resume_from_checkpoint=True).step == 10, "with more patience it goes on, and counts on"


def test_best_weights_that_a_checkpoint_names_outlive_better_ones(world, tmp_path):
    settings = {"max_steps": 6, "eval_steps": 1, "save_steps": 2, "save_total_limit": None}
    made = qa_trainer(world, tmp_path, **settings)
    Scripted(made, [0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6])
    made.train()
    kept = {folder.name for folder in (tmp_path / "best").iterdir()}
    assert {"step-1", "step-4", "step-6"} <= kept and "step-3" not in kept
    resumed = qa_trainer(world, tmp_path, **settings)
    Scripted(resumed, [0.1, 0.1, 0.1, 0.1])
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-2")
    assert json.loads((tmp_path / "summary.json").read_text())["model"] == {"step": 1, "value": 0.2}


def test_model_folder_answers_by_itself_as_the_last_evaluation_did(world, tmp_path):
    asked = questions(world)
    made = qa_trainer(world, tmp_path, dev=asked[:20], max_steps=4)
    made.train()
    best = json.loads((tmp_path / "summary.json").read_text())["model"]["value"]
    folder = tmp_path / "model"
    answerer = QuestionAnswerer(RealmForOpenQA.from_pretrained(folder), RealmRetriever.from_pretrained(folder))
    answers = answerer([example.question for example in asked[:20]])
    right = [answer.text.lower() == example.answers[0] for answer, example in zip(answers, asked, strict=False)]
    assert np.mean(right) == pytest.approx(best)


def test_without_development_questions_the_last_weights_are_the_model(world, tmp_path):
    made = qa_trainer(world, tmp_path, max_steps=2, save_retriever=False)
    assert made.train().metrics == {}
    loaded = dict(RealmForOpenQA.from_pretrained(tmp_path / "model").named_parameters())
    assert all(torch.equal(p, loaded[name]) for name, p in made.model.named_parameters())
    assert not (tmp_path / "best").exists() and not (tmp_path / "model" / "retriever.json").exists()


# The index


def pretrained(world, run):
    args = RealmTrainingArguments(
        output_dir=str(run),
        max_steps=1,
        per_device_train_batch_size=2,
        num_candidates=2,
        max_query_length=24,
        max_candidate_length=32,
        learning_rate=1e-3,
        refresh="sync",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    passages, sentences = load_world(world)
    RealmTrainer(
        tiny_model(), args, train_dataset=sentences.train, processing_class=tiny_tokenizer(), passages=passages
    ).train()
    return RealmForOpenQA.from_pretraining(run / "model")


def test_index_of_the_pretraining_run_is_taken_over_without_embedding_anything(world, tmp_path, monkeypatch):
    model = pretrained(world, tmp_path / "pre")
    passages, _ = load_world(world)
    vectors = embed_passages(model.embedder, passages)

    def forbidden(*_, **__):
        raise AssertionError("a passage was embedded")

    monkeypatch.setattr("realm_hf.refresh.build.embed_passages", forbidden)
    made = qa_trainer(world, tmp_path / "qa", model, more={"index_from": tmp_path / "pre"}, save_steps=2)
    made.train()
    served = RealmRetriever.from_pretrained(tmp_path / "qa" / "model")
    assert np.array_equal(served.embeddings, vectors)
    assert steps(tmp_path / "qa")[0]["staleness_steps"] == 1
    # The run stands on its own from now on.
    before = losses(tmp_path / "qa")
    again = qa_trainer(world, tmp_path / "qa", RealmForOpenQA.from_pretraining(tmp_path / "pre" / "model"))
    again.train(resume_from_checkpoint=tmp_path / "qa" / "checkpoints" / "step-2")
    assert losses(tmp_path / "qa") == before


def test_index_of_another_tower_is_not_taken_over(world, tmp_path, caplog):
    pretrained(world, tmp_path / "pre")
    qa_trainer(world, tmp_path / "qa", qa_model(seed=5), max_steps=1, more={"index_from": tmp_path / "pre"}).train()
    assert "belongs to another passage tower" in caplog.text
    passages, _ = load_world(world)
    served = RealmRetriever.from_pretrained(tmp_path / "qa" / "model")
    assert np.array_equal(served.embeddings, embed_passages(qa_model(seed=5).embedder, passages))
    qa_trainer(world, tmp_path / "none", max_steps=1, more={"index_from": tmp_path / "nowhere"}).train()
    assert "has no index" in caplog.text


def test_passage_tower_of_its_own_embeds_the_passages(world, tmp_path):
    other = qa_model(seed=7).embedder
    made = qa_trainer(world, tmp_path, max_steps=1, more={"passage_embedder": other})
    made.train()
    passages, _ = load_world(world)
    vectors = RealmRetriever.from_pretrained(tmp_path / "model").embeddings
    assert np.array_equal(vectors, embed_passages(other, passages))
    with pytest.raises(ValueError, match=r"refresh='sync'.*passage tower of its own"):
        qa_trainer(world, tmp_path / "b", refresh="sync", more={"passage_embedder": other})


def test_refresh_embeds_the_passages_by_the_trained_query_tower(world, tmp_path):
    made = qa_trainer(world, tmp_path, max_steps=4, refresh="sync", refresh_steps=2, learning_rate=3e-3)
    made.train()
    swaps = [event for record in read_log(tmp_path / "log.jsonl") for event in record.get("events", [])]
    assert [swap["snapshot_step"] for swap in swaps] == [0, 2, 4]
    passages, _ = load_world(world)
    vectors = RealmRetriever.from_pretrained(tmp_path / "model").embeddings
    assert np.array_equal(vectors, embed_passages(made.model.embedder, passages))


def test_best_weights_get_the_index_that_they_were_best_with(world, tmp_path):
    made = qa_trainer(world, tmp_path, max_steps=4, refresh="sync", refresh_steps=2, eval_steps=1, keep_generations=0)
    Scripted(made, [0.1, 0.1, 0.1, 0.9, 0.2])
    made.train()
    manifest = json.loads((tmp_path / "model" / "retriever.json").read_text())
    assert manifest["generation_name"].startswith("step-2-")
    assert json.loads((tmp_path / "summary.json").read_text())["model"]["step"] == 3


def test_index_of_the_best_weights_outlives_every_refresh(world, tmp_path, monkeypatch, caplog):
    made = qa_trainer(
        world, tmp_path, max_steps=5, refresh="sync", refresh_steps=1, eval_steps=1, dev=questions(world)
    )
    monkeypatch.setattr("realm_hf.training.open_qa_evaluation.is_right", lambda example, answer: made.step == 1)
    made.train()
    assert "is gone" not in caplog.text
    assert json.loads((tmp_path / "summary.json").read_text())["model"]["step"] == 1
    assert json.loads((tmp_path / "model" / "retriever.json").read_text())["generation_name"].startswith("step-1-")


# What is refused


def test_no_question_another_tokenizer_and_an_old_run_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match="no question to train on"):
        qa_trainer(world, tmp_path / "a", examples=[])
    qa_trainer(world, tmp_path / "b", max_steps=1).train()
    with pytest.raises(RunDirectoryError, match="resume_from_checkpoint=true"):
        qa_trainer(world, tmp_path / "b", max_steps=2).train()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"early_stopping_patience": 2}, "eval_steps is 0"),
        ({"early_stopping_patience": 0, "eval_steps": 1}, "early_stopping_patience is 0"),
        ({"reader_beam_size": 0}, "reader_beam_size is 0"),
        ({"searcher_beam_size": -1}, "searcher_beam_size is -1"),
        ({"reader_seq_len": 3}, "reader_seq_len is 3"),
        ({"max_query_length": 2}, "max_query_length is 2"),
        ({"num_train_epochs": 0.0}, "num_train_epochs is 0.0"),
        ({"refresh": "never"}, "refresh is 'never'"),
        ({"max_staleness": 900}, "never renews"),
    ],
)
def test_impossible_value_is_refused_in_words(wrong, message):
    with pytest.raises(ValueError, match=message):
        OpenQATrainingArguments(**{"output_dir": "x", **wrong})


def test_epochs_become_steps_of_the_whole_batch(world, tmp_path):
    args = OpenQATrainingArguments(
        output_dir="x", num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert args.resolved(examples=100, processes=3).max_steps == 9
    assert OpenQATrainingArguments(output_dir="x", max_steps=7).resolved(100, 3).max_steps == 7
    made = qa_trainer(world, tmp_path, examples=questions(world)[:10], num_train_epochs=1)
    assert made.train().step == 3


def test_long_question_is_cut_and_keeps_its_separator(world, tmp_path):
    example = replace(questions(world)[0], question="what " * 300)
    made = qa_trainer(world, tmp_path, examples=[example], per_device_train_batch_size=1, max_query_length=16)
    assert len(made.question_ids[0]) == 16 and made.question_ids[0][-1] == tiny_tokenizer().sep_token_id
    record, _ = one_step(made)
    assert np.isfinite(record["loss"])
