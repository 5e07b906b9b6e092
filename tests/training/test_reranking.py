"""Of more candidates than are read, those are kept that the towers of the step like best, whatever the index says."""

import numpy as np
import pytest
import torch
from tiny_worlds import bag_of_words_start, load_world, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from realm_hf.data.masking import MaskedQuery
from realm_hf.generations.embedding import embed_passages
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.records import read_log
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.prefetch import encode_queries
from realm_hf.training.pretraining import RealmTrainer
from realm_hf.training.reranking import LiveReranker

SETTINGS = {
    "max_steps": 5,
    "per_device_train_batch_size": 4,
    "num_candidates": 3,
    "rerank_depth": 12,
    "max_query_length": 24,
    "max_candidate_length": 32,
    "learning_rate": 1e-2,
    "refresh": "off",
    "max_eval_sentences": 6,
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def pretrainer(world, run, *callbacks, dropout=0.0, **overrides):
    passages, sentences = load_world(world)
    return RealmTrainer(
        bag_of_words_start(tiny_model(dropout=dropout)),
        RealmTrainingArguments(output_dir=str(run), **{**SETTINGS, **overrides}),
        train_dataset=sentences.train,
        eval_dataset=sentences.heldout,
        processing_class=tiny_tokenizer(),
        passages=passages,
        callbacks=callbacks,
    )


def losses(run):
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


class Spy(TrainerCallback):
    """Keeps what came into the reranker, what it kept, and what it should have kept."""

    def __init__(self):
        self.given, self.kept, self.expected, self.queries = [], [], [], []

    def on_train_begin(self, args, state, control, trainer, **kwargs):
        rerank, passages = trainer.rerank, trainer.passages

        class Spied(LiveReranker):
            def __call__(_, queries, rows, k):
                kept = rerank(queries, rows, k)
                vectors = embed_passages(trainer.model.embedder, passages)
                live = encode_queries(trainer.model.query_embedder, [query.input_ids for query in queries])
                for query, own, vector, best in zip(queries, rows, live, kept, strict=True):
                    order = np.argsort(-(vectors[own[1:]] @ vector), kind="stable")[: k - 1]
                    self.expected.append([-1, *own[1:][order]])
                    self.given.append(own)
                    self.kept.append(best.tolist())
                    self.queries.append(query)
                return kept

        trainer.rerank = Spied(trainer.model, passages, 32)


def test_with_a_stale_index_the_live_best_of_its_candidates_are_kept(world, tmp_path):
    spy = Spy()
    made = pretrainer(world, tmp_path, spy)
    made.train()
    assert {len(rows) for rows in spy.given} == {12} and {len(rows) for rows in spy.kept} == {3}
    assert spy.kept == spy.expected
    stale = [rows[:3].tolist() for rows in spy.given]
    assert sum(a != b for a, b in zip(stale, spy.kept, strict=True)) > len(stale) // 4, "the index went stale"
    assert made.retrieved.micro_batches[0][1].shape == (4, 3), "callbacks see what was read"
    # In training, in both evaluations (six sentences each), and for the examples at the end.
    assert len(spy.kept) == 5 * 4 + 2 * 6 + 5


def test_no_kept_candidate_holds_the_sentence_of_its_query(world, tmp_path):
    spy = Spy()
    made = pretrainer(world, tmp_path, spy, max_steps=3)
    made.train()
    for query, rows in zip(spy.queries, spy.kept, strict=True):
        assert not made.passages.contains(query.sentence_ids, np.array(rows[1:])).any()
        assert len(set(rows)) == 3 and rows[0] == -1


def test_a_fresh_index_keeps_its_own_order(world, tmp_path):
    pretrainer(world, tmp_path / "a", max_steps=1).train()
    pretrainer(world, tmp_path / "b", max_steps=1, rerank_depth=None).train()
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-6)
    a, b = (
        pretrainer(world, tmp_path / run, max_steps=4, rerank_depth=depth) for run, depth in (("c", 12), ("d", None))
    )
    a.train()
    b.train()
    assert losses(tmp_path / "c") != pytest.approx(losses(tmp_path / "d"), abs=1e-6), "later it has gone stale"


def test_resumed_run_keeps_the_same_candidates(world, tmp_path):
    settings = {"max_steps": 6, "save_steps": 3, "save_total_limit": None, "dropout": 0.1, "retrieval_depth": 2}
    pretrainer(world, tmp_path, **settings).train()
    before, checkpoint = losses(tmp_path), tmp_path / "checkpoints" / "step-3"
    pretrainer(world, tmp_path, **settings).train(resume_from_checkpoint=checkpoint)
    assert losses(tmp_path) == before and len(before) == 6
    with pytest.raises(RunDirectoryError, match="rerank_depth 12 then, None now"):
        pretrainer(world, tmp_path, **{**settings, "rerank_depth": None}).train(resume_from_checkpoint=checkpoint)


def test_candidates_do_not_depend_on_how_a_step_is_divided(world, tmp_path):
    pretrainer(world, tmp_path / "a").train()
    pretrainer(world, tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=2).train()
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-4)


def test_prompts_count_as_they_do_in_the_index(world):
    passages, _ = load_world(world)
    ids = tiny_tokenizer()("we buy oil from the river", add_special_tokens=False)["input_ids"]
    prompts = {
        f"{role}_prompt{part}": value for role in ("query", "document") for part, value in (("", "x"), ("_ids", ids))
    }
    model = bag_of_words_start(tiny_model(**prompts)).eval()
    nothing = np.zeros(0, np.int64)
    query = np.array(tiny_tokenizer()("coffee")["input_ids"])
    rows = np.arange(-1, len(passages))[None]
    kept = LiveReranker(model, passages, 26)([MaskedQuery(query, nothing, nothing, -1, nothing)], rows, 9)
    scores = embed_passages(model.embedder, passages) @ encode_queries(model.query_embedder, [query])[0]
    plain = bag_of_words_start(tiny_model()).eval()
    other = embed_passages(plain.embedder, passages) @ encode_queries(plain.query_embedder, [query])[0]
    assert kept[0, 1:].tolist() == np.argsort(-scores, kind="stable")[:8].tolist()
    assert kept[0, 1:].tolist() != np.argsort(-other, kind="stable")[:8].tolist()


def test_absent_candidates_come_last_and_rows_that_are_few_enough_are_left_alone(world):
    passages, _ = load_world(world)
    model = tiny_model(dropout=0.5).train()
    rerank, nothing = LiveReranker(model, passages, 32), np.zeros(0, np.int64)
    queries = [MaskedQuery(np.array([101, 5, 102]) % 50, nothing, nothing, span=-1, sentence_ids=nothing)] * 2
    rows = np.array([[-1, 7, 3, -2, -2], [-1, 9, 4, 1, 0]])
    kept = rerank(queries, rows, 4)
    assert kept[0, 3] == -2 and set(kept[0]) == {-1, 7, 3, -2} and -2 not in kept[1]
    assert rerank(queries, rows, 5).tolist() == rows.tolist() and rerank(queries, rows, 1).tolist() == [[-1], [-1]]
    assert rerank([], np.zeros((0, 5), np.int64), 3).shape == (0, 3)
    assert rerank(queries, rows, 4).tolist() == kept.tolist(), "without dropout"
    assert model.embedder.training and all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_a_depth_and_a_mix_are_refused_together():
    with pytest.raises(ValueError, match="the second keeps the best whatever found them"):
        RealmTrainingArguments(output_dir="x", num_candidates=3, candidate_mix="bm25=1,dense=1", rerank_depth=9)


def test_a_depth_that_leaves_nothing_out_is_refused():
    for depth in (3, 1, 0):
        with pytest.raises(ValueError, match=f"rerank_depth is {depth}, but num_candidates is 3"):
            RealmTrainingArguments(output_dir="x", num_candidates=3, rerank_depth=depth)
