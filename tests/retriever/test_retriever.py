import logging
import os
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from datasets import Dataset

from realm_hf.data.passages.build import PassageStore, passages_from_rows
from realm_hf.generations.store import GenerationStore
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import FaissIndex
from realm_hf.retriever.reader_inputs import answer_positions
from realm_hf.retriever.retriever import RealmRetriever, SearchStats

SENTENCE = "The river runs north to the sea."
TEXTS = [
    f"{SENTENCE} Its water is cold.",
    "Managua is the capital of Nicaragua. It lies on a lake.",
    f"{SENTENCE} Its water is cold.",
    "Copper and iron are the main exports. Trade grows.",
    "the river runs north to the sea, its water is cold",
    "Wheat and rice are grown here. Maize too.",
    f"The land is flat. {SENTENCE}",
    "COPPER and iron are the main exports... trade grows!",
    "The people speak two languages. Many speak three.",
]
# Rows 0, 2, 4 and rows 3, 7 have one text each; rows 0, 2, 6 contain the sentence word for word.


@pytest.fixture(scope="module")
def passages(tmp_path_factory, tokenizer) -> PassageStore:
    rows = Dataset.from_dict({"title": [f"Page {n}" for n in range(len(TEXTS))], "text": TEXTS})
    return passages_from_rows(rows, tokenizer, tmp_path_factory.mktemp("passages") / "store", max_length=64)


@pytest.fixture
def falling() -> np.ndarray:
    """Embeddings `[9, 4]` whose inner product with `QUERY` falls with the row: 9, 8, ..., 1."""
    embeddings = np.random.default_rng(0).standard_normal((len(TEXTS), 4)).astype(np.float32)
    embeddings[:, 0] = np.arange(len(TEXTS), 0, -1)
    return embeddings


QUERY = np.array([[1, 0, 0, 0]], np.float32)


@pytest.fixture
def retriever(passages, falling, tokenizer) -> RealmRetriever:
    return RealmRetriever(passages, tokenizer, embeddings=falling)


def tokens(tokenizer, text):
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])


# What is retrieved


def test_ranking_is_by_inner_product_and_not_by_distance():
    # Row 1 is nearest by distance and by angle; row 0 is longer and has the larger product.
    retriever = RealmRetriever(
        Dataset.from_dict({"text": ["long", "near"]}), embeddings=np.array([[5, 5], [1, 0.1]], np.float32)
    )
    batch = retriever.retrieve(np.array([[1, 0]], np.float32), 2, null_passage=False)
    assert batch.rows.tolist() == [[0, 1]]
    np.testing.assert_allclose(batch.scores, [[5, 1]])


def test_the_null_passage_comes_first_and_counts(retriever):
    batch = retriever.retrieve(QUERY, 3)
    assert batch.rows.tolist() == [[-1, 0, 1]] and batch.mask.all()
    assert np.isnan(batch.scores[0, 0]) and batch.scores[0, 1:].tolist() == [9, 8]
    assert retriever.retrieve(QUERY, 1).rows.tolist() == [[-1]]
    assert retriever.retrieve(QUERY, 2, null_passage=False).rows.tolist() == [[0, 1]]


def test_the_better_ranked_of_equal_texts_stays(retriever):
    batch = retriever.retrieve(QUERY, 6, null_passage=False)
    assert batch.rows.tolist() == [[0, 1, 3, 5, 6, 8]]
    assert batch.duplicates.tolist() == [3] and batch.excluded.tolist() == [0]  # rows 2, 4 and 7


def test_passages_with_the_sentence_go_and_so_do_other_forms_of_their_text(retriever, tokenizer):
    batch = retriever.retrieve(QUERY, 5, exclude=[tokens(tokenizer, SENTENCE)])
    assert batch.rows.tolist() == [[-1, 1, 3, 5, 8]]
    # Row 4 says the same with a comma; its group goes as a whole. Rows 0, 2, 4, 6 contain, row 7 repeats.
    assert batch.excluded.tolist() == [4] and batch.duplicates.tolist() == [1]


def test_a_sentence_can_be_given_as_text_or_not_at_all(retriever, tokenizer):
    queries = np.repeat(QUERY, 3, axis=0)
    batch = retriever.retrieve(
        queries, 4, exclude=["the  RIVER runs north to the sea.", None, tokens(tokenizer, "two")]
    )
    assert batch.rows.tolist() == [[-1, 1, 3, 5], [-1, 0, 1, 3], [-1, 0, 1, 3]]


@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
def test_any_depth_gives_what_filtering_the_whole_ranking_gives(factory):
    rng = np.random.default_rng(1)
    for trial in range(25):
        n = int(rng.integers(1, 40))
        groups = rng.integers(0, max(1, n // 3), n)
        dataset = Dataset.from_dict({"text": [f"word{g} end" for g in groups]})
        embeddings = rng.standard_normal((n, 8)).astype(np.float32)
        queries = rng.standard_normal((3, 8)).astype(np.float32)
        sentences = [None, f"word{groups[0]} e", f"word{groups[-1]} end"] if trial % 3 else None
        k, over, null = int(rng.integers(1, n + 4)), int(rng.integers(0, 6)), bool(trial % 2)
        batch = RealmRetriever(dataset, index=build_index(embeddings, factory)).retrieve(
            queries, k, exclude=sentences, null_passage=null, over_retrieve=over
        )
        for query, sentence, found in zip(queries, sentences or [None] * 3, batch.rows, strict=True):
            expected, seen = [-1] if null else [], set()
            for row in np.argsort(-(embeddings @ query), kind="stable"):
                contains = sentence is not None and sentence in dataset[int(row)]["text"]
                if not contains and groups[row] not in seen and len(expected) < k:
                    expected.append(int(row))
                seen.add(groups[row])
            assert found.tolist() == expected + [-2] * (k - len(expected))


def test_a_group_larger_than_the_over_retrieval_is_searched_past():
    # 300 copies rank before everything else.
    texts = ["copy"] * 300 + [f"other {n}" for n in range(40)]
    embeddings = np.linspace(2, 1, 340, dtype=np.float32)[:, None]
    retriever = RealmRetriever(Dataset.from_dict({"text": texts}), embeddings=embeddings)
    batch = retriever.retrieve(np.ones((2, 1)), 4, null_passage=False, exclude=[None, "copy"], over_retrieve=2)
    assert batch.rows.tolist() == [[0, 300, 301, 302], [300, 301, 302, 303]]
    assert batch.duplicates.tolist() == [299, 0] and batch.excluded.tolist() == [0, 300]
    stats = retriever.search_stats
    assert (stats.queries, stats.searched_deeper, stats.absent) == (2, 2, 0)
    assert (stats.duplicates, stats.excluded) == (299, 300) and stats.seconds > 0


def test_no_deeper_is_searched_than_something_may_be_filtered(monkeypatch):
    depths = []

    def recorded(index, queries, depth):
        depths.append((len(queries), depth))
        return rank(index, queries, depth)

    rank = FaissIndex.rank
    monkeypatch.setattr(FaissIndex, "rank", recorded)
    embeddings = np.eye(60, dtype=np.float32)
    retriever = RealmRetriever(
        Dataset.from_dict({"text": [f"text {max(n, 1)}" for n in range(60)]}), embeddings=embeddings
    )
    apart, near_copies = embeddings[10], embeddings[0] + 0.5 * embeddings[1]
    retriever.retrieve(apart[None], 8)
    assert depths == [(1, 7)]
    depths.clear()
    batch = retriever.retrieve(np.stack([apart, near_copies]), 8, over_retrieve=30)
    assert depths == [(2, 7), (1, 37)] and batch.duplicates.tolist() == [0, 1]
    assert retriever.search_stats.searched_deeper == 0
    depths.clear()
    retriever.retrieve(apart[None], 8, exclude=["text 10"])
    assert depths == [(1, 23)]


def test_enough_over_retrieval_needs_one_search(retriever):
    retriever.retrieve(np.repeat(QUERY, 5, axis=0), 4)
    assert retriever.search_stats.searched_deeper == 0 and retriever.search_stats.queries == 5
    retriever.search_stats = SearchStats()
    assert retriever.search_stats.queries == 0


def test_at_the_end_of_the_corpus_places_stay_absent_and_are_told(retriever, caplog):
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            batch = retriever.retrieve(QUERY, 12)
    finally:
        transformers_logging.disable_propagation()
    assert batch.rows.tolist() == [[-1, 0, 1, 3, 5, 6, 8, -2, -2, -2, -2, -2]]
    assert batch.mask.tolist() == [[True] * 7 + [False] * 5] and np.isneginf(batch.scores[0, 7:]).all()
    assert retriever.search_stats.absent == 5
    assert all("fewer candidates than asked for" in message for message in caplog.messages)  # said once a process


def test_a_corpus_that_contains_the_sentence_throughout_leaves_the_null_passage_alone():
    retriever = RealmRetriever(Dataset.from_dict({"text": ["a b c"] * 30}), embeddings=np.ones((30, 2), np.float32))
    batch = retriever.retrieve(np.ones((1, 2)), 3, exclude=["b c"], over_retrieve=1)
    assert batch.rows.tolist() == [[-1, -2, -2]] and batch.excluded.tolist() == [30]


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,PQ4x4", "PQ4x4", "HNSW4", "SQ8"])
def test_an_approximate_index_never_gives_a_row_that_is_none(factory):
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((200, 8)).astype(np.float32)
    search_parameters = "nprobe=1" if "IVF" in factory else None
    retriever = RealmRetriever(
        Dataset.from_dict({"text": [str(n) for n in range(200)]}),
        index=build_index(embeddings, factory, search_parameters=search_parameters),
        embeddings=embeddings,
    )
    batch = retriever.retrieve(rng.standard_normal((20, 8)), 150)
    assert (batch.rows[:, 0] == -1).all() and ((batch.rows[:, 1:] >= 0) == batch.mask[:, 1:]).all()
    assert batch.rows.max() < 200
    for row, mask in zip(batch.rows, batch.mask, strict=True):
        assert len(set(row[mask])) == mask.sum()
    if "IVF" in factory:
        assert not batch.mask.all()  # one list of sixteen cannot fill 149 places: that is said and not made up


@pytest.mark.parametrize(
    ("factory", "at_least", "below"),
    [("Flat", 1, 2), ("SQ8", 0.9, 1), ("HNSW32", 0.99, 2), ("PQ8x4", 0.3, 0.99), ("IVF16,Flat", 0.3, 0.99)],
)
def test_recall_against_exact_tells_approximate_from_exact(factory, at_least, below):
    embeddings = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    dataset = Dataset.from_dict({"text": [str(n) for n in range(500)]})
    retriever = RealmRetriever(dataset, index=build_index(embeddings, factory), embeddings=embeddings)
    recall = retriever.recall_against_exact(torch.from_numpy(embeddings[:64]), 10)
    assert at_least <= recall < below


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_and_numpy_queries_agree(retriever, dtype):
    queries = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    from_torch = retriever.retrieve(queries, 5)
    from_numpy = retriever.retrieve(queries.detach().float().numpy(), 5)
    np.testing.assert_array_equal(from_torch.rows, from_numpy.rows)
    np.testing.assert_array_equal(from_torch.scores, from_numpy.scores)


def test_no_queries_give_an_empty_batch(retriever):
    assert retriever.retrieve(np.zeros((0, 4)), 8).rows.shape == (0, 8)


def test_the_thread_option_does_not_change_the_result(passages, falling):
    queries = np.random.default_rng(0).standard_normal((50, 4))
    one, two = (RealmRetriever(passages, embeddings=falling, threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.retrieve(queries, 4).rows, two.retrieve(queries, 4).rows)


# datasets


def test_datasets_own_search_works_on_the_attached_index(retriever, passages, capfd):
    scores, examples = retriever.dataset.get_nearest_examples("embeddings", QUERY[0], k=2)
    assert scores.tolist() == [9, 8] and examples["text"] == TEXTS[:2]
    assert passages.rows.list_indexes() == []  # the store's rows stay free to be saved, mapped and shuffled
    assert capfd.readouterr().err == ""  # no progress bar over nothing


def test_the_attached_index_follows_a_swap(retriever, falling, tmp_path):
    assert retriever.dataset.get_nearest_examples("embeddings", QUERY[0], k=1)[1]["title"] == ["Page 0"]
    retriever.swap(generation(tmp_path, retriever.passages, falling[::-1].copy()))
    assert retriever.dataset.get_nearest_examples("embeddings", QUERY[0], k=1)[1]["title"] == ["Page 8"]


def test_a_dataset_with_embeddings_is_enough(falling):
    dataset = Dataset.from_dict({"title": ["t"] * 9, "text": TEXTS, "embeddings": falling.tolist()})
    retriever = RealmRetriever(dataset)
    assert retriever.retrieve(QUERY, 3).rows.tolist() == [[-1, 0, 1]]
    assert retriever.retrieve(QUERY, 6, null_passage=False).duplicates.tolist() == [3]  # found from the texts
    np.testing.assert_array_equal(retriever.embeddings, falling)


# Generations


def generation(folder, passages, embeddings, step=1, fingerprint=None):
    return GenerationStore(folder / "index").write(
        embeddings,
        build_index(embeddings),
        snapshot_step=step,
        passages_fingerprint=fingerprint or passages.fingerprint,
        tokenizer_fingerprint="t",
        embedder_fingerprint="e",
        factory="Flat",
    )


def test_a_swap_serves_the_new_generation_and_names_it(passages, falling, tmp_path):
    first = generation(tmp_path, passages, falling)
    second = generation(tmp_path, passages, falling[::-1].copy(), step=2)
    retriever = RealmRetriever.from_generation(passages, first)
    batch = retriever.retrieve(QUERY, 2)
    assert (batch.rows.tolist(), batch.generation) == ([[-1, 0]], first.name)
    retriever.swap(second)
    first.close()
    batch = retriever.retrieve(QUERY, 2)
    assert (batch.rows.tolist(), batch.generation) == ([[-1, 8]], second.name)
    assert retriever.generation_name == second.name


def test_a_search_during_swaps_sees_one_generation(passages, falling, tmp_path):
    served = [generation(tmp_path, passages, e, step) for step, e in enumerate((falling, falling[::-1].copy()))]
    best = {served[0].name: 0, served[1].name: 8}
    retriever, stop, swaps = RealmRetriever.from_generation(passages, served[0]), threading.Event(), 0

    def swap():
        nonlocal swaps
        while not stop.is_set():
            swaps += 1
            retriever.swap(served[swaps % 2])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        batches = [retriever.retrieve(np.repeat(QUERY, 20, axis=0), 2) for _ in range(50)]
        while {batch.generation for batch in batches} != set(best) and len(batches) < 5000:
            # The other thread has not had its turn yet.
            batches.append(retriever.retrieve(np.repeat(QUERY, 20, axis=0), 2))
    finally:
        stop.set()
        thread.join()
    assert swaps > 1 and {batch.generation for batch in batches} == set(best)
    assert all((batch.rows[:, 1] == best[batch.generation]).all() for batch in batches)


def test_a_generation_of_other_passages_is_refused_and_the_old_one_serves_on(retriever, falling, tmp_path):
    with pytest.raises(ValueError, match="was built from passages other"):
        retriever.swap(generation(tmp_path, retriever.passages, falling, fingerprint="other"))
    assert retriever.retrieve(QUERY, 2).rows.tolist() == [[-1, 0]]


# Bad input


def test_parts_that_do_not_belong_together_are_refused(passages, falling):
    with pytest.raises(ValueError, match="index has 8 rows for 9 passages"):
        RealmRetriever(passages, index=build_index(falling[:8]))
    with pytest.raises(ValueError, match=r"embeddings are \[9, 3\], the index is over 9 rows of dimension 4"):
        RealmRetriever(passages, index=build_index(falling), embeddings=falling[:, :3])
    distance = faiss.IndexFlatL2(4)
    distance.add(falling)
    with pytest.raises(ValueError, match="metric 1, not inner product"):
        RealmRetriever(passages, index=distance)


def test_unusable_passages_are_refused():
    with pytest.raises(ValueError, match=r"columns \['body'\], but 'text' is needed"):
        RealmRetriever(Dataset.from_dict({"body": ["x"]}))
    with pytest.raises(ValueError, match="There are no passages"):
        RealmRetriever(Dataset.from_dict({"text": []}))


def test_bad_calls_are_refused_in_words(passages, retriever, falling):
    with pytest.raises(ValueError, match="no index yet"):
        RealmRetriever(passages).retrieve(QUERY, 2)
    with pytest.raises(ValueError, match=r"shape \[B, D\], got \[4\]"):
        retriever.retrieve(QUERY[0], 2)
    with pytest.raises(ValueError, match=r"shape \[Q, 4\]"):
        retriever.retrieve(np.ones((1, 5)), 2)
    with pytest.raises(ValueError, match="Query 0 holds NaN"):
        retriever.retrieve(QUERY * np.nan, 2)
    with pytest.raises(ValueError, match="k is 0"):
        retriever.retrieve(QUERY, 0)
    with pytest.raises(ValueError, match="`exclude` has 2 entries for 1 queries"):
        retriever.retrieve(QUERY, 2, exclude=[None, None])
    with pytest.raises(ValueError, match="empty sentence"):
        retriever.retrieve(QUERY, 2, exclude=[" "])
    with pytest.raises(TypeError, match="a Dataset without tokens"):
        RealmRetriever(Dataset.from_dict({"text": TEXTS}), embeddings=falling).retrieve(
            QUERY, 2, exclude=[np.array([3, 4])]
        )
    with pytest.raises(ValueError, match="was made without them"):
        RealmRetriever(passages, index=build_index(falling)).recall_against_exact(QUERY, 2)


# Saving and loading


def assert_equal(loaded, original):
    queries = np.random.default_rng(3).standard_normal((30, 4)).astype(np.float32)
    ours, theirs = loaded.retrieve(queries, 6), original.retrieve(queries, 6)
    np.testing.assert_array_equal(ours.rows, theirs.rows)
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    assert loaded.embeddings.dtype == original.embeddings.dtype
    np.testing.assert_array_equal(loaded.embeddings, original.embeddings)
    assert faiss.serialize_index(loaded.index.faiss).tobytes() == faiss.serialize_index(original.index.faiss).tobytes()
    assert loaded.dataset[:] == original.dataset[:]
    assert loaded.generation_name == original.generation_name


@pytest.mark.parametrize("factory", ["Flat", "IVF2,SQ8", "HNSW4"])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_retriever_comes_back_bit_for_bit(passages, falling, tokenizer, tmp_path, factory, mmap):
    original = RealmRetriever(
        passages, tokenizer, index=build_index(falling, factory), embeddings=falling, generation_name="step-5-12345678"
    )
    original.save_pretrained(tmp_path / "saved")
    loaded = RealmRetriever.from_pretrained(tmp_path / "saved", mmap=mmap, verify="sha256")
    assert_equal(loaded, original)
    assert loaded.passages.fingerprint == passages.fingerprint
    assert [loaded.passages.candidate_ids(n).tolist() for n in range(9)] == [
        passages.candidate_ids(n).tolist() for n in range(9)
    ]
    assert loaded.tokenizer(SENTENCE)["input_ids"] == tokenizer(SENTENCE)["input_ids"]


def test_a_retriever_over_a_dataset_saves_parquet(falling, tmp_path):
    dataset = Dataset.from_dict({"title": [f"p{n}" for n in range(9)], "text": TEXTS, "embeddings": falling.tolist()})
    original = RealmRetriever(dataset.select([8, 3, 1, 0, 2, 4, 5, 6, 7]))
    original.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "embeddings.npy",
        "index.faiss",
        "passages.parquet",
        "retriever.json",
    ]
    loaded = RealmRetriever.from_pretrained(tmp_path)
    assert loaded.tokenizer is None
    assert_equal(loaded, original)


def test_float16_embeddings_stay_float16(passages, falling, tmp_path):
    original = RealmRetriever(passages, embeddings=falling.astype(np.float16))
    original.save_pretrained(tmp_path)
    assert_equal(RealmRetriever.from_pretrained(tmp_path), original)


def test_a_loaded_index_is_mapped_and_shared(tmp_path):
    embeddings = np.ones((100_000, 16), np.float32)
    dataset = Dataset.from_dict({"text": ["x"] * len(embeddings)})
    RealmRetriever(dataset, embeddings=embeddings).save_pretrained(tmp_path)
    loaded = RealmRetriever.from_pretrained(tmp_path)
    loaded.index.search(embeddings[:1], 1)
    sections = Path("/proc/self/smaps").read_text(encoding="utf-8").split("VmFlags")
    for name in ("index.faiss", "embeddings.npy"):
        (section,) = [section for section in sections if str(tmp_path / name) in section]
        assert "Private_Dirty:         0 kB" in section  # pages of the file itself: one copy for all processes


def test_saving_over_itself_and_loading_while_mapped(retriever, tmp_path):
    retriever.save_pretrained(tmp_path)
    loaded = RealmRetriever.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert_equal(loaded, retriever)
    assert_equal(RealmRetriever.from_pretrained(tmp_path, verify="sha256"), retriever)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_later_retriever_replaces_an_earlier_one_beside_other_files(retriever, falling, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    retriever.save_pretrained(tmp_path)
    other = RealmRetriever(Dataset.from_dict({"text": TEXTS[:4]}), embeddings=falling[:4])
    other.save_pretrained(tmp_path)
    loaded = RealmRetriever.from_pretrained(tmp_path)
    assert len(loaded) == 4 and isinstance(loaded.passages, Dataset)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["embeddings.npy", "index.faiss", "passages/body_tokens.bin"])
def test_damaged_files_are_refused_in_words(retriever, tmp_path, name):
    retriever.save_pretrained(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises((ValueError, RuntimeError), match=r"was changed after it was written: its SHA-256"):
        RealmRetriever.from_pretrained(tmp_path, verify="sha256")
    os.truncate(path, len(content) - 1)
    with pytest.raises(ValueError, match=f"{path.name} has {len(content) - 1} bytes, retriever.json says"):
        RealmRetriever.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"):
        RealmRetriever.from_pretrained(tmp_path)


def test_an_interrupted_save_is_refused(retriever, tmp_path, monkeypatch):
    retriever.save_pretrained(tmp_path)
    writes = 0
    real = os.write

    def full_disk(*args):
        nonlocal writes
        writes += 1
        if writes == 2:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(OSError, match=r"could not save the retriever into.*the file system is full"):
        retriever.save_pretrained(tmp_path)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"retriever.json is missing.*an interrupted `save_pretrained`"):
        RealmRetriever.from_pretrained(tmp_path)
    retriever.save_pretrained(tmp_path)
    assert_equal(RealmRetriever.from_pretrained(tmp_path, verify="sha256"), retriever)


def test_a_directory_of_the_old_port_is_told_apart(tmp_path):
    (tmp_path / "block_records.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no block_records.npy as `np.save` writes it"):
        RealmRetriever.from_pretrained(tmp_path)


# The reader's input, as in transformers 4.57.6


def test_the_call_encodes_question_and_passages_and_finds_the_answers(retriever, tokenizer):
    question = tokenizer("which river?", return_tensors="pt").input_ids
    answers = [tokens(tokenizer, "the").tolist(), tokens(tokenizer, "sea").tolist()]
    has_answers, starts, ends, inputs = retriever(torch.tensor([6, 1, -1]), question, answers, max_length=30)
    text = "which river?"
    expected = tokenizer(
        [text] * 3,
        [TEXTS[6], TEXTS[1], ""],
        padding=True,
        truncation=True,
        max_length=30,
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask", "special_tokens_mask"}
    for name, tensor in inputs.items():
        assert torch.equal(tensor, expected[name])
    assert has_answers == [True, True, False]
    for row, (row_starts, row_ends) in enumerate(zip(starts, ends, strict=True)):
        found = [
            tokenizer.decode(inputs.input_ids[row, s : e + 1])
            for s, e in zip(row_starts, row_ends, strict=True)
            if s >= 0
        ]
        assert found == [["the", "the", "the", "sea"], ["the"], []][row]
    assert {len(row) for row in starts + ends} == {4}  # padded to the row with most


def test_without_answers_only_the_inputs_come(retriever, tokenizer):
    question = tokenizer("which river?", return_tensors="np").input_ids
    *nothing, inputs = retriever(np.array([0, 3]), question, None, return_tensors="np")
    assert nothing == [None, None, None] and isinstance(inputs.input_ids, np.ndarray) and len(inputs.input_ids) == 2


def test_answers_are_sought_between_the_first_two_separators_only():
    sep = 9
    rows = [[1, 5, 6, sep, 5, 6, 5, 6, 7, sep, 0, 0], [1, 5, sep, 7, 8, sep, 5, 6]]
    has_answers, starts, ends = answer_positions(rows, [[5, 6], [7], [6, 7, sep]], sep)
    assert has_answers == [True, True]
    assert starts == [[4, 6, 8, 7], [3, -1, -1, -1]] and ends == [[5, 7, 8, 9], [3, -1, -1, -1]]
    assert answer_positions(rows, [[4]], sep) == ([False, False], [[], []], [[], []])


def test_calls_that_cannot_be_answered_are_refused(retriever, passages, falling, tokenizer):
    question = tokenizer("which river?", return_tensors="pt").input_ids
    with pytest.raises(IndexError, match="row -2 is out of range for 9 passages"):
        retriever(np.array([0, -2]), question, None)
    with pytest.raises(IndexError, match="row 9 is out of range"):
        retriever(np.array([9]), question, None)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        RealmRetriever(passages, embeddings=falling)(np.array([0]), question, None)
