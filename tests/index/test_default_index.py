"""`"auto"`: which index it stands for, and the recall that it keeps."""

import logging

import faiss
import numpy as np
import pytest

from realm_hf.index.default_index import FLAT_ROWS, SearchDevices, plan_index, reach_recall
from realm_hf.index.exact import recall_at_k
from realm_hf.index.faiss_index import build_index


@pytest.mark.parametrize(
    ("rows", "factory"),
    [
        (1, "Flat"),
        (100_000, "Flat"),
        (100_001, "IVF1024,SQfp16"),
        (1_000_000, "IVF4096,SQfp16"),
        (13_353_718, "IVF16384,SQfp16"),
        (10**9, "IVF16384,SQfp16"),
    ],
)
def test_auto_follows_the_size_of_the_corpus(rows, factory):
    plan = plan_index("auto", rows)
    assert plan.factory == factory
    assert (plan.recall is None) == (factory == "Flat")
    if factory != "Flat":
        lists = int(factory.removeprefix("IVF").split(",")[0])
        assert 39 * lists <= plan.train_size <= rows, "FAISS warns of fewer training rows"


@pytest.mark.parametrize(
    ("rows", "ranks", "factory"),
    [
        (100_000, 8, "Flat"),
        (13_353_718, 8, "exact-sharded"),
        (13_353_718, 1, "exact-sharded"),
        (16_000_000, 1, "IVF16384,SQfp16"),  # two times 16e6 x 128 x 2 bytes are more than a tenth of 80 GB
        (16_000_000, 2, "exact-sharded"),
    ],
)
def test_auto_spreads_rows_over_accelerators_that_have_room(rows, ranks, factory):
    devices = SearchDevices(ranks, memory=80 * 10**9, dimension=128)
    assert plan_index("auto", rows, devices=devices).factory == factory
    assert plan_index("SQ8", rows, devices=devices).factory == "SQ8"


def test_any_other_factory_is_taken_as_it_is():
    plan = plan_index("IVF7,PQ8", 10**7, train_size=99)
    assert (plan.factory, plan.train_size, plan.recall) == ("IVF7,PQ8", 99, None)


def test_a_training_size_that_was_asked_for_stays():
    assert plan_index("auto", 1_000_000, train_size=50_000).train_size == 50_000


def test_auto_is_exact_for_a_small_corpus(vectors):
    assert isinstance(build_index(vectors, "auto"), faiss.IndexFlat)


def test_auto_reaches_its_recall_beyond_the_limit(vectors, monkeypatch):
    monkeypatch.setattr("realm_hf.index.default_index.FLAT_ROWS", 250)
    index = build_index(vectors, "auto")
    assert isinstance(index, faiss.IndexIVFScalarQuantizer)
    assert recall_at_k(vectors, index, 0.75 * vectors[:100] + 0.25 * vectors[100:200], 5) >= 0.95
    assert FLAT_ROWS == 100_000


def test_lists_are_added_until_enough_is_found_and_no_further(vectors):
    def searched(recall):
        index = build_index(vectors, "IVF32,Flat", search_parameters="nprobe=1")
        found = reach_recall(index, vectors, recall)
        return index.nprobe, found

    probed = {recall: searched(recall) for recall in (0.0, 0.8, 1.0)}
    assert probed[0.0][0] == 1
    assert 1 < probed[0.8][0] < 32
    assert probed[1.0][0] == 32
    assert all(found >= recall for recall, (_, found) in probed.items())


def test_a_search_that_is_good_enough_is_left_as_it_is(vectors):
    index = build_index(vectors, "IVF4,Flat", search_parameters="nprobe=3", recall=0.1)
    assert index.nprobe == 3


def test_a_recall_that_compression_forbids_is_told(vectors, caplog):
    index = build_index(vectors, "IVF64,PQ4x4", search_parameters="nprobe=16")
    logging.getLogger("realm_hf").propagate = True
    with caplog.at_level(logging.WARNING):
        found = reach_recall(index, vectors, 0.99)
    assert found < 0.9
    assert index.nprobe < 64, "more lists would cost time and find nothing more"
    assert "0.99 was to be reached" in caplog.text


def test_half_precision_is_what_recall_is_measured_against(vectors):
    stored = vectors.astype(np.float16)
    assert reach_recall(build_index(stored, "SQfp16"), stored, 1.0) == 1.0
