"""Collators: the released formats token by token, padding, absent candidates, and agreement with the model."""

import numpy as np
import pytest
import torch

from realm_hf import RealmForPreTraining, RealmTokenizer
from realm_hf.data.collators import InverseClozeCollator, PreTrainingCollator
from realm_hf.data.inverse_cloze import InverseClozeDataset, InverseClozeExample
from realm_hf.data.masking import example_rng, mask_example


@pytest.fixture
def examples(passages):
    """Three sentences of unequal length with 3, 1 and 2 candidates, the first of them the null passage."""
    made = []
    for index, rows in enumerate([[-1, 2, 0], [-1], [-1, 3]]):
        ids = passages.body_ids(index)[: 6 + 5 * index]
        spans = np.array([[1, 2 + index]])
        query = mask_example(ids, spans, special_tokens=passages.special_tokens, rng=example_rng(0, 0, index))
        made.append((query, np.array(rows)))
    return made


def test_every_row_has_the_released_format(passages, tokenizer, examples):
    batch = PreTrainingCollator(passages, tokenizer)(examples)
    pad, sep = tokenizer.pad_token_id, tokenizer.sep_token_id
    assert batch["candidate_ids"].tolist() == [[-1, 2, 0], [-1, -2, -2], [-1, 3, -2]]
    for b, (query, _) in enumerate(examples):
        x = query.input_ids.tolist()
        length = int(batch["query_attention_mask"][b].sum())
        assert batch["query_input_ids"][b].tolist() == x + [pad] * (batch["query_input_ids"].shape[1] - length)
        for k in range(3):
            row = max(int(batch["candidate_ids"][b, k]), -1)
            body = passages.body_ids(row).tolist()
            for name, expected, first in (
                ("candidate", passages.candidate_ids(row).tolist(), 2 + len(passages.title_ids(row))),
                ("joint", [*x, *body, sep], len(x)),
            ):
                n, width = len(expected), batch[f"{name}_input_ids"].shape[2]
                assert batch[f"{name}_input_ids"][b, k].tolist() == expected + [pad] * (width - n)
                assert batch[f"{name}_attention_mask"][b, k].tolist() == [1] * n + [0] * (width - n)
                segments = [0] * first + [1] * (n - first) + [0] * (width - n)
                assert batch[f"{name}_token_type_ids"][b, k].tolist() == segments


def test_the_joint_input_leaves_the_title_out(passages, tokenizer, examples):
    batch = PreTrainingCollator(passages, tokenizer)(examples)
    text = tokenizer.decode(batch["joint_input_ids"][0, 2], skip_special_tokens=True)
    assert passages.title(0) == "France"
    assert text.endswith(tokenizer.decode(passages.body_ids(0)))
    assert batch["joint_attention_mask"][0, 2].sum() == len(examples[0][0].input_ids) + len(passages.body_ids(0)) + 1


def test_tensors_are_int64_and_trimmed_to_the_longest_row(passages, tokenizer, examples):
    batch = PreTrainingCollator(passages, tokenizer)(examples)
    for key, value in batch.items():
        assert value.dtype == (torch.bool if key == "candidate_mask" else torch.int64), key
    for name in ("query", "candidate", "joint"):
        mask = batch[f"{name}_attention_mask"]
        assert int(mask.sum(-1).max()) == mask.shape[-1], name
    assert batch["mlm_positions"].shape == batch["mlm_labels"].shape == (3, 3)


def test_masked_positions_hold_mask_tokens_in_query_and_joint(passages, tokenizer, examples):
    batch = PreTrainingCollator(passages, tokenizer)(examples)
    wanted = batch["mlm_labels"] != -100
    assert wanted.sum(1).tolist() == [1, 2, 3]
    for b in range(3):
        positions = batch["mlm_positions"][b][wanted[b]]
        assert (batch["query_input_ids"][b, positions] == tokenizer.mask_token_id).all()
        assert (batch["joint_input_ids"][b][:, positions] == tokenizer.mask_token_id).all()
        assert batch["mlm_labels"][b][wanted[b]].tolist() == passages.body_ids(b)[1 : 2 + b].tolist()


def test_absent_candidates_are_masked_but_have_attention(passages, tokenizer, examples):
    batch = PreTrainingCollator(passages, tokenizer)(examples)
    assert batch["candidate_mask"].tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert batch["candidate_input_ids"][1, 1, :3].tolist() == [cls, sep, sep]
    assert int(batch["joint_attention_mask"].sum(-1).min()) > 0
    assert int(batch["candidate_attention_mask"].sum(-1).min()) == 3


def test_the_null_passage_is_put_first_only_where_it_is_missing(passages, tokenizer, examples):
    collate = PreTrainingCollator(passages, tokenizer)
    without = [(query, rows[1:]) for query, rows in examples]
    for key, value in collate(examples).items():
        assert torch.equal(value, collate(without)[key]), key
    bare = PreTrainingCollator(passages, tokenizer, null_candidate=False)
    assert bare([without[0], without[2]])["candidate_ids"].tolist() == [[2, 0], [3, -2]]
    with pytest.raises(ValueError, match="no candidate at all"):
        bare(without)


def test_a_shorter_candidate_limit_cuts_bodies_and_no_separator(passages, tokenizer, examples):
    batch = PreTrainingCollator(passages, tokenizer, max_candidate_length=12)(examples)
    sep = tokenizer.sep_token_id
    assert batch["candidate_input_ids"].shape[2] == 12
    assert batch["candidate_input_ids"][0, 1, -1] == sep
    assert batch["candidate_input_ids"][0, 1].tolist()[:-1] == passages.candidate_ids(2).tolist()[:11]
    x = examples[0][0].input_ids.tolist()
    joint = batch["joint_input_ids"][0, 1, : len(x) + 11].tolist()
    assert joint == [*x, *passages.body_ids(2)[:10].tolist(), sep]


def test_a_query_masked_for_a_longer_limit_is_refused(passages, tokenizer, examples):
    with pytest.raises(ValueError, match="a query of 18 wordpieces exceeds max_query_length=12"):
        PreTrainingCollator(passages, tokenizer, max_query_length=12)(examples)


def test_another_tokenizer_than_the_passages_is_refused(passages, tiny_vocab):
    with pytest.raises(ValueError, match="were built with tokenizer"):
        PreTrainingCollator(passages, RealmTokenizer(vocab=str(tiny_vocab), do_lower_case=False))


def test_an_empty_batch_is_an_error(passages, tokenizer):
    for collate in (PreTrainingCollator(passages, tokenizer), InverseClozeCollator(tokenizer)):
        with pytest.raises(ValueError, match="at least one"):
            collate([])


def test_the_model_takes_a_batch_as_it_is(passages, tokenizer, examples, tiny_config):
    torch.manual_seed(0)
    model = RealmForPreTraining(tiny_config).eval()
    output = model(**PreTrainingCollator(passages, tokenizer)(examples))
    assert torch.isfinite(output.loss)
    absent = output.candidate_log_probs.exp()[~torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)]
    assert (absent == 0).all()


def test_inverse_cloze_batches_have_the_released_format(passages, tokenizer):
    data = InverseClozeDataset(passages)
    examples = [data[i] for i in range(len(passages))]
    batch = InverseClozeCollator(tokenizer)(examples)
    for n, example in enumerate(examples):
        title, body = tokenizer.decode(example.title_ids), tokenizer.decode(example.body_ids)
        width = batch["passage_input_ids"].shape[1]
        expected = tokenizer(title, body, padding="max_length", max_length=width)
        query = tokenizer(
            tokenizer.decode(example.query_ids), padding="max_length", max_length=batch["query_input_ids"].shape[1]
        )
        assert batch["passage_input_ids"][n].tolist() == expected["input_ids"]
        assert batch["passage_attention_mask"][n].tolist() == expected["attention_mask"]
        assert batch["passage_token_type_ids"][n].tolist() == expected["token_type_ids"]
        assert batch["query_input_ids"][n].tolist() == query["input_ids"]
        assert batch["query_attention_mask"][n].tolist() == query["attention_mask"]
        assert batch["passage_ids"][n] == example.passage_row


def test_inverse_cloze_truncation_keeps_separators(tokenizer):
    example = InverseClozeExample(np.arange(100, 130), 7, np.arange(200, 204), np.arange(300, 340), True)
    batch = InverseClozeCollator(tokenizer, max_query_length=6, max_candidate_length=10)([example])
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert batch["query_input_ids"].tolist() == [[cls, 100, 101, 102, 103, sep]]
    assert batch["passage_input_ids"].tolist() == [[cls, 200, 201, 202, 203, sep, 300, 301, 302, sep]]
    assert batch["passage_token_type_ids"].tolist() == [[0] * 6 + [1] * 4]
