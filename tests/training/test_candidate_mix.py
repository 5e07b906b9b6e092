"""Pre-training with candidates of BM25 and of the index: a number from each, the same after a resume."""

import dataclasses
import shutil

import numpy as np
import pytest
from tiny_worlds import bag_of_words_start, load_world, tiny_model, tiny_tokenizer

from realm_hf.cli.main import main as cli
from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.candidates import IndexSource, Queries
from realm_hf.retriever.mixed import MixedSource
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.records import read_log
from realm_hf.runs.verification import verify_run
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.candidate_counts import parse_mix
from realm_hf.training.command_line import parse_arguments
from realm_hf.training.pretraining import RealmTrainer


def arguments(run, **overrides):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "num_candidates": 5,
        "candidate_mix": "bm25=2,dense=2",
        "max_query_length": 24,
        "max_candidate_length": 32,
        "learning_rate": 3e-3,
        "refresh": "sync",
        "refresh_steps": 2,
        "save_steps": 3,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    return RealmTrainingArguments(output_dir=str(run), **{**settings, **overrides})


class Recording(RealmTrainer):
    """Keeps the candidates of each step."""

    def accumulate(self, step):
        figures = super().accumulate(step)
        self.seen = getattr(self, "seen", {})
        self.seen[step] = [
            (e.input_ids.tolist(), r.tolist())
            for m, rows in self.retrieved.micro_batches
            for e, r in zip(m, rows, strict=True)
        ]
        return figures


def trainer(world, run, source=None, **overrides):
    passages, sentences = load_world(world)
    return Recording(
        bag_of_words_start(tiny_model(num_hidden_layers=1)),
        arguments(run, **overrides),
        train_dataset=sentences.train,
        processing_class=tiny_tokenizer(),
        passages=passages,
        candidate_source=source,
    )


def losses(run):
    return {r["step"]: r["loss"] for r in read_log(run / "log.jsonl") if "loss" in r}


def test_two_candidates_come_from_words_and_two_from_the_index(world, tmp_path):
    made = trainer(world, tmp_path)
    made.train()
    passages, words = made.passages, BM25Source.load(tmp_path / "bm25")
    knowledge = RealmRetriever.from_pretrained(tmp_path).knowledge
    assert len(made.seen) == 6 and all(len(examples) == 4 for examples in made.seen.values())
    for examples in made.seen.values():
        for ids, rows in examples:
            ranked = words.rank(knowledge, Queries(np.zeros((1, 16)), [np.array(ids)]), len(passages))[1][0]
            assert rows[0] == -1 and rows[1] == ranked[0] and len(set(rows)) == 5
            assert sum(row in ranked[:4] for row in rows[1:]) >= 2
    finding = next(f for f in verify_run(RunDirectory.open(tmp_path)) if f.part == "bm25")
    assert finding.is_good and "in 60 passages" in finding.message
    (tmp_path / "bm25" / "scores.bin").write_bytes(b"\0" * (tmp_path / "bm25" / "scores.bin").stat().st_size)
    assert not next(f for f in verify_run(RunDirectory.open(tmp_path)) if f.part == "bm25").is_good
    assert cli(["verify", str(tmp_path)]) == 1


def test_a_resumed_run_sees_the_same_candidates_and_loses_the_same(world, tmp_path):
    whole, parted = trainer(world, tmp_path / "whole"), trainer(world, tmp_path / "parted")
    whole.train()
    parted.train()
    shutil.rmtree(tmp_path / "parted" / "checkpoints" / "step-6")
    again = trainer(world, tmp_path / "parted")
    again.train(resume_from_checkpoint=True)
    assert sorted(again.seen) == [4, 5, 6]
    assert again.seen == {step: whole.seen[step] for step in again.seen}
    assert losses(tmp_path / "parted") == losses(tmp_path / "whole")
    with pytest.raises(RunDirectoryError, match="candidate_mix 'bm25=2,dense=2' then, 'bm25=1,dense=3' now"):
        trainer(world, tmp_path / "parted", candidate_mix="bm25=1,dense=3", max_steps=8).train(
            resume_from_checkpoint=True
        )


@pytest.mark.multiprocess
def test_generations_swap_meanwhile(world, tmp_path):
    made = trainer(
        world, tmp_path, max_steps=16, refresh="async", refresh_steps=4, max_staleness=8, on_stale="wait", save_steps=0
    )
    made.train()
    events = [event for record in read_log(tmp_path / "log.jsonl") for event in record.get("events", [])]
    assert len([event for event in events if 0 < event["swapped_at_step"] < 16]) >= 1
    assert all(-2 not in rows and len(set(rows)) == 5 for examples in made.seen.values() for _, rows in examples)


def test_probes_of_a_swap_ask_the_index_alone(world, tmp_path):
    plain, mixed = trainer(world, tmp_path / "a", candidate_mix=None), trainer(world, tmp_path / "b")
    for made in (plain, mixed):
        made.args.max_steps = 1
        made.train()
    figures = [
        next(event for record in read_log(tmp_path / run / "log.jsonl") for event in record.get("events", []))
        for run in "ab"
    ]
    assert figures[0]["most_retrieved_share"] == figures[1]["most_retrieved_share"]


def test_a_mix_is_written_in_several_ways_and_kept_in_one(tmp_path):
    for mix in ("bm25=2,dense=2", " bm25=2, dense=2", '{"bm25": 2, "dense": 2}', {"bm25": 2, "dense": 2}):
        assert arguments(tmp_path, candidate_mix=mix).candidate_mix == "bm25=2,dense=2"
    assert parse_mix("dense=4,bm25=0") == {"dense": 4}
    (tmp_path / "run.yaml").write_text(
        f"output_dir: {tmp_path}\nmax_steps: 1\nnum_candidates: 5\ncandidate_mix: {{bm25: 1, dense: 3}}\n"
    )
    parsed = parse_arguments([RealmTrainingArguments], [str(tmp_path / "run.yaml")])[0]
    assert parsed.candidate_mix == "bm25=1,dense=3"
    parsed = parse_arguments([RealmTrainingArguments], [str(tmp_path / "run.yaml"), "--candidate_mix", "bm25=4"])[0]
    assert parsed.candidate_mix == "bm25=4" and dataclasses.asdict(parsed)["candidate_mix"] == "bm25=4"


@pytest.mark.parametrize(
    "mix", ["bm25", "bm25=two", "words=4", "bm25=2,bm25=2", "bm25=-1,dense=5", "", '{"bm25": true}']
)
def test_what_is_no_mix_is_refused(tmp_path, mix):
    with pytest.raises(ValueError, match="give each of bm25, dense once with a number"):
        arguments(tmp_path, candidate_mix=mix)


def test_numbers_must_fill_the_candidates_and_sources_must_not_compete(world, tmp_path):
    with pytest.raises(ValueError, match="3 passages in all, but num_candidates = 5 leaves 4"):
        arguments(tmp_path, candidate_mix="bm25=2,dense=1")
    with pytest.raises(ValueError, match="a candidate_source is given too"):
        trainer(world, tmp_path, source=MixedSource([(IndexSource(), 1)]))
