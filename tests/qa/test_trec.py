"""Run files and qrels: what is written is what was found, line by line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm_hf import write_qrels, write_trec_run
from realm_hf.retriever.text_search import SearchResult

NAMES = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=8).filter(
    lambda text: text.split() == [text]
)
SCORES = st.floats(width=32, allow_nan=False, allow_infinity=False)


def result(rows, scores):
    return SearchResult("?", [""] * len(rows), [""] * len(rows), np.float32(scores), np.int64(rows))


def read_run(path):
    """Question -> {passage: score}, as `trec_eval` reads it."""
    found: dict[str, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        question, _, passage, _, score, _ = line.split()
        found.setdefault(question, {})[passage] = float(score)
    return found


def test_lines_of_a_run_and_of_qrels(tmp_path):
    results = [result([7, 2], [1.5, -0.25]), result([], []), result([0], [3.0])]
    run = write_trec_run(results, tmp_path / "a.run", ids=["x", "y", "z"], tag="mine")
    assert run.read_text() == "x Q0 7 1 1.5 mine\nx Q0 2 2 -0.25 mine\nz Q0 0 1 3 mine\n"
    qrels = write_qrels([np.array([2, 5]), [], [0]], tmp_path / "a.qrels", ids=["x", "y", "z"])
    assert qrels.read_text() == "x 0 2 1\nx 0 5 1\nz 0 0 1\n"


def test_questions_are_numbered_where_they_have_no_names(tmp_path):
    assert write_trec_run([result([4], [1.0])] * 2, tmp_path / "a.run").read_text().split("\n")[1] == (
        "1 Q0 4 1 1 realm_hf"
    )
    assert write_qrels([[1], [3]], tmp_path / "a.qrels").read_text() == "0 0 1 1\n1 0 3 1\n"


@given(found=st.dictionaries(NAMES, st.dictionaries(st.integers(0, 10**7), SCORES, max_size=4), max_size=4))
def test_what_is_read_again_has_every_float32_score_to_the_bit(tmp_path_factory, found):
    results = [result(list(scores), list(scores.values())) for scores in found.values()]
    path = write_trec_run(results, tmp_path_factory.mktemp("runs") / "a.run", ids=list(found))
    expected = {name: {str(row): score for row, score in scores.items()} for name, scores in found.items() if scores}
    read = read_run(path)
    assert {
        name: {row: float(np.float32(score)) for row, score in scores.items()} for name, scores in read.items()
    } == (expected)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a"], "1 ids for 2 questions"),
        (["a", "a"], "'a' stands for more than one question"),
        (["a", "b c"], "'b c' is empty or has white space"),
        (["a", ""], "'' is empty"),
    ],
)
def test_names_that_no_tool_could_read_are_refused_and_nothing_is_written(tmp_path, ids, message):
    with pytest.raises(ValueError, match=message):
        write_trec_run([result([1], [1.0])] * 2, tmp_path / "a.run", ids=ids)
    with pytest.raises(ValueError, match=message):
        write_qrels([[1], [2]], tmp_path / "a.qrels", ids=ids)
    assert not list(tmp_path.iterdir())


def test_a_tag_of_two_words_and_odd_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="tag 'my run' is empty or has white space"):
        write_trec_run([result([1], [1.0])], tmp_path / "a.run", tag="my run")
    for rows in ([3, 3], [-1]):
        with pytest.raises(ValueError, match="give each row once"):
            write_qrels([rows], tmp_path / "a.qrels")
