"""Rankings that need no filter are taken as they are, and come out as one by one."""

import numpy as np
import pytest
from datasets import Dataset

from realm_hf import RealmRetriever
from realm_hf.index import asking
from realm_hf.index.faiss_index import build_index

FIELDS = ("rows", "scores", "excluded", "duplicates")


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat"])
@pytest.mark.parametrize("k", [1, 2, 8, 60])
@pytest.mark.parametrize("some_excluded", [False, True])
def test_taking_plain_rankings_at_once_changes_nothing(vectors, monkeypatch, factory, k, some_excluded):
    texts = [f"passage {row if row % 3 else row // 2} of the corpus" for row in range(300)]
    assert 300 - len(set(texts)) > 40, "many passages must share a text"
    passages = Dataset.from_dict({"text": texts})
    retriever = RealmRetriever(passages, index=build_index(vectors, factory, search_parameters=None))
    exclude = [f"passage {n} of" if n % 2 else None for n in range(64)] if some_excluded else None
    plain = []
    find = asking._plain_rankings
    monkeypatch.setattr(asking, "_plain_rankings", lambda *args: plain.append(find(*args)) or plain[-1])
    at_once = retriever.retrieve(vectors[:64], k, exclude=exclude)
    monkeypatch.setattr(asking, "_plain_rankings", lambda _, queries, *__: np.zeros(len(queries), bool))
    one_by_one = retriever.retrieve(vectors[:64], k, exclude=exclude)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(at_once, field), getattr(one_by_one, field), err_msg=field)
    if k > 1:
        assert plain[0].any(), "nothing was taken at once: the test compares nothing"
        assert k == 2 or not plain[0].all()
