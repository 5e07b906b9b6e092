"""BM25 over stored wordpieces: its numbers, what it may not see, edits, files."""

import json
import pickle

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_worlds import ANSWERS, KINDS, PLACES, tiny_tokenizer

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.masking import mask_example
from realm_hf.data.passages.build import passages_from_rows
from realm_hf.data.passages.terms import STOP_TERMS, TermReader, term_of
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.knowledge.bm25 import BM25Index
from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.candidates import Queries
from realm_hf.retriever.retriever import RealmRetriever

TOKENIZER = tiny_tokenizer()
SPECIAL = SpecialTokens.from_tokenizer(TOKENIZER)
READER = TermReader.of(TOKENIZER)
PLANTED = "qxzvkjwy"
words = st.lists(st.sampled_from([*KINDS, *PLACES, *ANSWERS]), min_size=1, max_size=6)


def token_ids(text: str) -> np.ndarray:
    return np.array(TOKENIZER(text)["input_ids"])


def terms(text: str) -> list[int]:
    return READER(RaggedArray.from_rows([token_ids(text)], np.dtype(np.int64)))[0].tolist()


@pytest.fixture
def retriever(passages, vectors, bm25, tower):
    return RealmRetriever(passages, TOKENIZER, embeddings=vectors, embedder=tower, candidate_source=bm25)


def found(retriever, *texts: str, k: int = 5, **kwargs) -> list[list[int]]:
    nothing = np.zeros((len(texts), 16), np.float32)
    ids = [token_ids(text) for text in texts]
    return retriever.retrieve(nothing, k, token_ids=ids, null_passage=False, **kwargs).rows.tolist()


# Words


def test_terms_are_whole_words_in_lower_case_however_they_are_cut():
    assert len(token_ids(PLANTED)) > 4
    assert terms(f"The {PLANTED.upper()}, and oil!") == [term_of(word) for word in ("the", PLANTED, "and", "oil")]
    assert set(terms("the and what")) <= set(STOP_TERMS.tolist()) and term_of("oil") not in STOP_TERMS
    assert terms("... ( ) -") == [] and terms("") == []


def test_a_word_whose_beginning_is_masked_is_no_term():
    ids = token_ids(f"oil {PLANTED} gas")
    ids[2] = SPECIAL.mask
    kept = READER(RaggedArray.from_rows([ids], np.dtype(np.int64)))[0].tolist()
    assert kept == [term_of("oil"), term_of("gas")]


def test_ids_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="is not in a vocabulary of"):
        READER(RaggedArray.from_rows([np.array([len(TOKENIZER)])], np.dtype(np.int64)))


# Numbers


def test_scores_are_those_of_bm25s(passages, bm25):
    bm25s = pytest.importorskip("bm25s")
    reference = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    documents = [
        [str(term) for term in terms(f"{passages.title(row)} {passages.text(row)}") if term not in STOP_TERMS]
        for row in range(len(passages))
    ]
    reference.index(documents, show_progress=False)
    for row in range(0, len(passages), 7):
        query = [*documents[row][:3], *documents[row][:1], documents[row - 1][-1]]
        expected = reference.get_scores(query)
        np.testing.assert_allclose(bm25.index.score(np.array(query, np.uint64)), expected, rtol=1e-4, atol=1e-6)


def test_only_passages_that_share_a_word_are_found_best_first(passages, retriever, bm25):
    title = passages.title(11)
    rows = found(retriever, title, "the what", k=len(passages))
    shared = {row for row in range(len(passages)) if {*terms(passages.title(row))} & {*terms(title)}}
    assert rows[0][0] == 11 and {row for row in rows[0] if row >= 0} == shared and len(shared) < len(passages)
    assert rows[1] == [-2] * len(passages)
    scores, ranked = bm25.rank(retriever._searched(), Queries(np.zeros((1, 16)), [token_ids(title)]), len(passages))
    assert (np.diff(scores[0, : len(shared)]) <= 0).all()
    again = bm25.scores(retriever._searched(), Queries(np.zeros((1, 16)), [token_ids(title)]), ranked)
    np.testing.assert_array_equal(again[0, : len(shared)], scores[0, : len(shared)])
    assert (again[0, len(shared) :] == 0).all()


@settings(max_examples=30, deadline=None)
@given(words, st.integers(1, 60))
def test_a_shallow_ranking_is_the_beginning_of_a_deep_one(source_and_knowledge, query, depth):
    bm25, knowledge = source_and_knowledge
    queries = Queries(np.zeros((1, 16)), [token_ids(" ".join(query))])
    deep, shallow = bm25.rank(knowledge, queries, 60)[1][0], bm25.rank(knowledge, queries, depth)[1][0]
    assert shallow.tolist() == deep[:depth].tolist()


@pytest.fixture(scope="module")
def source_and_knowledge(passages, vectors, bm25):
    return bm25, RealmRetriever(passages, embeddings=vectors)._searched()


def test_a_dataset_is_indexed_as_its_store_is(passages, bm25):
    rows = Dataset.from_dict({"title": passages.rows["title"][:], "text": passages.rows["text"][:]})
    other = BM25Source.build(rows, TOKENIZER).index
    for name in ("terms", "weights", "offsets", "rows", "scores"):
        np.testing.assert_array_equal(getattr(other, name), getattr(bm25.index, name))


# What it may not see


@settings(max_examples=40, deadline=None)
@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12), words)
def test_no_label_leaks_whatever_stood_under_the_mask(world_with_a_planted_answer, answer, around):
    """The planted answer stands in one passage; masked, it changes no place of the ranking."""
    retriever, row = world_with_a_planted_answer
    rankings = []
    for under in (PLANTED, answer):
        sentence = token_ids(" ".join([*around, under]))[1:-1]
        start = len(token_ids(" ".join(around))) - 2
        masked = mask_example(
            sentence,
            np.array([[start, len(sentence)]]),
            special_tokens=SPECIAL,
            rng=np.random.default_rng(0),
            max_query_length=64,
        )
        assert (masked.input_ids == SPECIAL.mask).sum() == len(sentence) - start
        nothing = np.zeros((1, 16), np.float32)
        rankings.append(retriever.retrieve(nothing, 20, token_ids=[masked.input_ids]).rows.tolist())
    assert rankings[0] == rankings[1] and row not in rankings[0][0]
    # Shown, it is found: the test can fail.
    assert row in found(retriever, " ".join([*around, PLANTED]), k=20)[0]


@pytest.fixture(scope="module")
def world_with_a_planted_answer(tmp_path_factory):
    texts = [
        f"The {kind} {place} sells {answer}." for kind, place, answer in zip(KINDS, PLACES, ANSWERS, strict=False)
    ]
    rows = Dataset.from_dict({"text": [*texts, f"They buy {PLANTED} here.", *(f"We sell {a}." for a in ANSWERS)]})
    store = passages_from_rows(
        rows, TOKENIZER, tmp_path_factory.mktemp("planted") / "p", max_length=32, title_column=None
    )
    vectors = np.zeros((len(store), 16), np.float32)
    bm25 = BM25Source.build(store, TOKENIZER)
    return RealmRetriever(store, TOKENIZER, embeddings=vectors, candidate_source=bm25), len(texts)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 59), st.integers(2, 8), st.integers(0, 4))
def test_no_candidate_contains_the_sentence(passages, vectors, bm25, row, k, over):
    retriever = RealmRetriever(passages, TOKENIZER, embeddings=vectors, candidate_source=bm25)
    sentence = np.asarray(passages.body_ids(row))[:-1]
    batch = retriever.retrieve(
        vectors[:1], k, token_ids=[token_ids(passages.text(row))], exclude=[sentence], over_retrieve=over
    )
    kept = batch.rows[0][batch.rows[0] >= 0]
    assert not passages.contains(sentence, kept).any() and row not in kept and batch.excluded[0] >= 1
    everything = found(retriever, passages.text(row), k=len(passages))[0]
    assert (
        kept.tolist()
        == [r for r in everything if r >= 0 and not passages.contains(sentence, np.array([r]))[0]][: k - 1]
    )


# Edits


def test_edited_passages_are_found_by_the_words_they_have_now(retriever, passages):
    old = passages.title(4)
    assert found(retriever, old)[0][0] == 4
    added = retriever.add_passages([f"They sell {PLANTED} and oil."], ["Dawsonhythe"])
    assert found(retriever, PLANTED)[0][0] == added[0] == len(passages)
    assert found(retriever, "dawsonhythe")[0][0] == added[0]
    retriever.replace_passages([4], [f"We buy {PLANTED}."], ["zzqjxkvw"])
    assert 4 not in found(retriever, old, k=40)[0]
    assert sorted(found(retriever, PLANTED)[0][:2]) == [4, added[0]] and found(retriever, "zzqjxkvw")[0][0] == 4
    retriever.remove_passages([4, int(added[0])])
    assert found(retriever, PLANTED) == [[-2] * 5] and found(retriever, "zzqjxkvw") == [[-2] * 5]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "replace", "remove"]), st.integers(0, 59), words), min_size=1, max_size=6
    ),
    words,
)
def test_whatever_is_edited_what_shares_a_word_is_found(passages, vectors, bm25, tower, edits, query):
    retriever = RealmRetriever(passages, TOKENIZER, embeddings=vectors, embedder=tower, candidate_source=bm25)
    texts = {row: f"{passages.title(row)} {passages.text(row)}" for row in range(len(passages))}
    for kind, row, content in edits:
        if kind == "add":
            number = int(retriever.add_passages([" ".join(content)])[0])
            texts[number] = " ".join(content)
        elif row in texts and kind == "replace":
            retriever.replace_passages([row], [" ".join(content)], [""])
            texts[row] = " ".join(content)
        elif row in texts:
            retriever.remove_passages([row])
            del texts[row]
    knowledge = retriever._searched()
    rows = bm25.rank(knowledge, Queries(np.zeros((1, 16)), [token_ids(" ".join(query))]), len(knowledge.corpus))[1]
    asked = {*terms(" ".join(query))} - {*STOP_TERMS.tolist()}
    assert {row for row in rows[0].tolist() if row >= 0} == {r for r, text in texts.items() if asked & {*terms(text)}}


def test_a_passage_scores_the_same_in_the_base_and_as_an_edit(passages, bm25):
    part = bm25.index.like([passages.title_ids(7)], [passages.body_ids(7)])
    query = np.array(terms(f"{passages.title(7)} sells oil"), np.uint64)
    assert part.score(query)[0] == pytest.approx(bm25.index.score(query)[7], rel=1e-6)


# Files


def test_a_saved_index_is_mapped_and_answers_the_same(bm25, retriever, passages, tmp_path):
    bm25.save(tmp_path / "bm25")
    loaded = BM25Source.load(tmp_path / "bm25")
    assert isinstance(loaded.index.rows.base, np.memmap) and loaded.index.directory == tmp_path / "bm25"
    expected = found(retriever, passages.text(3), passages.text(9))
    pickled = pickle.dumps(loaded)
    assert len(pickled) < 1000
    for other in (
        loaded,
        BM25Source.load(tmp_path / "bm25", mmap=False),
        pickle.loads(pickled),
        pickle.loads(pickle.dumps(bm25)),
    ):
        retriever.candidate_source = other
        assert found(retriever, passages.text(3), passages.text(9)) == expected
    BM25Index.open(tmp_path / "bm25", verify=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rows", lambda a: a.__setitem__(0, 60), "names no passage"),
        ("rows", lambda a: a.__setitem__(0, -1), "names no passage"),
        ("offsets", lambda a: a.__setitem__(-2, a[-1] + 1), "do not ascend"),
        ("terms", lambda a: a.__setitem__(3, 0), "ascending order"),
        ("scores", lambda a: a.__setitem__(3, np.nan), "no positive number"),
    ],
)
def test_arrays_that_would_mislead_a_search_are_refused(bm25, tmp_path, name, change, message):
    bm25.save(tmp_path / "bm25")
    path = tmp_path / "bm25" / f"{name}.bin"
    array = np.fromfile(path, getattr(bm25.index, name).dtype)
    change(array)
    array.tofile(path)
    with pytest.raises(ValueError, match="sha256"):
        BM25Index.open(tmp_path / "bm25", verify=True)
    with pytest.raises(ValueError, match=message):
        BM25Index.open(tmp_path / "bm25").check()


def test_a_cut_file_and_a_missing_one_are_refused(bm25, tmp_path):
    bm25.save(tmp_path / "bm25")
    (tmp_path / "bm25" / "rows.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"rows\.bin has 4 bytes instead of"):
        BM25Source.load(tmp_path / "bm25")
    with pytest.raises(FileNotFoundError, match=r"build one with `BM25Source\.build`"):
        BM25Source.load(tmp_path)
    assert json.loads((tmp_path / "bm25" / "bm25.json").read_text())["count"] == 60


def test_the_index_of_other_passages_is_refused(bm25, passages, vectors, tmp_path):
    rows = Dataset.from_dict({"text": [f"We buy {answer}." for answer in ANSWERS]})
    store = passages_from_rows(rows, TOKENIZER, tmp_path / "few", max_length=32, title_column=None)
    few = RealmRetriever(store, TOKENIZER, embeddings=vectors[: len(store)], candidate_source=bm25)
    with pytest.raises(ValueError, match="The BM25 index is of 60 passages"):
        found(few, "oil")
    rows = Dataset.from_dict({"text": [f"We buy {number} boats." for number in range(len(passages))]})
    store = passages_from_rows(rows, TOKENIZER, tmp_path / "others", max_length=32, title_column=None)
    others = RealmRetriever(store, TOKENIZER, embeddings=vectors, candidate_source=bm25)
    with pytest.raises(ValueError, match=r"build it from these passages"):
        found(others, "oil")


def test_mistakes_are_told(passages, retriever):
    with pytest.raises(ValueError, match=r"k1 is -1 and b is 0\.75"):
        BM25Source.build(passages, TOKENIZER, k1=-1)
    with pytest.raises(ValueError, match="b is 2"):
        BM25Source.build(passages, TOKENIZER, b=2)
    with pytest.raises(ValueError, match="No passage holds a word"):
        BM25Source.build(Dataset.from_dict({"text": ["the", "..."]}), TOKENIZER)
    with pytest.raises(ValueError, match="pass `token_ids=` to `retrieve`"):
        retriever.retrieve(np.zeros((1, 16), np.float32), 2)
