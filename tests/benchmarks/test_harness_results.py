"""What the programs about learning share: intervals over articles, figures of ranks, lines and tables of results."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from harness.bootstrap import clustered_interval, interval_of_totals
from harness.results import BEGIN, END, append_line, read_lines, write_between
from harness.retrieval import figure, gold_ranks, means, ndcg, shown, sums_by_article


def test_two_articles_are_drawn_whole():
    # One article of three hits, one of a single miss. Two are drawn: both hits (1/4 of the draws, mean 1), both misses
    # (1/4, mean 0), one of each (1/2, mean 3/4). 2.5 % and 97.5 % of the draws are at 0 and at 1.
    assert clustered_interval(np.array([1.0, 1.0, 1.0, 0.0]), np.array(["a", "a", "a", "b"])) == (0.0, 1.0)
    # Three articles of one question: a mean of 0 has (2/3)^3 = 30 % of the draws, a mean of 1 has 3.7 % of them.
    assert clustered_interval(np.array([1.0, 0.0, 0.0]), np.arange(3)) == (0.0, 1.0)
    # Five: 0.2^5 = 0.03 % of the draws have a mean of 1; 2.5 % are reached at 3 of 5 (5.8 %) and not at 4 (0.7 %).
    assert clustered_interval(np.array([1.0, 0, 0, 0, 0]), np.arange(5)) == (0.0, 0.6)


def test_the_bootstrap_agrees_with_all_draws_written_out():
    values, clusters = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]), np.array([5, 5, 5, 2, 2, 9, 9])
    groups = [values[clusters == c] for c in np.unique(clusters)]
    means = [np.concatenate([groups[i], groups[j], groups[k]]).mean() for i, j, k in np.ndindex(3, 3, 3)]
    low, high = np.percentile(means, [2.5, 97.5], method="inverted_cdf")
    totals, sizes = (np.array([f(g) for g in groups]) for f in (np.sum, len))
    assert interval_of_totals(totals, sizes, draws=20_000) == pytest.approx((low, high))


def test_questions_of_one_article_widen_the_interval():
    values = np.repeat(np.arange(50) % 2, 20).astype(float)
    alone = clustered_interval(values, np.arange(1000))
    together = clustered_interval(values, np.arange(1000) // 20)
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), min_size=1, max_size=30))
def test_an_interval_lies_among_the_articles_means_and_is_repeatable(drawn):
    values, clusters = np.array([v for v, _ in drawn]), np.array([c for _, c in drawn])
    low, high = clustered_interval(values, clusters)
    means = [values[clusters == c].mean() for c in np.unique(clusters)]
    assert min(means) - 1e-9 <= low <= high <= max(means) + 1e-9
    assert clustered_interval(values, clusters) == (low, high)


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], [1, 2])])
def test_an_interval_of_nothing_is_refused(values, clusters):
    with pytest.raises(ValueError, match="give one for each"):
        clustered_interval(np.array(values), np.array(clusters))


def test_a_passage_of_the_same_text_is_the_gold_one():
    groups = np.array([0, 1, 2, 1])
    rows = np.array([[2, 3, 0], [2, 0, -2], [-2, -2, -2]])
    np.testing.assert_array_equal(gold_ranks(rows, np.array([1, 3, 0]), groups), [1, 3, 3])


def test_ndcg_of_one_passage():
    np.testing.assert_allclose(ndcg(np.array([0, 2, 9, 10, 100])), [1, 0.5, 1 / np.log2(11), 0, 0])


def test_figures_are_means_over_seeds_in_percent():
    seeds = [sums_by_article(np.array(ranks), np.array([7, 7])) for ranks in ([0, 4], [9, 19])]
    assert [figure(seeds, f"recall@{k}")[0] for k in (1, 5, 20)] == [25, 50, 100]
    assert figure(seeds, "ndcg@10")[0] == pytest.approx(25 * (1 + 1 / np.log2(6) + 1 / np.log2(11)), abs=0.01)
    assert figure(seeds[:1], "recall@5", seeds[1:]) == (100, 100, 100)
    assert means(seeds[0])["recall@1"] == 50
    assert shown((1.25, -0.5, 3.0), signed=True) == "+1.2 (-0.5 to +3.0)"


def test_a_line_keeps_enough_for_the_interval_over_articles():
    rng = np.random.default_rng(0)
    ranks, articles = rng.integers(40, size=200), rng.integers(100, 110, size=200)
    low, high = clustered_interval((ranks < 5).astype(float), articles)
    mean = (ranks < 5).mean()
    kept = json.loads(json.dumps(sums_by_article(ranks, articles)))
    assert figure([kept], "recall@5") == pytest.approx((100 * mean, 100 * low, 100 * high))


def test_lines_of_other_questions_are_not_compared():
    one, other = (sums_by_article(np.zeros(count), np.zeros(count)) for count in (3, 4))
    with pytest.raises(ValueError, match="other questions"):
        figure([one], "recall@1", [other])


def test_a_line_that_was_cut_is_no_result_and_does_not_spoil_the_next(tmp_path):
    file = tmp_path / "new" / "results.jsonl"
    assert read_lines(file) == []
    append_line(file, {"name": "a", "figures": {"x": 1}})
    with file.open("a") as opened:
        opened.write('{"name": "b", "figures": {"x": 1}')
    assert [line["name"] for line in read_lines(file)] == ["a"]
    append_line(file, {"name": "c"})
    assert [line["name"] for line in read_lines(file)] == ["a", "c"]
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["a", "c"]


def test_a_table_takes_the_place_of_the_earlier_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_between(page, "| new |")
    assert page.read_text() == f"before\n{BEGIN}\n| new |\n{END}\nafter\n"
    page.write_text("no markers\n")
    with pytest.raises(SystemExit, match="has no line"):
        write_between(page, "| new |")
    assert page.read_text() == "no markers\n"
