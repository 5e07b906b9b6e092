"""ICT examples: which sentence, whether it stays, and which passages are used."""

from itertools import chain, pairwise

import numpy as np
import pytest
from datasets import Dataset

from realm_hf.data import build_passages
from realm_hf.data.inverse_cloze import InverseClozeDataset


def sentences_of(passages, row):
    body = passages.body_ids(row)
    bounds = [*passages.sentence_starts(row).tolist(), len(body)]
    return [body[a:b].tolist() for a, b in pairwise(bounds)]


def test_the_sentence_is_kept_or_taken_out_exactly(passages):
    data = InverseClozeDataset(passages, keep_probability=0.5, seed=3)
    seen = set()
    for epoch in range(6):
        for index in range(len(data)):
            example = data.visit(index, epoch)
            sentences = sentences_of(passages, example.passage_row)
            chosen = sentences.index(example.query_ids.tolist())
            rest = sentences if example.kept else sentences[:chosen] + sentences[chosen + 1 :]
            assert example.body_ids.tolist() == list(chain(*rest))
            assert example.title_ids.tolist() == passages.title_ids(example.passage_row).tolist()
            seen.add(example.kept)
    assert seen == {True, False}


def test_the_sentence_stays_in_a_tenth_of_the_cases(passages):
    data = InverseClozeDataset(passages, rows=np.flatnonzero(passages.sentence_counts > 1))
    kept = [data.visit(index, epoch).kept for epoch in range(300) for index in range(len(data))]
    assert 0.08 < np.mean(kept) < 0.12


def test_a_one_sentence_passage_is_used_only_with_its_sentence(passages):
    single = passages.sentence_counts == 1
    assert single.any()
    data = InverseClozeDataset(passages, keep_probability=0.3)
    examples = [data.visit(index, epoch) for epoch in range(100) for index in range(len(data))]
    lone = [example for example in examples if single[example.passage_row]]
    assert lone
    assert all(example.kept for example in lone)
    assert all(len(example.body_ids) > 0 for example in examples)


def test_examples_repeat_by_seed_epoch_and_index(passages):
    def draws(seed, epoch):
        data = InverseClozeDataset(passages, seed=seed)
        examples = (data.visit(i, epoch) for i in reversed(range(len(data))))
        return [(e.passage_row, e.kept, e.query_ids.tolist()) for e in examples]

    assert draws(0, 0) == draws(0, 0)
    assert draws(0, 0) != draws(0, 1)
    assert draws(0, 0) != draws(1, 0)


def test_a_corpus_of_single_sentences_needs_a_keep_probability(tokenizer, tmp_path):
    store = build_passages(Dataset.from_dict({"title": ["a"], "text": ["One."]}), tokenizer, tmp_path / "p")
    with pytest.raises(ValueError, match="all 1 passages have one sentence"):
        InverseClozeDataset(store, keep_probability=0)
    assert InverseClozeDataset(store)[0].kept


def test_bad_arguments_are_refused(passages):
    with pytest.raises(ValueError, match=r"keep_probability is 1.5"):
        InverseClozeDataset(passages, keep_probability=1.5)
    with pytest.raises(ValueError, match="no passage rows"):
        InverseClozeDataset(passages, rows=np.zeros(0, np.int64))
    with pytest.raises(IndexError, match="out of range"):
        InverseClozeDataset(passages)[len(passages)]


def test_a_masked_query_hides_one_short_run_and_nothing_of_the_passage(passages):
    mask = passages.special_tokens.mask
    plain = InverseClozeDataset(passages, keep_probability=1.0, seed=3)
    masked = InverseClozeDataset(passages, keep_probability=1.0, seed=3, mask_probability=1.0)
    for index in range(len(passages)):
        before, after = plain[index], masked[index]
        hidden = np.flatnonzero(after.query_ids == mask)
        assert np.array_equal(after.body_ids, before.body_ids)
        assert 1 <= len(hidden) <= min(5, len(before.query_ids) - 1)
        assert np.array_equal(hidden, np.arange(hidden[0], hidden[0] + len(hidden)))
        untouched = after.query_ids != mask
        assert np.array_equal(after.query_ids[untouched], before.query_ids[untouched])


def test_queries_are_masked_as_often_as_asked(passages):
    dataset = InverseClozeDataset(passages, seed=0, mask_probability=0.5)
    mask = passages.special_tokens.mask
    share = np.mean([(dataset.visit(i, e).query_ids == mask).any() for e in range(40) for i in range(len(dataset))])
    assert 0.4 < share < 0.6
