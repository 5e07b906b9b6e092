import numpy as np
import pytest
import torch
from datasets import Dataset

from realm_hf.data.reader_batch import make_reader_batch
from realm_hf.retriever.retriever import RealmRetriever


@pytest.fixture
def retriever(tiny_passages, tokenizer):
    embeddings = np.random.default_rng(0).standard_normal((len(tiny_passages), 16)).astype(np.float32)
    return RealmRetriever(tiny_passages, tokenizer, embeddings=embeddings)


def questions(tokenizer, *texts):
    return [np.array(tokenizer(text)["input_ids"]) for text in texts]


def test_a_row_is_question_and_body_without_the_title(retriever, tokenizer, tiny_passages):
    question = "How many people?"
    batch = retriever.reader_batch(questions(tokenizer, question), np.array([[5]]), 320)
    expected = tokenizer(question, tiny_passages.text(5))
    assert batch.input_ids[0].tolist() == expected["input_ids"]
    assert batch.token_type_ids[0].tolist() == expected["token_type_ids"]
    assert batch.attention_mask.all()
    body = batch.input_ids[0][batch.block_mask[0]]
    np.testing.assert_array_equal(body, tiny_passages.body_ids(5))
    assert batch.body_start.tolist() == [len(tokenizer(question)["input_ids"])]


def test_pairs_come_by_question_and_rank_and_absent_ones_are_left_out(retriever, tokenizer):
    rows = np.array([[3, -2, -2], [-1, 7, 2], [-2, -2, -2], [9, 3, -1]])
    batch = retriever.reader_batch(questions(tokenizer, "a", "b", "c", "d"), rows, 64)
    assert batch.question.tolist() == [0, 1, 1, 3, 3]
    assert batch.rank.tolist() == [0, 1, 2, 0, 1]
    assert batch.row.tolist() == [3, 7, 2, 9, 3]
    assert len(batch) == len(batch.input_ids) == 5


def test_a_batch_equals_its_questions_one_by_one(retriever, tokenizer):
    ids = questions(tokenizer, "A short one?", "", "A question of rather more words than the others have, is it not?")
    rows = np.array([[3, 4], [5, -2], [40, 41]])
    batch = retriever.reader_batch(ids, rows, 48)
    for number in range(3):
        single = retriever.reader_batch([ids[number]], rows[number : number + 1], 48)
        width = single.input_ids.shape[1]
        mine = batch.question == number
        for name in ("input_ids", "attention_mask", "token_type_ids", "block_mask"):
            wide = getattr(batch, name)[mine]
            np.testing.assert_array_equal(wide[:, :width], getattr(single, name))
            assert not wide[:, width:].any()
        np.testing.assert_array_equal(batch.body_start[mine], single.body_start)


@pytest.mark.parametrize("max_length", [4, 5, 12, 33])
def test_a_long_question_leaves_half_of_the_room_and_no_sep_is_cut(retriever, tokenizer, max_length):
    ids = questions(tokenizer, "word " * 400)
    batch = retriever.reader_batch(ids, np.array([[0, 1]]), max_length)
    assert batch.input_ids.shape == (2, max_length)
    half = max_length // 2
    assert batch.body_start.tolist() == [half, half]
    assert (batch.input_ids[:, half - 1] == tokenizer.sep_token_id).all()
    assert (batch.input_ids[:, -1] == tokenizer.sep_token_id).all()
    assert (batch.block_mask.sum(1) == max_length - half - 1).all()
    assert not batch.block_mask[:, -1].any()


def test_a_dataset_gives_the_same_as_its_store(retriever, tokenizer, tiny_passages):
    dataset = Dataset.from_dict({"text": tiny_passages.rows["text"][:]})
    plain = RealmRetriever(dataset, tokenizer)
    rows = np.array([[3, 4, 3], [4, -2, 0]])
    ids = questions(tokenizer, "Which?", "Who was it?")
    expected, found = retriever.reader_batch(ids, rows, 40), plain.reader_batch(ids, rows, 40)
    for name in ("input_ids", "attention_mask", "token_type_ids", "block_mask", "row", "body_start"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert plain.titles([0, -1]) == ["", ""] and retriever.titles([1, -1]) == ["Place 1", ""]


def test_nothing_retrieved_is_an_empty_batch(retriever, tokenizer):
    for ids, rows in (
        (questions(tokenizer, "a", "b"), np.full((2, 3), -2)),
        ([], np.zeros((0, 5), np.int64)),
        (questions(tokenizer, "a"), np.zeros((1, 0), np.int64)),
    ):
        batch = retriever.reader_batch(ids, rows, 32)
        assert len(batch) == 0
        assert all(tensor.shape == (0, 0) for tensor in batch.tensors().values())


def test_an_empty_body_has_no_place_for_a_span(tokenizer):
    retriever = RealmRetriever(Dataset.from_dict({"text": ["", "oil"]}), tokenizer)
    batch = retriever.reader_batch(questions(tokenizer, "what?"), np.array([[0, 1]]), 32)
    assert batch.block_mask.sum(1).tolist() == [0, 1]
    assert np.diff(batch.attention_mask.sum(1)).tolist() == [1]


def test_tensors_are_what_the_reader_takes(retriever, tokenizer):
    tensors = retriever.reader_batch(questions(tokenizer, "a"), np.array([[1]]), 32).tensors("cpu")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "token_type_ids": torch.int64,
        "block_mask": torch.bool,
    }


def test_wrong_input_is_refused_with_a_reason(retriever, tokenizer, tiny_passages):
    ids = questions(tokenizer, "a")
    with pytest.raises(ValueError, match="max_length is 3"):
        retriever.reader_batch(ids, np.array([[1]]), 3)
    with pytest.raises(ValueError, match=r"shape \[2, 1\]"):
        retriever.reader_batch(ids, np.array([[1], [2]]), 32)
    for row in (len(tiny_passages), -3):
        with pytest.raises(IndexError, match=str(row)):
            retriever.reader_batch(ids, np.array([[row]]), 32)
    with pytest.raises(ValueError, match="give the retriever a tokenizer"):
        RealmRetriever(Dataset.from_dict({"text": ["a"]})).reader_batch(ids, np.array([[0]]), 32)


def test_bodies_of_any_source_are_joined(tokenizer):
    from realm_hf.data.vocabulary import SpecialTokens

    values = np.array([50, 51, 52, 53, 54], np.uint16)
    batch = make_reader_batch(
        [np.array([2, 9, 3])],
        np.array([[0, 1]]),
        lambda rows: (values, np.array([0, 2])[rows], np.array([2, 3])[rows]),
        SpecialTokens(pad=0, cls=2, sep=3, mask=4),
        16,
    )
    assert batch.input_ids.tolist() == [[2, 9, 3, 50, 51, 3, 0], [2, 9, 3, 52, 53, 54, 3]]
    assert batch.attention_mask.tolist() == [[1] * 6 + [0], [1] * 7]


# The beam's embeddings


def test_beam_embeddings_are_the_stored_ones(retriever):
    rows = np.array([[3, -2], [0, 3]])
    found = retriever.beam_embeddings(rows)
    assert found.dtype == np.float32 and found.shape == (2, 2, 16)
    np.testing.assert_array_equal(found[0, 0], retriever.embeddings[3])
    np.testing.assert_array_equal(found[0, 1], 0)
    found[:] = 7
    assert not (retriever.embeddings == 7).any()


def test_beam_embeddings_of_half_precision_are_widened(tiny_passages):
    stored = np.random.default_rng(1).standard_normal((len(tiny_passages), 16)).astype(np.float16)
    found = RealmRetriever(tiny_passages, embeddings=stored).beam_embeddings(np.array([[1, 2]]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], stored[1:3].astype(np.float32))


def test_the_null_passage_is_embedded_by_the_passage_tower(retriever, embedder, tiny_passages):
    assert retriever.null_embedding() is None
    with pytest.raises(ValueError, match="embedder="):
        retriever.beam_embeddings(np.array([[-1, 2]]))
    retriever.embedder = embedder.train()
    inputs = {name: torch.from_numpy(array) for name, array in tiny_passages.pad_candidates(np.array([-1])).items()}
    with torch.no_grad():
        expected = embedder(**inputs).projected_score[0].numpy()
    np.testing.assert_allclose(retriever.null_embedding(), expected, atol=1e-6)
    np.testing.assert_allclose(retriever.beam_embeddings(np.array([[2, -1]]))[0, 1], expected, atol=1e-6)
    assert embedder.training


def test_the_null_embedding_is_kept_until_the_weights_change(retriever, embedder, monkeypatch):
    calls = []
    forward = type(embedder).forward
    monkeypatch.setattr(type(embedder), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    retriever.embedder = embedder
    first = retriever.null_embedding()
    assert retriever.null_embedding() is first and len(calls) == 1
    with torch.no_grad():
        embedder.cls.dense.bias.add_(torch.linspace(-1, 1, 16))
    assert not np.allclose(retriever.null_embedding(), first) and len(calls) == 2


def test_without_embeddings_there_are_none_to_give(tiny_passages, retriever):
    with pytest.raises(ValueError, match="without embeddings"):
        RealmRetriever(tiny_passages, index=retriever.index).beam_embeddings(np.array([[0]]))
    with pytest.raises(IndexError, match="48"):
        retriever.beam_embeddings(np.array([[48]]))
