"""A source of candidates that matches words is plugged in: in a search, in pre-training, and in answering."""

import copy
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_answerers import tiny_answerer
from tiny_worlds import load_world, tiny_model, tiny_tokenizer

from realm_hf.data.masking import MaskedQuery
from realm_hf.retriever.candidates import IndexSource, Queries, RankingSource
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.pretraining import RealmTrainer

TOKENIZER = tiny_tokenizer()


class SharedWords(RankingSource):
    """Ranks passages by how many different wordpieces they share with the query: a whole lexical source."""

    def __init__(self, passages, special_ids):
        self.bags = [set(passages.body_tokens[row].tolist()) for row in range(len(passages))]
        self.special_ids = special_ids

    def rank(self, knowledge, queries, depth):
        words = [set(ids.tolist()) for ids in queries.wordpieces(self.special_ids)]
        shared = np.array([[len(bag & query) for bag in self.bags] for query in words], np.float32)
        rows = np.argsort(-shared, axis=1, kind="stable")[:, :depth]
        return np.take_along_axis(shared, rows, 1), rows


class Recorded(SharedWords):
    """Keeps all that it was given."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen: list[Queries] = []

    def rank(self, knowledge, queries, depth):
        self.seen.append(queries)
        return super().rank(knowledge, queries, depth)


@pytest.fixture(scope="module")
def vectors(passages):
    return np.random.default_rng(0).normal(size=(len(passages), 16)).astype(np.float32)


@pytest.fixture
def source(passages):
    return Recorded(passages, TOKENIZER.all_special_ids)


@pytest.fixture
def retriever(passages, vectors, source):
    return RealmRetriever(passages, TOKENIZER, embeddings=vectors, candidate_source=source)


def token_ids(text: str) -> np.ndarray:
    return np.array(TOKENIZER(text)["input_ids"])


def test_words_find_the_passage_that_has_them_whatever_the_vectors_say(retriever, passages, vectors):
    rows = [3, 17, 40]
    asked = [token_ids(passages.text(row)) for row in rows]
    batch = retriever.retrieve(-vectors[rows], 2, token_ids=asked, null_passage=False)
    assert batch.rows[:, 0].tolist() == rows
    assert batch.scores[:, 0].tolist() == [len(set(ids[1:-1].tolist())) for ids in asked]


def test_the_index_is_the_source_by_default(passages, vectors):
    plain = RealmRetriever(passages, embeddings=vectors).retrieve(vectors[:5], 4)
    given = RealmRetriever(passages, embeddings=vectors, candidate_source=IndexSource()).retrieve(vectors[:5], 4)
    np.testing.assert_array_equal(plain.rows, given.rows)
    np.testing.assert_array_equal(plain.scores, given.scores)


def test_a_source_needs_to_know_nothing_of_exclusion_and_copies(vectors):
    texts = ["We buy oil.", "we buy OIL", "They buy oil.", "They sell fish.", "We buy gas."]
    rows = Dataset.from_dict({"text": texts})

    class InOrder(RankingSource):
        depths: list[int] = []  # noqa: RUF012

        def rank(self, knowledge, queries, depth):
            self.depths.append(depth)
            return np.zeros((len(queries), depth)), np.tile(np.arange(depth), (len(queries), 1))

    retriever = RealmRetriever(rows, embeddings=vectors[:5], candidate_source=InOrder())
    batch = retriever.retrieve(vectors[:2], 2, exclude=["buy oil", None], null_passage=False, over_retrieve=0)
    assert batch.rows.tolist() == [[3, 4], [0, 2]]
    assert batch.excluded.tolist() == [3, 0] and batch.duplicates.tolist() == [0, 1]
    assert InOrder.depths == [2, 5]


def test_a_search_of_texts_hands_their_tokens_on(retriever, passages, source):
    retriever.query_embedder = tiny_model().embedder.eval()
    found = retriever.search(passages.text(9), k=1)
    assert found.rows.tolist() == [9]
    assert source.seen[0].token_ids[0].tolist() == token_ids(passages.text(9)).tolist()


def test_copies_share_the_source_and_pickles_keep_it(retriever, passages, vectors):
    asked = [token_ids(passages.text(5))]
    for other in (copy.copy(retriever), retriever.snapshot()):
        assert other.candidate_source is retriever.candidate_source
    kept = pickle.loads(pickle.dumps(retriever.candidate_source))
    assert RealmRetriever(passages, embeddings=vectors, candidate_source=kept).retrieve(
        vectors[:1], 1, token_ids=asked, null_passage=False
    ).rows.tolist() == [[5]]


def test_mistakes_are_told(retriever, passages, vectors):
    with pytest.raises(ValueError, match="pass `token_ids=` to `retrieve`"):
        retriever.retrieve(vectors[:1], 2)
    with pytest.raises(ValueError, match="`token_ids` has 2 entries for 1 queries"):
        retriever.retrieve(vectors[:1], 2, token_ids=[token_ids("a"), token_ids("b")])
    without = RealmRetriever(passages, index=retriever.index, candidate_source=IndexSource())
    with pytest.raises(ValueError, match="give the retriever `embeddings` too"):
        without.retrieve(vectors[:1], 2)


def test_pre_training_retrieves_by_words_and_shows_them_masked_only(world, passages, source, tmp_path):
    _, sentences = load_world(world)
    args = RealmTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=4,
        num_candidates=3,
        max_query_length=24,
        max_candidate_length=32,
        refresh="sync",
        refresh_steps=2,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = RealmTrainer(
        tiny_model(),
        args,
        train_dataset=sentences.train,
        processing_class=TOKENIZER,
        passages=passages,
        candidate_source=source,
    )
    trained_on: list[tuple[MaskedQuery, np.ndarray]] = []
    accumulate = trainer.accumulate

    def recorded(step):
        figures = accumulate(step)
        for examples, rows in trainer.retrieved.micro_batches:
            trained_on.extend(zip(examples, rows, strict=True))
        return figures

    trainer.accumulate = recorded
    trainer.train()

    seen = {ids.tobytes() for queries in source.seen for ids in queries.token_ids}
    assert len(trained_on) == 12 and vars(source.seen[0]).keys() == {"vectors", "token_ids"}
    plain = SharedWords(passages, TOKENIZER.all_special_ids)
    for example, rows in trained_on:
        assert example.input_ids.tobytes() in seen
        assert (example.input_ids[example.positions] == TOKENIZER.mask_token_id).all()
        # The answer stands in one place of these sentences: masked there, it is nowhere in what was shown.
        assert not np.isin(example.labels, example.input_ids).any()
        _, ranked = plain.rank(None, Queries(np.zeros((1, 16)), [example.input_ids]), len(passages))
        contained = passages.contains(example.sentence_ids, ranked[0])
        assert rows.tolist() == [-1, *ranked[0][~contained][:2].tolist()]


def test_an_answer_rests_on_the_passages_that_words_found(passages, source):
    answerer = tiny_answerer(passages)
    answerer.retriever.candidate_source = source
    question = passages.text(21)
    answer = answerer(question, top_k=2)[0]
    found = answerer.retrieve(question, top_k=2)
    expected = source.rank(None, Queries(np.zeros((1, 16)), [token_ids(question)]), 2)[1]
    np.testing.assert_array_equal(found.batch.rows, expected)
    assert sorted(e.row for e in answer.evidence) == sorted(expected[0].tolist())
    # Relevance is the towers', whatever found the passages.
    stored = torch.from_numpy(answerer.retriever.beam_embeddings(expected))[0]
    scores = (stored.double() @ found.embeddings[0].double()) * answerer.model.config.score_scale
    of_row = dict(zip(expected[0].tolist(), torch.softmax(scores, 0).tolist(), strict=True))
    for evidence in answer.evidence:
        assert evidence.retrieval_probability == pytest.approx(of_row[evidence.row], abs=1e-5)
    # The model's own forward goes the same way.
    output = answerer.model(torch.tensor(found.question_ids[0])[None])
    assert output.reader_output.block_idx is not None and len(source.seen) == 4


def test_queries_are_taken_apart_by_place():
    queries = Queries(np.arange(6.0).reshape(3, 2), [np.array([1, 7, 2]), np.array([1, 2]), np.array([1, 8, 9, 2])])
    some = queries[np.array([2, 0])]
    assert len(some) == 2 and some.vectors.tolist() == [[4, 5], [0, 1]]
    assert [ids.tolist() for ids in some.wordpieces([1, 2])] == [[8, 9], [7]]
    assert queries[np.array([1])].wordpieces([1, 2])[0].tolist() == []
