"""A builder that cannot keep up is told at the start, with how long it takes and what to do."""

import logging
import re

import pytest
import torch
from tiny_worlds import load_world, tiny_model, tiny_tokenizer

from realm_hf.runs.directory import RunConfig
from realm_hf.training import build_time
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.build_time import BuildForecast, processor_build_seconds
from realm_hf.training.pretraining import RealmTrainer

DAY = 86_400.0


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == build_time.__name__]


@pytest.fixture
def clock(monkeypatch):
    """Steps of as many seconds as the test says."""

    class Clock:
        now = 0.0

        def steps(self, forecast, seconds, count=6):
            for _ in range(count):
                forecast.step_done()
                self.now += seconds

    ticking = Clock()
    monkeypatch.setattr(build_time.time, "perf_counter", lambda: ticking.now)
    return ticking


def forecast(seconds, max_staleness=None):
    return BuildForecast(seconds, 13_353_718, "cpu, 1 thread", refresh_steps=500, max_staleness=max_staleness)


def test_the_papers_corpus_on_one_core_is_told_before_the_first_step(caplog):
    forecast(94 * DAY).begin()
    (said,) = warnings(caplog)
    assert "(cpu, 1 thread) needs about 94 days for a generation of 13,353,718 passages" in said
    assert "refresh_steps=500 could be kept only if a step took 4.51 h or more" in said
    for remedy in ("--builder_device cuda:1", "--builder_threads", "--refresh external", "--refresh_steps"):
        assert remedy in said


def test_what_only_the_steps_can_tell_is_told_after_a_few_and_once(caplog, clock):
    slow = forecast(3 * 3600.0)
    slow.begin()
    assert warnings(caplog) == []
    clock.steps(slow, seconds=2.0, count=60)
    (said,) = warnings(caplog)
    assert "needs about 3 h" in said and "a step takes 2 s" in said and "will be 10,800 steps old" in said


def test_a_budget_of_staleness_counts_the_wait_for_the_next_index(caplog, clock):
    tight = forecast(800.0, max_staleness=700)  # 400 steps of 2 s, and then 500 until the next one serves
    tight.begin()
    clock.steps(tight, seconds=2.0)
    assert "max_staleness=700 cannot be kept" in warnings(caplog)[0]


def test_a_builder_that_keeps_up_is_not_warned_of(caplog, clock):
    quick = forecast(800.0, max_staleness=1000)
    quick.begin()
    clock.steps(quick, seconds=2.0)
    assert warnings(caplog) == []


def test_a_processor_is_timed_on_a_few_passages_for_all_of_them(monkeypatch, world):
    passages, _ = load_world(world)
    tower, threads = tiny_model().embedder.train(), torch.get_num_threads()
    embedded = []

    def watched(embedder, passages, *, rows):
        embedded.append(len(rows))
        ticks.now += 0.5 * len(rows)

    class Ticks:
        now = 0.0

    ticks = Ticks()
    monkeypatch.setattr(build_time, "embed_passages", watched)
    monkeypatch.setattr(build_time.time, "perf_counter", lambda: ticks.now)
    config = RunConfig("", "", rows=len(passages))
    seconds = processor_build_seconds(tower, passages, config, threads=2, index_threads=1)
    assert embedded == [1, 8]
    assert seconds == pytest.approx(0.5 * len(passages), rel=0.1)  # lengths differ a little
    assert tower.training and torch.get_num_threads() == threads


def test_the_index_counts_too(world):
    passages, _ = load_world(world)
    flat, lists = (RunConfig("", "", rows=len(passages), index_factory=f) for f in ("Flat", "IVF1048576,Flat"))
    tower = tiny_model().embedder
    took = [processor_build_seconds(tower, passages, c, threads=1, index_threads=1) for c in (flat, lists)]
    assert took[1] > took[0]


@pytest.mark.multiprocess
def test_a_run_says_it_at_its_start(monkeypatch, caplog, world, tmp_path):
    monkeypatch.setattr("realm_hf.training.index_service.processor_build_seconds", lambda *a, **k: 94 * DAY)
    passages, sentences = load_world(world)
    args = RealmTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        num_candidates=3,
        max_query_length=24,
        max_candidate_length=32,
        use_cpu=True,
        disable_tqdm=True,
    )
    RealmTrainer(
        tiny_model(), args, train_dataset=sentences.train, processing_class=tiny_tokenizer(), passages=passages
    ).train()
    (said,) = warnings(caplog)
    assert re.search(r"needs about 94 days for a generation of 60 passages", said)
