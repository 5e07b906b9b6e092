"""Sentences: spans in wordpieces, what is skipped and counted, the held-out split, and the cache of tags."""

import pickle

import numpy as np
import pytest
from datasets import Dataset

from realm_hf.data import SentenceStore, Span, build_sentences
from realm_hf.data.splitter import split_sentences
from realm_hf.data.taggers.rules import RuleTagger

TEXTS = [
    "The capital is Paris. It is old. In 1789 King Louis of France lost it.",
    "",
    "Rain fell. Then " + "the old river of the north and " * 4 + "then Egypt was seen.",
    "Egypt and " + "the old river of the north and " * 4 + "then it ended.",
]


class CountingTagger:
    """The rules, with a count of the sentences that they were asked about."""

    def __init__(self, fingerprint="counting"):
        self.fingerprint, self.asked, self.rules = fingerprint, 0, RuleTagger()

    def __call__(self, texts):
        self.asked += len(texts)
        return self.rules(texts)


@pytest.fixture
def build(tokenizer, tmp_path):
    """Build sentences into `tmp_path / name`, with a cache beside."""

    def build_into(name="sentences", documents=TEXTS, tagger=None, **options):
        options = {"heldout_fraction": 0.0, "max_query_length": 24, **options}
        return build_sentences(
            documents, tokenizer, tagger or RuleTagger(), tmp_path / name, cache_dir=tmp_path / "cache", **options
        )

    return build_into


def test_spans_are_the_wordpieces_of_the_tagged_text(build, tokenizer):
    sentences = build()
    decoded = [[tokenizer.decode(s.input_ids[a:b]).replace(" ", "") for a, b in s.spans] for s in sentences]
    assert decoded == [["paris"], ["1789", "kinglouisoffrance"], ["egypt"]]
    assert [s.labels for s in sentences] == [("ENTITY",), ("DATE", "ENTITY"), ("ENTITY",)]
    assert [s.document for s in sentences] == [0, 0, 3]
    for sentence in sentences:
        assert sentence.input_ids.tolist() == tokenizer(sentence.text, add_special_tokens=False)["input_ids"]
        assert sentence.text in TEXTS[sentence.document]


def test_skips_are_counted_by_reason(build):
    statistics = build().statistics
    assert statistics == {
        "documents": 4,
        "documents_without_sentences": 1,
        "sentences": 6,
        "kept": 3,
        "no_wordpieces": 0,
        "no_salient_span": 2,
        "spans_outside_query": 1,
        "longer_than_query": 1,
        "heldout": 0,
        "spans": 4,
    }
    assert SentenceStore.load(build("again").directory).statistics == statistics


def test_a_longer_query_keeps_the_sentence_whose_span_was_outside(build):
    assert build(max_query_length=64).statistics["spans_outside_query"] == 0


def test_tags_are_computed_once_for_one_tagger_and_corpus(build):
    first = CountingTagger()
    store = build("a", tagger=first)
    assert first.asked == 6
    again = CountingTagger()
    assert build("b", tagger=again, max_query_length=64).fingerprint != store.fingerprint
    assert again.asked == 0
    other = CountingTagger("other")
    assert build("c", tagger=other).fingerprint == store.fingerprint
    assert other.asked == 6
    changed = CountingTagger()
    build("d", documents=[*TEXTS, "One more from Rome."], tagger=changed)
    assert changed.asked == 7


def test_tags_are_found_again_when_the_splitter_has_moved_to_another_module(build, tmp_path, monkeypatch):
    build("a")
    cached = sorted((tmp_path / "cache").iterdir())
    monkeypatch.setattr(split_sentences, "__module__", "realm_hf.elsewhere")
    build("b")
    assert sorted((tmp_path / "cache").iterdir()) == cached


def test_a_text_list_and_a_dataset_with_another_column_are_the_same(build):
    dataset = Dataset.from_dict({"id": list(range(4)), "body": TEXTS})
    assert build("a").fingerprint == build("b", documents=dataset, text_column="body").fingerprint


@pytest.mark.multiprocess
def test_result_does_not_depend_on_the_number_of_processes(build, tmp_path):
    one = build("one")
    for folder in (tmp_path / "cache").iterdir():
        folder.unlink()
    two = build("two", num_proc=2, tagger_num_proc=2)
    assert two.fingerprint == one.fingerprint
    assert two.rows.to_dict() == one.rows.to_dict()


def test_heldout_documents_are_chosen_by_their_text(build):
    texts = [f"Town {i} lies in Egypt. It was seen by Napoleon in {1000 + i}." for i in range(300)]
    store = build("a", documents=texts, heldout_fraction=0.2)
    assert len(store.train) + len(store.heldout) == len(store)
    held = {s.document for s in store.heldout}
    assert not held & {s.document for s in store.train}
    assert 40 < len(held) < 80
    assert store.statistics["heldout"] == len(store.heldout)
    reordered = build("b", documents=texts[::-1], heldout_fraction=0.2)
    assert {s.text for s in reordered.heldout} == {s.text for s in store.heldout}
    wider = build("c", documents=texts, heldout_fraction=0.4)
    assert {s.text for s in store.heldout} < {s.text for s in wider.heldout}


def test_views_index_slice_and_pickle(build):
    store = build()
    assert [s.text for s in store[1:]] == [store[1].text, store[2].text]
    assert store[-1].text == store[2].text
    copy = pickle.loads(pickle.dumps(store[1:]))
    assert copy[0].text == store[1].text
    assert store.select(np.array([2, 0]))[1].text == store[0].text
    with pytest.raises(IndexError, match="sentence 3 is out of range for 3 sentences"):
        store[3]


def test_bad_corpora_are_explained(build):
    with pytest.raises(ValueError, match="the corpus is empty"):
        build(documents=[])
    with pytest.raises(ValueError, match=r"no column 'text'; they have \['body'\]"):
        build(documents=Dataset.from_dict({"body": TEXTS}))
    with pytest.raises(ValueError, match=r"no sentence with a maskable salient span .*'no_salient_span': 2"):
        build(documents=["It is old. It was so."])
    with pytest.raises(ValueError, match="heldout_fraction is 1"):
        build(heldout_fraction=1)


def test_an_existing_store_is_never_overwritten(build):
    build()
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        build()


def test_changed_files_are_found(build):
    store = build()
    (file,) = (store.directory / "rows").glob("*.arrow")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="does not have its recorded sha256"):
        SentenceStore.load(store.directory, verify=True)
    file.write_bytes(data[:-8])
    with pytest.raises(ValueError, match=r"has \d+ bytes instead of"):
        SentenceStore.load(store.directory)


def test_another_splitter_and_tagger_can_be_given(build):
    class EveryWord:
        fingerprint = "every-word"

        def __call__(self, texts):
            return [[Span(0, len(text.split(" ")[0]), "FIRST")] for text in texts]

    whole = build(documents=["one two. Three four."], tagger=EveryWord(), splitter=lambda text: [(0, len(text))])
    assert [s.text for s in whole] == ["one two. Three four."]
    assert whole[0].spans.tolist() == [[0, 1]]
    assert split_sentences("one two. Three four.") != [(0, 20)]
