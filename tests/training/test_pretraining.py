"""Pre-training learns from the passages, refreshes its index, and freezes or detaches what it is told to."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_worlds import bag_of_words_start, fact_world, load_world, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from realm_hf.data import OpenQAExample, find_recurring_masks
from realm_hf.data.masking import example_rng, mask_example
from realm_hf.data.passages.store import NULL_PASSAGE
from realm_hf.generations.embedding import embed_passages
from realm_hf.index.faiss_index import build_index
from realm_hf.refresh import build as refresh_build
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.records import read_log
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.in_batch import unread_mask
from realm_hf.training.pretraining import RealmTrainer
from realm_hf.training.retrieval_evaluation import RetrievalQuestions


def pretrainer(world, run, model=None, heldout=True, sentences=None, masks=None, index_from=None, **overrides):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "num_candidates": 3,
        "max_query_length": 24,
        "max_candidate_length": 32,
        "learning_rate": 3e-3,
        "refresh": "sync",
        "refresh_steps": 2,
        "max_eval_sentences": 16,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    args = RealmTrainingArguments(output_dir=str(run), **{**settings, **overrides})
    passages, store = load_world(world)
    train = store.train if sentences is None else sentences
    held = store.heldout if heldout else None
    return RealmTrainer(
        model or tiny_model(),
        args,
        train_dataset=train,
        eval_dataset=held,
        processing_class=tiny_tokenizer(),
        passages=passages,
        recurring_masks=masks,
        index_from=index_from,
    )


def steps(run):
    return [record for record in read_log(run / "log.jsonl") if "loss" in record]


def swaps(run):
    return [event for record in read_log(run / "log.jsonl") for event in record.get("events", [])]


def trained_parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def large_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return folder, fact_world(folder, entities=300)


def recall_of_places(model, world, places):
    passages, _ = load_world(world)
    embeddings = embed_passages(model.embedder, passages)
    retriever = RealmRetriever(passages, index=build_index(embeddings), embeddings=embeddings)
    asked = [OpenQAExample(f"{place} buys [MASK] here.", ()) for place in places]
    questions = RetrievalQuestions(asked, passages, tiny_tokenizer(), gold_rows=range(len(places)))
    ranks = questions.ranks(model.embedder, retriever)
    return {k: (ranks < k).mean() for k in (1, 5)}


def test_loss_falls_utility_and_recall_rise_where_only_the_passage_has_the_answer(large_world, tmp_path):
    world, places = large_world
    model = bag_of_words_start(tiny_model(num_hidden_layers=1, score_scale=1.0))
    before = recall_of_places(model, world, places)
    made = pretrainer(
        world,
        tmp_path,
        model,
        max_steps=100,
        per_device_train_batch_size=16,
        num_candidates=5,
        freeze_retriever_steps=20,
        refresh_steps=25,
        max_eval_sentences=64,
    )
    made.train()
    start, *_, end = [record for record in read_log(tmp_path / "log.jsonl") if "eval_loss" in record]
    assert end["eval_loss"] < start["eval_loss"] - 5
    assert end["eval_retrieval_utility"] > start["eval_retrieval_utility"] + 2
    after = recall_of_places(model, world, places)
    assert after[1] > 2 * before[1] and after[5] > 1.3 * before[5]
    # While the towers rest nothing is built; then a generation comes from every multiple of 25, the last one at 100.
    assert [swap["snapshot_step"] for swap in swaps(tmp_path)] == [0, 25, 50, 75, 100]


def test_every_trainable_parameter_moves(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=3)
    before = trained_parameters(made.model)
    made.train()
    still = [name for name, p in made.model.named_parameters() if p.requires_grad and torch.equal(before[name], p)]
    assert still == []


def test_frozen_retriever_rests_until_its_step_and_then_moves(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=3, freeze_retriever_steps=2)
    start = trained_parameters(made.model.embedder)
    moved = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            now = dict(made.model.embedder.named_parameters())
            moved.append(any(not torch.equal(start[name], now[name]) for name in start))

    made.callbacks.append(Watch())
    made.train()
    assert moved == [False, False, True]


def test_fewer_candidates_are_read_while_the_towers_rest(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=4, freeze_retriever_steps=2, reading_candidates=2, heldout=False)
    read = []

    def watch(module, args, kwargs):
        if module.training:
            read.append(kwargs["candidate_input_ids"].shape[1])

    made.model.register_forward_pre_hook(watch, with_kwargs=True)
    made.train()
    assert read == [2, 2, 3, 3]


def test_detached_retrieval_gives_the_retriever_no_gradient(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=4, detach_retrieval=True)
    before = trained_parameters(made.model)
    made.train()
    moved = {name for name, p in made.model.named_parameters() if name in before and not torch.equal(before[name], p)}
    assert moved == {name for name in before if name.startswith("encoder.")}
    assert [swap["snapshot_step"] for swap in swaps(tmp_path)] == [0], "an index of unmoved towers is built once"


def test_a_frozen_encoder_reads_as_before_while_the_retriever_learns(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=4, freeze_encoder=True)
    before = {name: parameter.clone() for name, parameter in made.model.named_parameters()}
    made.train()
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all(name.startswith("embedder.") for name in moved)


def test_candidates_of_the_batch_count_unread_in_steps_and_not_in_evaluations(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=4, in_batch_candidates=True, refresh="off")
    seen = []

    def watch(module, args, kwargs):
        unread = kwargs.get("unread_mask")
        if unread is not None:
            ids = kwargs["candidate_ids"]
            for own, row in zip(ids, unread, strict=True):
                assert not set(own.tolist()) & set(ids.flatten()[row].tolist())
        seen.append((module.training, unread is not None and int(unread.sum()) > 0))

    made.model.register_forward_pre_hook(watch, with_kwargs=True)
    made.train()
    assert [unread for training, unread in seen if training] == [True] * 4
    assert not any(unread for training, unread in seen if not training)


def test_what_holds_the_sentence_or_the_span_is_no_negative(world):
    passages, store = load_world(world)
    sentence = next(sentence for sentence in store.train if len(sentence.spans))
    query = mask_example(
        sentence.input_ids, sentence.spans[:1], special_tokens=passages.special_tokens, rng=example_rng(0, 0, 0)
    )
    everything = np.arange(len(passages))
    holding = passages.contains(query.sentence_ids, everything) | passages.contains(query.labels, everything)
    rows = np.full((3, len(passages)), -2)
    rows[0, 0], rows[2] = NULL_PASSAGE, everything
    rows[1, :2] = NULL_PASSAGE, 5
    rows[0, 1] = own = int(np.flatnonzero(~holding)[0])
    unread = unread_mask(passages, [query, query, query], rows)
    counted = set(rows.flatten()[unread[0]].tolist())
    assert counted == set(np.flatnonzero(~holding).tolist()) - {own}
    assert 0 < len(counted) < len(passages) - 1, "some hold it, and some do not"
    assert unread[0].sum() == len(counted), "each once"
    assert not unread[2].any(), "without the null passage nothing says what an unread one is worth"


def test_asynchronous_refresh_swaps_generations_of_newer_snapshots_and_other_processes(world, tmp_path):
    made = pretrainer(
        world, tmp_path, max_steps=24, refresh="async", refresh_steps=5, max_staleness=10, on_stale="wait"
    )
    made.train()
    found = swaps(tmp_path)
    during = [swap for swap in found if 0 < swap["swapped_at_step"] < 24]
    assert len(during) >= 2
    assert [s["snapshot_step"] for s in found] == sorted({s["snapshot_step"] for s in found})
    assert len({swap["builder_pid"] for swap in during}) == len(during)
    assert max(record["staleness_steps"] for record in steps(tmp_path)) <= 10 + 2  # and the two steps retrieved ahead
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [g["name"] for g in summary["generations"]] == [swap["name"] for swap in found]
    assert all(0 <= swap["churn"] <= 1 and 0 <= swap["stale_recall"] <= 1 for swap in during)


@pytest.mark.parametrize("query_encoder", ["snapshot", "live"])
@pytest.mark.parametrize("depth", [0, 3])
def test_candidates_come_from_the_generation_served_when_they_were_asked_for(world, tmp_path, query_encoder, depth):
    made = pretrainer(world, tmp_path, retrieval_depth=depth, query_encoder=query_encoder)
    made.train()
    # Swaps after steps 2 and 4; the candidates of step s were asked for after step s - 1 - depth.
    for record in steps(tmp_path):
        asked_after = max(0, record["step"] - 1 - depth)
        assert record["step"] - record["staleness_steps"] == asked_after // 2 * 2


def test_two_towers_train_with_live_queries_and_are_refused_with_snapshot_queries(world, tmp_path):
    with pytest.raises(ValueError, match="query_encoder='live'"):
        pretrainer(world, tmp_path / "a", tiny_model(share_embedders=False))
    made = pretrainer(world, tmp_path / "b", tiny_model(share_embedders=False), query_encoder="live", max_steps=2)
    before = trained_parameters(made.model)
    made.train()
    assert all(not torch.equal(before[n], p) for n, p in made.model.named_parameters() if n in before)


def test_more_candidates_than_passages_work(tmp_path):
    places = fact_world(tmp_path / "small", entities=8)
    made = pretrainer(tmp_path / "small", tmp_path / "run", num_candidates=20, max_steps=2, heldout=False)
    made.train()
    rows = np.concatenate([rows for _, rows in made.retrieved.micro_batches])
    assert rows.shape[1] == 20
    assert ((rows >= 0).sum(1) <= len(places)).all() and (rows[:, 0] == -1).all() and (rows[:, -1] == -2).all()
    assert all(np.isfinite(record["loss"]) for record in steps(tmp_path / "run"))


def test_no_sentence_and_no_heldout_sentence_are_told_apart(world, tmp_path):
    with pytest.raises(ValueError, match="no sentence to train on"):
        pretrainer(world, tmp_path / "a", sentences=[])
    made = pretrainer(world, tmp_path / "b", heldout=False, max_steps=1)
    result = made.train()
    assert result.metrics == {} and made.evaluate() == {}
    assert json.loads((tmp_path / "b" / "examples.json").read_text()), "examples are shown all the same"


def test_second_trainer_on_the_run_is_refused(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=2)
    refused = []

    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            with pytest.raises(RunDirectoryError, match="already runs") as error:
                pretrainer(world, tmp_path, max_steps=2).train()
            refused.append(str(error.value))

    made.callbacks.append(Second())
    assert made.train().step == 2
    assert len(refused) == 2


def test_old_run_is_not_overwritten_by_accident(world, tmp_path):
    pretrainer(world, tmp_path, max_steps=1).train()
    log = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(RunDirectoryError, match="resume_from_checkpoint=true"):
        pretrainer(world, tmp_path, max_steps=2).train()
    assert (tmp_path / "log.jsonl").read_text() == log


def test_run_leaves_model_examples_and_summary(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=2)
    result = made.train()
    loaded = type(made.model).from_pretrained(tmp_path / "model")
    ours = dict(made.model.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in loaded.named_parameters())
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert len(examples) == 5
    for example in examples:
        assert "[MASK]" in example["text"] and example["answer"] and example["filling"]
        assert sum(candidate["probability"] for candidate in example["candidates"]) == pytest.approx(1, abs=1e-4)
        assert example["candidates"][0]["title"] == "" and example["candidates"][0]["utility"] == 0.0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["evaluation"] == result.metrics
    assert summary["generations"][0].keys() >= {"name", "snapshot_step", "builder_pid", "swapped_at_step"}
    assert summary["seconds"]["step"] > 0


def test_two_runs_that_begin_alike_embed_the_corpus_once(world, tmp_path, monkeypatch):
    first = pretrainer(world, tmp_path / "first", max_steps=1, refresh="off")
    begun = tiny_model()
    begun.load_state_dict(first.model.state_dict())
    first.train()
    built = []

    def counted(*args, **kwargs):
        built.append(args)
        return embed_passages(*args, **kwargs)

    monkeypatch.setattr(refresh_build, "embed_passages", counted)
    source = {"index_from": tmp_path / "first", "max_steps": 1, "refresh": "off"}
    pretrainer(world, tmp_path / "again", begun, **source).train()
    assert not built and swaps(tmp_path / "again")[0]["staleness_steps"] == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "first")
    pretrainer(world, tmp_path / "other", first.model, **source).train()
    assert len(built) == 1, "other weights have their own index"


def losses(run):
    return [record["loss"] for record in steps(run)]


def test_the_log_says_how_many_passages_a_step_embeds_and_how_long_they_are(world, tmp_path):
    made = pretrainer(world, tmp_path, max_steps=3, heldout=False)
    embedded, lengths, collate = [], [], made._collate

    def counted(queries, rows, **more):
        batch = collate(queries, rows, **more)
        own = batch["facts"].encoded
        own = own[(batch["candidate_ids"].flatten()[own] != NULL_PASSAGE).numpy()]
        embedded.append(len(own))
        lengths.append(batch["candidate_attention_mask"].flatten(0, 1).sum(-1)[own].float().mean().item())
        return batch

    made._collate = counted
    made.train()
    log = steps(tmp_path)
    assert [record["distinct_candidates"] for record in log] == embedded[:3]
    assert [record["candidate_tokens"] for record in log] == pytest.approx(lengths[:3])
    assert max(embedded[:3]) < 4 * (made.args.num_candidates - 1), "some queries share a passage"


def test_span_marginalization_is_normalised_by_examples(world, tmp_path):
    made = pretrainer(world, tmp_path, marginalization="span", max_steps=1, learning_rate=1e-9)
    made.train()
    first = steps(tmp_path)[0]
    # Untrained, every token costs about log V: a span of n tokens costs n of them.
    expected = np.log(made.model.config.vocab_size) * first["masked_tokens"] / 4
    assert first["loss"] == pytest.approx(expected, rel=0.1)


def test_recurring_masks_are_the_only_ones_drawn(world, tmp_path):
    passages, sentences = load_world(world)
    masks = find_recurring_masks(sentences, passages, tiny_tokenizer())
    half = replace(masks, counts=np.where(np.arange(len(masks.counts)) % 2, 0, masks.counts))
    trainer = pretrainer(world, tmp_path / "half", masks=half, masking="recurring", heldout=False)
    drawn = trainer.examples(np.arange(3 * len(sentences.train)))
    allowed = {tuple(sentences[int(row)].input_ids) for row in sentences.train.indices if half.kept(int(row)).any()}
    assert {tuple(query.sentence_ids) for query in drawn} == allowed and 0 < len(allowed) < len(sentences.train)
    trainer.train()
    assert len(steps(tmp_path / "half")) == 6


def test_recurring_masks_are_of_the_trainers_own_stores_or_refused(world, tmp_path):
    passages, sentences = load_world(world)
    masks = find_recurring_masks(sentences, passages, tiny_tokenizer())
    with pytest.raises(ValueError, match="masking is 'recurring' and recurring masks were not given"):
        pretrainer(world, tmp_path / "a", masking="recurring")
    with pytest.raises(ValueError, match="masking is 'salient' and recurring masks were given"):
        pretrainer(world, tmp_path / "b", masks=masks)
    with pytest.raises(ValueError, match="are of sentences others"):
        pretrainer(world, tmp_path / "c", masks=replace(masks, sentences="others"), masking="recurring")
