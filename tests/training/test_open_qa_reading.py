"""What the reader is taught on: gold passages, those of another source, and a retriever that may be left as it is."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from question_worlds import answerless, qa_model, qa_trainer, questions
from tiny_worlds import load_world, tiny_tokenizer
from transformers import TrainerCallback

from realm_hf.data.questions.load import OpenQAExample
from realm_hf.retriever.candidates import RankingSource
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.records import read_log
from realm_hf.training.open_qa_arguments import OpenQATrainingArguments
from realm_hf.training.open_qa_beam import read_first

NARROW = {"searcher_beam_size": 3, "reader_beam_size": 3}


def steps(run):
    return [record for record in read_log(run / "log.jsonl") if "loss" in record]


def losses(run):
    return [record["loss"] for record in steps(run)]


def with_gold(world):
    """The questions with their own passage named: passage n is document n."""
    return [OpenQAExample(e.question, e.answers, gold=(number,)) for number, e in enumerate(questions(world))]


class Backwards(RankingSource):
    """The last passages of the corpus, whatever is asked."""

    def rank(self, knowledge, queries, depth):
        rows = np.arange(len(knowledge.corpus))[::-1][:depth]
        return np.zeros((len(queries), depth), np.float32), np.tile(rows, (len(queries), 1))


class Watch(TrainerCallback):
    """Keeps what each step searched."""

    def __init__(self):
        self.beams, self.rows = [], []

    def on_step_end(self, args, state, control, trainer, **kwargs):
        self.beams.append(trainer.beam)
        positions = np.arange(trainer.cursor - trainer.examples_per_step, trainer.cursor)
        self.rows.append(trainer.order(positions)[0])


def watched(*arguments, **settings):
    made = qa_trainer(*arguments, **settings)
    made.callbacks.append(Watch())
    made.train()
    return made, made.callbacks[-1]


# What is put first


@given(data=st.data())
def test_wanted_passages_are_read_no_text_twice_and_the_others_keep_their_order(data):
    groups = np.array(data.draw(st.lists(st.integers(0, 11), min_size=16, max_size=16)))
    ranking = data.draw(st.permutations(range(16)))
    beam = [row for place, row in enumerate(ranking) if groups[row] not in groups[list(ranking[:place])]]
    beam = beam[: data.draw(st.integers(1, 8))]
    wanted = data.draw(st.lists(st.integers(0, 15), max_size=5))
    read = data.draw(st.integers(1, 6))
    padded = np.array([[*beam, *[-2] * (8 - len(beam))]])
    rows = read_first(padded, [np.array(wanted, int)], read, 8, groups)[0]
    rows = rows[rows >= 0].tolist()
    texts = groups[rows].tolist()
    assert len(set(texts)) == len(texts) <= 8
    asked = list(dict.fromkeys(groups[wanted].tolist()))[:read] if wanted else []
    assert set(asked) <= set(texts[:read])
    kept = [row for row in beam if row in rows]
    for part in (rows[:read], rows[read:]):
        assert [row for row in part if row in kept] == [row for row in kept if row in part]
    if not wanted:
        assert rows == beam
    best = [row for row in beam if groups[row] not in asked]
    assert set(best[: read - len(asked)]) <= set(rows[:read])


# Gold passages


def test_gold_passages_are_read_although_the_index_does_not_find_them(world, tmp_path):
    asked = with_gold(world)
    plain, _ = watched(world, tmp_path / "a", examples=asked, **NARROW)
    made, seen = watched(world, tmp_path / "b", examples=asked, gold_passages=True, **NARROW)
    assert plain.gold_rows is None and sum(r["reader_answerless"] for r in steps(tmp_path / "a")) > 0
    for beam, rows in zip(seen.beams, seen.rows, strict=True):
        assert beam.rows.shape == (4, 3)
        assert all(row in read for row, read in zip(rows, beam.rows, strict=True))
        assert beam.has_answer[beam.rows == rows[:, None]].all()
    assert [(r["answerless"], r["reader_answerless"]) for r in steps(tmp_path / "b")] == [(0, 0)] * 3
    assert made.search.read == 3


def test_gold_passages_change_nothing_where_everything_is_read(world, tmp_path):
    asked, whole = with_gold(world), {"searcher_beam_size": 60, "reader_beam_size": 60, "max_steps": 2}
    qa_trainer(world, tmp_path / "a", examples=asked, **whole).train()
    qa_trainer(world, tmp_path / "b", examples=asked, gold_passages=True, **whole).train()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


class Fixed:
    """A retriever that finds what a step has read."""

    def __init__(self, retriever, rows):
        self.retriever, self.rows = retriever, rows

    def retrieve(self, *_, **__):
        return self

    def beam_embeddings(self, rows):
        return self.retriever.beam_embeddings(rows)

    def __call__(self, *arguments):
        return self.retriever(*arguments)


def test_losses_with_gold_passages_are_those_of_the_model_over_the_same_passages(world, tmp_path):
    """The model's own `forward` finds answers in texts, and knows nothing of where the passages come from."""
    asked, tokenizer = with_gold(world)[:4], tiny_tokenizer()
    made = qa_trainer(
        world, tmp_path, examples=asked, max_steps=1, gold_passages=True, searcher_beam_size=6, reader_beam_size=3
    )
    expected = {}

    class Reference(TrainerCallback):
        def on_train_begin(self, args, state, control, trainer, **kwargs):
            model = trainer.model
            trainer.accumulate(1)
            trainer.optimizer.zero_grad(set_to_none=True)
            found = []
            with trainer.index.reading() as served:
                for row, beam in zip(trainer.order(np.arange(4))[0], trainer.beam.rows, strict=True):
                    model.retriever = Fixed(served.retriever, beam[None])
                    answers = tokenizer(list(asked[row].answers), add_special_tokens=False)["input_ids"]
                    inputs = tokenizer([asked[row].question], return_tensors="pt")
                    found.append(model(**inputs, answer_ids=answers).reader_output)
                model.retriever = None
            expected["retriever_loss"] = np.mean([output.retriever_loss.item() for output in found])
            expected["reader_loss"] = np.mean([output.reader_loss.item() for output in found])

    made.callbacks.append(Reference())
    made.train()
    (record,) = steps(tmp_path)
    assert {name: record[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert min(expected.values()) > 0.01 and record["answerless"] == record["reader_answerless"] == 0


def test_a_gold_passage_without_an_answer_is_not_read(world, tmp_path):
    asked = [answerless(example) for example in with_gold(world)]
    _, with_names = watched(world, tmp_path / "a", examples=asked, gold_passages=True, **NARROW)
    _, without = watched(world, tmp_path / "b", examples=asked, **NARROW)
    for a, b in zip(with_names.beams, without.beams, strict=True):
        assert a.rows.tolist() == b.rows.tolist()


def test_gold_texts_are_found_and_their_absence_is_said(world, tmp_path, caplog):
    passages, _ = load_world(world)
    text = max((passages.text(row) for row in range(len(passages))), key=lambda text: len(tiny_tokenizer()(text)[0]))
    asked = questions(world)[:4]
    asked[0] = OpenQAExample(asked[0].question, asked[0].answers, gold=(text,))
    made = qa_trainer(world, tmp_path / "a", examples=asked, gold_passages=True)
    assert passages.text(made.gold_rows[0][0]) == text
    assert "3 of 4 questions have no gold passage: 3 name none, 0 one that is not in the corpus." in caplog.text
    elsewhere = [OpenQAExample("who?", ("gas",), gold=("A text of more than eight words that is nowhere at all.",))]
    with pytest.raises(ValueError, match="of 1 questions 1 name a gold passage, and none of these is in the corpus"):
        qa_trainer(world, tmp_path / "b", examples=elsewhere, gold_passages=True)


# Another source


def test_the_reader_reads_what_the_other_source_finds_and_the_retriever_keeps_its_beam(world, tmp_path):
    wide = {"searcher_beam_size": 10, "reader_beam_size": 3}
    _, plain = watched(world, tmp_path / "a", max_steps=1, **wide)
    _, seen = watched(world, tmp_path / "b", max_steps=1, more={"reading_source": Backwards()}, **wide)
    rows = seen.beams[0].rows
    assert [sorted(read) for read in rows[:, :3].tolist()] == [[57, 58, 59]] * 4
    for own, found in zip(rows, plain.beams[0].rows, strict=True):
        others = [row for row in found if row < 57]
        assert own[3:].tolist() == others[:7]


def test_a_gold_passage_goes_before_the_other_source(world, tmp_path):
    more = {"reading_source": Backwards()}
    _, seen = watched(world, tmp_path, examples=with_gold(world), max_steps=1, gold_passages=True, more=more, **NARROW)
    for row, read in zip(seen.rows[0], seen.beams[0].rows, strict=True):
        assert set(read) == {row, *[other for other in (59, 58, 57) if other != row][:2]}


def test_a_mix_reads_passages_found_by_words_and_by_the_index(world, tmp_path):
    made, seen = watched(
        world, tmp_path / "a", max_steps=2, candidate_mix="dense=2,bm25=1", searcher_beam_size=8, reader_beam_size=3
    )
    _, plain = watched(world, tmp_path / "b", max_steps=2, searcher_beam_size=8, reader_beam_size=3)
    assert made.args.candidate_mix == "dense=2,bm25=1" and (tmp_path / "a" / "bm25").is_dir()
    for read, found in zip(seen.beams[0].rows, plain.beams[0].rows, strict=True):
        assert set(found[:2]) <= set(read[:3])
    # A question's own passage shares three words of its name, so words find each answer.
    assert all(row in beam for beam, row in zip(seen.beams[0].rows[:, :3], seen.rows[0], strict=True))
    assert sum(r["reader_answerless"] for r in steps(tmp_path / "a")) == 0
    assert sum(r["reader_answerless"] for r in steps(tmp_path / "b")) > 0
    assert made.index.candidate_source is None, "the evaluation is by the index alone"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"candidate_mix": "bm25=2,dense=3"}, "give reader_beam_size too"),
        ({"candidate_mix": "bm25=2,dense=3", "reader_beam_size": 4}, "5 passages in all, but reader_beam_size is 4"),
        ({"candidate_mix": "tfidf=2", "reader_beam_size": 2}, "give each of bm25, dense once"),
    ],
)
def test_a_mix_that_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        OpenQATrainingArguments(output_dir="x", **wrong)


def test_a_mix_and_another_source_are_refused_together(world, tmp_path):
    with pytest.raises(ValueError, match="candidate_mix is 'bm25=3', and a candidate_source is given too"):
        qa_trainer(world, tmp_path, candidate_mix="bm25=3", reader_beam_size=3, more={"reading_source": Backwards()})


# A retriever that is left as it is


def test_a_frozen_retriever_stays_and_the_reader_learns(world, tmp_path):
    model = qa_model(dropout=0.3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made, seen = watched(
        world,
        tmp_path,
        model,
        with_gold(world),
        gold_passages=True,
        freeze_retriever=True,
        reader_beam_size=3,
        searcher_beam_size=None,
    )
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all(name.startswith("reader.") for name in moved)
    assert all(r["loss"] == pytest.approx(r["reader_loss"]) and r["retriever_loss"] > 0 for r in steps(tmp_path))
    assert {beam.rows.shape for beam in seen.beams} == {(4, 3)}, "5,000 passages would be searched for nothing"
    assert made.model.config.searcher_beam_size == 5000


def test_a_frozen_retriever_searches_without_dropout(world, tmp_path):
    made = qa_trainer(world, tmp_path, qa_model(dropout=0.3), max_steps=1, freeze_retriever=True)
    embed, search, seen = made.model.embed_questions, made.search, []

    def spied(retriever, queries, ids, *rest):
        assert made.model.reader.training and made.model.embedder.training
        made.model.eval()
        padded = tiny_tokenizer().pad({"input_ids": [i.tolist() for i in ids]}, return_tensors="pt")
        seen.append((queries, embed(padded["input_ids"], padded["attention_mask"])))
        made.model.train()
        return search(retriever, queries, ids, *rest)

    made.search = spied
    made.train()
    torch.testing.assert_close(*seen[0])


@pytest.mark.parametrize("wrong", [{"refresh": "sync"}, {"retriever_learning_rate": 1e-3}])
def test_a_frozen_retriever_takes_neither_refresh_nor_a_rate(wrong):
    with pytest.raises(ValueError, match="a tower that does not learn needs neither"):
        OpenQATrainingArguments(output_dir="x", freeze_retriever=True, **wrong)


# Resuming, and what is said


def test_resumed_run_repeats_the_losses_with_gold_another_source_and_a_frozen_retriever(world, tmp_path):
    settings = {"max_steps": 6, "save_steps": 3, "save_total_limit": None, "gold_passages": True, **NARROW}

    def made(examples):
        more = {"reading_source": Backwards()}
        return qa_trainer(
            world, tmp_path, qa_model(dropout=0.1), examples, more=more, freeze_retriever=True, **settings
        )

    asked = with_gold(world)
    made(asked).train()
    before, checkpoint = losses(tmp_path), tmp_path / "checkpoints" / "step-3"
    made(asked).train(resume_from_checkpoint=checkpoint)
    assert losses(tmp_path) == before and len(before) == 6
    other = [OpenQAExample(e.question, e.answers, gold=(0,)) for e in asked]
    with pytest.raises(RunDirectoryError, match="questions"):
        made(other).train(resume_from_checkpoint=checkpoint)


def test_most_questions_without_an_answer_are_told_once_with_what_helps(world, tmp_path, caplog):
    asked = [*map(answerless, questions(world)[:40]), *questions(world)[40:]]
    settings = {"per_device_train_batch_size": 30, "max_steps": 4, "searcher_beam_size": 60, "reader_beam_size": 60}
    qa_trainer(world, tmp_path / "a", examples=asked, **settings).train()
    told = [record.getMessage() for record in caplog.records if "teach the reader nothing" in record.getMessage()]
    assert len(told) == 1 and "40 of the first 60 questions (67 %)" in told[0] and "gold_passages" in told[0]
    caplog.clear()
    qa_trainer(world, tmp_path / "b", **settings).train()
    assert "teach the reader nothing" not in caplog.text
    wrong = [OpenQAExample(e.question, e.answers, gold=(0,)) for e in asked]
    qa_trainer(world, tmp_path / "c", examples=wrong, gold_passages=True, **settings).train()
    assert "Few gold passages hold their answer" in caplog.text
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["trained_questions"] == {"questions": 120, "answerless": 80, "reader_answerless": 80}
