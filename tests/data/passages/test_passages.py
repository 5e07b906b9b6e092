"""Passages: how documents are packed, what the store gives back, and what happens to bad input and killed builds."""

import multiprocessing
import os
import pickle
import signal
import time
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset

from realm_hf import RealmTokenizer
from realm_hf.data import PassageStore, build_passages, passages_from_rows
from realm_hf.data.passages.packing import LONGEST_WORD, cut_long_words
from realm_hf.data.splitter import split_sentences


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def packed_as_released(tokenizer, title, text, max_length):
    """ORQA's loop: sentence by sentence, each tokenized by itself."""
    blocks, current, count = [], [], 0
    room = max_length - 3 - len(ids_of(tokenizer, title))
    for start, end in split_sentences(text):
        length = len(ids_of(tokenizer, text[start:end]))
        if current and count + length > room:
            blocks.append(current)
            current, count = [], 0
        current.append((start, end))
        count += length
    return [*blocks, current] if current else blocks


@pytest.mark.parametrize("max_length", [40, 64, 288])
def test_packing_equals_the_released_loop(articles, tokenizer, tmp_path, max_length):
    store = build_passages(articles, tokenizer, tmp_path / "p", max_length=max_length)
    expected = [
        (document, article["text"][block[0][0] : block[-1][1]], len(block))
        for document, article in enumerate(articles)
        for block in packed_as_released(tokenizer, article["title"], article["text"], max_length)
    ]
    found = [(int(store.documents[i]), store.text(i), len(store.sentence_starts(i))) for i in range(len(store))]
    assert found == expected
    assert store.statistics["long_sentences_split"] == 0


def test_stored_ids_are_those_of_the_stored_text(passages, tokenizer):
    for row in range(len(passages)):
        title, text = passages.title(row), passages.text(row)
        assert passages.title_ids(row).tolist() == ids_of(tokenizer, title)
        assert passages.body_ids(row).tolist() == ids_of(tokenizer, text)
        assert passages.candidate_ids(row).tolist() == tokenizer(title, text)["input_ids"]
        assert passages.lengths[row] == len(passages.candidate_ids(row)) <= passages.max_length


def test_sentence_starts_cut_the_body_into_its_sentences(passages, tokenizer):
    for row in range(len(passages)):
        text, body = passages.text(row), passages.body_ids(row)
        bounds = [*passages.sentence_starts(row).tolist(), len(body)]
        pieces = [body[a:b].tolist() for a, b in pairwise(bounds)]
        assert pieces == [ids_of(tokenizer, text[a:b]) for a, b in split_sentences(text)]


def test_a_sentence_beyond_the_limit_is_split_at_words_and_counted(tokenizer, tmp_path):
    text = "Short start. " + " ".join(["antidisestablishment", "river", "of"] * 20) + " end. Short end."
    documents = Dataset.from_dict({"title": ["river"], "text": [text]})
    store = build_passages(documents, tokenizer, tmp_path / "p", max_length=24)
    assert store.statistics["long_sentences_split"] == 1
    assert store.lengths.max() <= 24
    assert " ".join(store.text(i) for i in range(len(store))) == text
    for row in range(len(store)):
        assert store.body_ids(row).tolist() == ids_of(tokenizer, store.text(row))


def test_one_word_beyond_the_limit_is_cut_inside(tokenizer, tmp_path):
    word = "qzx" * 30
    store = build_passages(
        Dataset.from_dict({"text": [word]}), tokenizer, tmp_path / "p", max_length=20, title_column=None
    )
    assert "".join(store.text(i) for i in range(len(store))) == word
    assert np.diff(store.body_tokens.offsets).tolist()[:-1] == [17] * (len(store) - 1)


def test_a_long_title_leaves_half_of_the_room_to_the_body(tokenizer, tmp_path):
    documents = Dataset.from_dict({"title": ["river " * 50], "text": ["The river is long. It is old. It is wide."]})
    store = build_passages(documents, tokenizer, tmp_path / "p", max_length=23)
    assert {len(store.title_ids(i)) for i in range(len(store))} == {10}
    assert store.statistics["titles_truncated"] == 1
    assert store.lengths.max() <= 23


def test_special_tokens_spelt_out_in_a_text_stay_text(tokenizer, tmp_path):
    documents = Dataset.from_dict({"title": ["[CLS]"], "text": ["It ends in [SEP] or [MASK] or [PAD]."]})
    store = build_passages(documents, tokenizer, tmp_path / "p")
    special = [*store.title_ids(0), *store.body_ids(0)]
    assert not set(special) & {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, 0}
    assert store.text(0) == documents["text"][0]


def test_empty_documents_are_skipped_and_counted(tokenizer, tmp_path):
    documents = Dataset.from_dict({"title": ["a", "b", None, "d"], "text": ["", "One line.", None, " \n\t "]})
    store = build_passages(documents, tokenizer, tmp_path / "p")
    assert len(store) == 1
    assert store.title(0) == "b"
    assert store.statistics["empty_documents"] == 3
    assert PassageStore.load(tmp_path / "p").statistics == store.statistics


def test_min_sentences_drops_and_counts_shorter_passages(articles, passages, tokenizer, tmp_path):
    store = build_passages(articles, tokenizer, tmp_path / "p", max_length=40, min_sentences=2)
    dropped = int((passages.sentence_counts < 2).sum())
    assert store.sentence_counts.min() >= 2
    assert store.statistics["passages_below_min_sentences"] == dropped > 0
    assert len(store) == len(passages) - dropped


def test_duplicate_groups_ignore_case_and_punctuation(passages):
    groups, texts = passages.duplicate_groups, [passages.text(i) for i in range(len(passages))]
    first, second = texts.index("One line only."), texts.index("one line -- ONLY")
    assert groups.dtype == np.int32
    assert groups[first] == groups[second]
    assert len(set(groups)) == len(passages) - 1
    assert passages.statistics["duplicate_passages"] == 1
    assert groups.tolist()[:2] == [0, 1]


@pytest.mark.multiprocess
def test_result_does_not_depend_on_the_number_of_processes(articles, passages, tokenizer, tmp_path):
    store = build_passages(articles, tokenizer, tmp_path / "p", max_length=40, num_proc=2)
    assert store.fingerprint == passages.fingerprint
    assert store.rows.to_dict() == passages.rows.to_dict()
    assert store.statistics == passages.statistics
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]
    assert not list((tmp_path / "p").glob("packed*"))


def test_fingerprint_follows_text_length_and_tokenizer(articles, passages, tokenizer, tiny_vocab, tmp_path):
    changed = Dataset.from_list([*articles.to_list()[:-1], {"title": "Copy", "text": "one line,  ONLY"}])
    cased = RealmTokenizer(vocab=str(tiny_vocab), do_lower_case=False)
    others = [
        build_passages(changed, tokenizer, tmp_path / "text", max_length=40),
        build_passages(articles, tokenizer, tmp_path / "length", max_length=41),
        build_passages(articles, cased, tmp_path / "tokenizer", max_length=40),
    ]
    assert len({passages.fingerprint, *(store.fingerprint for store in others)}) == 4


def test_large_vocabularies_are_stored_in_four_bytes(tokenizer, tmp_path):
    vocabulary = dict(tokenizer.get_vocab()) | {f"word{i}": 2048 + i for i in range(70_000)}
    large = RealmTokenizer(vocab=vocabulary)
    store = build_passages(Dataset.from_dict({"title": ["t"], "text": ["word69999 of"]}), large, tmp_path / "p")
    assert store.dtype == np.uint32
    assert store.body_ids(0).tolist() == [72_047, tokenizer.convert_tokens_to_ids("of")]


def test_ready_made_rows_stay_one_passage_each_and_are_truncated(tokenizer, tmp_path):
    rows = Dataset.from_dict({"title": ["a", "b", "c"], "text": ["It is so. " * 20, "", "It is so. It was so."]})
    store = passages_from_rows(rows, tokenizer, tmp_path / "p", max_length=30)
    assert store.documents.tolist() == [0, 2]
    assert store.text(1) == "It is so. It was so."
    assert store.lengths[0] == 30
    assert store.text(0) == "It is so. " * 6 + "It is"
    assert store.statistics["passages_truncated"] == 1
    assert store.statistics["empty_documents"] == 1


def test_row_minus_one_is_the_null_passage(passages, tokenizer):
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert (passages.title(-1), passages.text(-1)) == ("", "")
    assert passages.candidate_ids(-1).tolist() == [cls, sep, sep]
    assert passages.pad_candidates(np.array([-1]))["token_type_ids"].tolist() == [[0, 0, 1]]
    for row in (-2, len(passages)):
        with pytest.raises(IndexError, match=f"{row} is out of range for {len(passages)} passages"):
            passages.title(row)


def test_padded_candidates_equal_single_ones(passages, tokenizer):
    rows = np.array([3, -1, 0, 0, len(passages) - 1])
    batch = passages.pad_candidates(rows)
    assert all(array.dtype == np.int64 for array in batch.values())
    for n, row in enumerate(rows):
        single, title = passages.candidate_ids(row).tolist(), 2 + len(passages.title_ids(row))
        length, padding = len(single), batch["input_ids"].shape[1] - len(single)
        assert batch["input_ids"][n].tolist() == single + [tokenizer.pad_token_id] * padding
        assert batch["attention_mask"][n].tolist() == [1] * length + [0] * padding
        assert batch["token_type_ids"][n].tolist() == [0] * title + [1] * (length - title) + [0] * padding
    assert batch["input_ids"].shape[1] == max(len(passages.candidate_ids(row)) for row in rows)


def test_truncated_candidates_keep_the_title_and_both_separators(passages, tokenizer):
    sep = tokenizer.sep_token_id
    for max_length in (3, 4, 10):
        ids = passages.pad_candidates(np.array([0]), max_length)["input_ids"][0].tolist()
        title = passages.title_ids(0).tolist()[: max_length - 3]
        assert len(ids) == max_length
        assert ids[1 : 2 + len(title)] == [*title, sep]
        assert ids[-1] == sep
        assert ids.count(sep) == 2


def test_contains_equals_brute_force(passages):
    rng, rows = np.random.default_rng(0), np.arange(-1, len(passages))
    for row in range(len(passages)):
        body = passages.body_ids(row)
        for _ in range(5):
            start = int(rng.integers(len(body)))
            needle = body[start : start + int(rng.integers(1, 8))]
            expected = [
                any(np.array_equal(other[i : i + len(needle)], needle) for i in range(len(other)))
                for other in map(passages.body_ids, rows)
            ]
            assert passages.contains(needle, rows).tolist() == expected
            assert expected[row + 1]


def test_contains_does_not_match_across_half_tokens(passages):
    """The bytes between the halves of three neighbouring ids are in the file, but are no two ids of the body."""
    body = passages.body_ids(0)[:3]
    data = body.tobytes()
    straddling = np.frombuffer(data[1:-1], body.dtype)
    assert data.find(straddling.tobytes()) == 1
    assert not passages.contains(straddling, np.array([0]))[0]
    assert passages.contains(body, np.array([0]))[0]


def test_contains_finds_the_pieces_of_a_sentence_split_over_passages(tokenizer, tmp_path):
    sentence = " ".join(["the old river of the north"] * 6) + "."
    store = build_passages(
        Dataset.from_dict({"title": ["t"], "text": [sentence]}), tokenizer, tmp_path / "p", max_length=20
    )
    assert len(store) > 1
    assert store.contains(np.array(ids_of(tokenizer, sentence)), np.arange(len(store))).all()


def test_contains_refuses_an_empty_sentence(passages):
    with pytest.raises(ValueError, match="one non-empty row"):
        passages.contains(np.zeros(0, np.int64), np.array([0]))


def test_store_pickles_as_its_path(passages):
    copy = pickle.loads(pickle.dumps(passages))
    assert len(pickle.dumps(passages)) < 500
    assert copy.body_ids(2).tolist() == passages.body_ids(2).tolist()


def test_empty_corpus_is_an_error(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="the corpus is empty"):
        build_passages(Dataset.from_dict({"title": [], "text": []}), tokenizer, tmp_path / "p")


def test_corpus_without_any_text_is_an_error_that_counts(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no passage came out of 2 documents.*'empty_documents': 2"):
        build_passages(Dataset.from_dict({"title": ["a", "b"], "text": ["", " "]}), tokenizer, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_missing_column_is_named_with_those_there_are(tokenizer, tmp_path):
    documents = Dataset.from_dict({"heading": ["a"], "text": ["b"]})
    with pytest.raises(ValueError, match=r"no column 'title'; they have \['heading', 'text'\]"):
        build_passages(documents, tokenizer, tmp_path / "p")
    assert build_passages(documents, tokenizer, tmp_path / "p", title_column="heading").title(0) == "a"


def test_an_existing_store_is_never_overwritten(articles, passages, tokenizer):
    before = passages.fingerprint
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        build_passages(articles, tokenizer, passages.directory, max_length=50)
    assert PassageStore.load(passages.directory, verify=True).fingerprint == before


def test_loading_what_is_no_store_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no passage store \(passages.json is missing\)"):
        PassageStore.load(tmp_path)


def test_cut_and_changed_files_are_found(articles, tokenizer, tmp_path):
    build_passages(articles, tokenizer, tmp_path / "p")
    file = tmp_path / "p" / "body_tokens.bin"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    PassageStore.load(tmp_path / "p")
    with pytest.raises(ValueError, match=r"body_tokens.bin does not have its recorded sha256"):
        PassageStore.load(tmp_path / "p", verify=True)
    file.write_bytes(data[:-2])
    with pytest.raises(ValueError, match=r"body_tokens.bin has \d+ bytes instead of \d+"):
        PassageStore.load(tmp_path / "p")


def test_a_splitter_with_overlapping_spans_is_refused(articles, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="in order, without overlap"):
        build_passages(
            articles, tokenizer, tmp_path / "p", splitter=lambda text: [(0, 2), (1, 3)] if text.strip() else []
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.multiprocess
def test_a_killed_build_leaves_no_store_and_the_next_one_cleans_up(articles, tokenizer, tmp_path):
    def dies_at_the_third_document(text):
        if "Nile" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        return split_sentences(text)

    child = multiprocessing.get_context("fork").Process(
        target=build_passages,
        args=(articles, tokenizer, tmp_path / "p"),
        kwargs={"splitter": dies_at_the_third_document},
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".p-parts"]
    with pytest.raises(FileNotFoundError):
        PassageStore.load(tmp_path / "p")
    build_passages(articles, tokenizer, tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_word_of_megabytes_is_cut_and_counted(tmp_path, tokenizer):
    """A tokenizer takes some microseconds for each of its characters, to make one unknown wordpiece of it."""
    before, after = "It begins here.", "It ends there."
    texts = [f"{before} {'x' * 5_000_000} {after}", f"{before} {'y' * LONGEST_WORD} {after}"]
    seen = []

    class Counting(type(tokenizer)):
        def __call__(self, texts, **options):
            seen.extend(map(len, texts))
            return super().__call__(texts, **options)

    counting = Counting(vocab=tokenizer.get_vocab())
    documents = Dataset.from_dict({"title": ["a", "b"], "text": texts})

    store = build_passages(documents, counting, tmp_path / "store")

    assert max(seen) < LONGEST_WORD + 100
    assert store.statistics["long_words_cut"] == 1
    assert store.text(0) == f"{before} {'x' * LONGEST_WORD} {after}"
    assert store.text(1) == texts[1]


def test_words_that_are_nearly_too_long_are_looked_at_once():
    """A pattern that is tried at every character would take minutes for this."""
    text = " ".join(["x" * (LONGEST_WORD - 1)] * 100)
    started = time.perf_counter()

    assert cut_long_words([text, None]) == ([text, ""], [0, 0])
    assert time.perf_counter() - started < 10
