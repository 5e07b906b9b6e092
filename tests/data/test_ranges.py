"""Corpora in ranges: the same store whoever prepares which range, killed or not, and nothing is done twice."""

import errno
import os
import pickle
import random
import signal
import sys

import numpy as np
import pytest
from datasets import Dataset

from realm_hf.data import PassageStore, SentenceStore, build_passages, build_sentences, passages_from_rows
from realm_hf.data import ranges as module
from realm_hf.data.passages import build as passages_build
from realm_hf.data.passages import parts as passages_parts
from realm_hf.data.passages.in_memory import write_edited_passages
from realm_hf.data.taggers.dates import DateTagger
from realm_hf.data.taggers.names import CombinedTagger, tags_by_rules
from realm_hf.data.taggers.rules import RuleTagger

DOCUMENTS = 200


@pytest.fixture(scope="module")
def documents() -> Dataset:
    places = ("river", "mountain", "island", "city")
    text = "The {} number {} lies in Egypt. It was seen in {}. Rain fell there. Napoleon came from Paris."
    texts = [text.format(places[n % 4], n % 150, 1700 + n) for n in range(DOCUMENTS)]
    texts[70] = ""
    return Dataset.from_dict({"title": [f"Place {n % 150}" for n in range(DOCUMENTS)], "text": texts})


@pytest.fixture
def small_ranges(monkeypatch) -> int:
    """Four ranges, of 64, 64, 64 and 8 documents."""
    for holder in (module, passages_parts):
        monkeypatch.setattr(holder, "RANGE_DOCUMENTS", 64)
    return 64


def build(documents, tokenizer, folder, **options) -> PassageStore:
    return build_passages(documents, tokenizer, folder, max_length=24, **options)


def assert_same_content(store: PassageStore, other: PassageStore) -> None:
    assert store.rows.to_dict() == other.rows.to_dict()
    assert store.statistics == other.statistics
    for name in ("title_tokens", "body_tokens", "_sentence_starts"):
        assert np.array_equal(getattr(store, name).values, getattr(other, name).values)
        assert np.array_equal(getattr(store, name).offsets, getattr(other, name).offsets)


@pytest.fixture
def whole(documents, tokenizer, tmp_path) -> PassageStore:
    """All documents in one range, as before there were any."""
    assert module.RANGE_DOCUMENTS == 16_384
    return build(documents, tokenizer, tmp_path / "whole")


@pytest.mark.multiprocess
def test_ranges_make_the_same_store_whatever_the_number_of_processes(
    whole, small_ranges, documents, tokenizer, tmp_path
):
    alone = build(documents, tokenizer, tmp_path / "alone")
    three = build(documents, tokenizer, tmp_path / "three", num_proc=3)
    assert three.fingerprint == alone.fingerprint
    assert (whole.info["format_version"], alone.info["format_version"]) == (1, 2)
    assert_same_content(alone, whole)
    assert_same_content(PassageStore.load(tmp_path / "three", verify=True), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "three", "whole"]


def test_a_store_that_is_written_anew_without_tokenizing_has_the_fingerprint_of_its_ranges(
    small_ranges, tokenizer, tmp_path
):
    rows = Dataset.from_dict({"title": ["a"] * 130, "text": [f"Text number {n}." for n in range(130)]})
    store = passages_from_rows(rows, tokenizer, tmp_path / "store")
    (tmp_path / "edited").mkdir()
    write_edited_passages(store, np.arange(130), {}, tmp_path / "edited")
    assert PassageStore(tmp_path / "edited").fingerprint == store.fingerprint
    assert_same_content(PassageStore(tmp_path / "edited"), store)


def fork(function) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - told by the exit code
            sys.stderr.write(repr(error))
            os._exit(1)
        os._exit(0)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.multiprocess
def test_builds_killed_at_random_are_resumed_and_do_nothing_twice(
    whole, small_ranges, documents, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "RANGE_DOCUMENTS", 16)  # 13 ranges; that of `parts` is for stores that are edited
    chance, log = random.Random(0), tmp_path / "log"

    def killed_after(batches: int) -> None:
        pack, write = passages_build.PassagePacker.__call__, passages_build.write_part
        left = [batches]

        def packed(packer, batch):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return pack(packer, batch)

        def written(*args, **named):
            facts = write(*args, **named)
            with log.open("a") as file:
                file.write(f"{named['first_document']}\n")
            return facts

        passages_build.PassagePacker.__call__ = packed
        passages_build.write_part = written
        build(documents, tokenizer, tmp_path / "store")

    kills = 0
    while (code := exit_code(fork(lambda: killed_after(chance.randint(0, 3))))) == -signal.SIGKILL:
        kills += 1
        assert not (tmp_path / "store").exists()
        assert kills < 100
    assert code == 0 and kills >= 4
    assert sorted(map(int, log.read_text().split())) == list(range(0, DOCUMENTS, 16))
    assert_same_content(PassageStore.load(tmp_path / "store", verify=True), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "store", "whole"]


@pytest.mark.multiprocess
def test_builds_beside_each_other_share_the_ranges_and_get_one_store(
    whole, small_ranges, documents, tokenizer, tmp_path
):
    builders = [fork(lambda: build(documents, tokenizer, tmp_path / "store")) for _ in range(2)]
    assert [exit_code(pid) for pid in builders] == [0, 0]
    assert_same_content(PassageStore.load(tmp_path / "store", verify=True), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "whole"]


def test_a_full_disk_leaves_the_finished_ranges_for_the_next_call(
    small_ranges, documents, tokenizer, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(passages_build, "join_parts", full)
        with pytest.raises(OSError, match="No space left"):
            build(documents, tokenizer, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == [".store-parts"]
    monkeypatch.setattr(passages_build.PassagePacker, "__call__", lambda *_: pytest.fail("packed again"))
    assert len(build(documents, tokenizer, tmp_path / "store")) > DOCUMENTS
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


class Counting:
    """Rules of somebody else's: not known to be without a model."""

    fingerprint = "counting"

    def __init__(self):
        self.processes, self.rules = set(), RuleTagger()

    def __call__(self, texts):
        self.processes.add(os.getpid())
        return self.rules(texts)


@pytest.mark.multiprocess
def test_sentences_of_ranges_are_those_of_the_whole_and_rules_tag_in_all_processes(
    documents, tokenizer, tmp_path, monkeypatch
):
    def sentences(name, tagger, **options) -> SentenceStore:
        return build_sentences(
            documents, tokenizer, tagger, tmp_path / name, cache_dir=tmp_path / f"cache-{name}", **options
        )

    whole = sentences("whole", RuleTagger(), heldout_fraction=0.2)
    monkeypatch.setattr(module, "RANGE_DOCUMENTS", 64)
    started = []
    helping = module._helping
    monkeypatch.setattr(module, "_helping", lambda count, work: started.append(count) or helping(count, work))
    alone = sentences("alone", RuleTagger(), heldout_fraction=0.2)
    three = sentences("three", RuleTagger(), heldout_fraction=0.2, num_proc=3)
    counting = Counting()
    sentences("counting", counting, heldout_fraction=0.2, num_proc=2)
    assert started == [0, 2, 0] and counting.processes == {os.getpid()}
    assert (whole.info["format_version"], alone.info["format_version"]) == (1, 2)
    assert three.fingerprint == alone.fingerprint
    for store in (alone, SentenceStore.load(tmp_path / "three", verify=True)):
        assert store.rows.to_dict() == whole.rows.to_dict()
        assert store.statistics == whole.statistics
        assert store.heldout.indices.tolist() == whole.heldout.indices.tolist() != []


def test_only_rules_are_known_to_need_no_model():
    assert tags_by_rules(CombinedTagger(RuleTagger(), DateTagger()))
    assert not tags_by_rules(CombinedTagger(RuleTagger(), Counting()))


def test_views_of_sentences_take_no_memory_of_their_own(documents, tokenizer, tmp_path):
    store = build_sentences(
        documents, tokenizer, RuleTagger(), tmp_path / "s", cache_dir=tmp_path / "cache", heldout_fraction=0.2
    )
    for view in (store, store.train, store.heldout):
        copy = pickle.loads(pickle.dumps(view))
        assert len(pickle.dumps(view)) < 400, "it pickles as a path and a name"
        assert [s.text for s in copy] == [s.text for s in view]
    assert not store.train.indices.flags.owndata and not store.train.indices.flags.writeable
    before = SentenceStore(store.directory)  # as stores were written before
    before.info["files"] = {name: file for name, file in before.info["files"].items() if "_rows.bin" not in name}
    assert before.train.indices.tolist() == store.train.indices.tolist()
    assert before.heldout.indices.tolist() == store.heldout.indices.tolist()
