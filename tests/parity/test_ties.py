"""Where spans tie, the answer is that of transformers 4.57.6; `make_ties.py` wrote down what it chose."""

import json
from pathlib import Path

import pytest
import torch

from realm_hf.models.modeling_outputs import SpanScores
from realm_hf.models.reading import ReadBeam
from realm_hf.qa.best_spans import best_spans

CASES = json.loads((Path(__file__).parent / "fixtures" / "ties.json").read_text(encoding="utf-8"))


def spans_of(mask: torch.Tensor, logits: torch.Tensor) -> SpanScores:
    """The spans of the body as our reader gives them, by passage, start, width, from all candidates' logits."""
    passages, length = mask.shape
    places, number = {}, 0
    while number < logits.size(1):  # that release counts them by width, then start
        width = len({width for width, _ in places})
        places |= {(width, start): number + start for start in range(length - width)}
        number += length - width
    rows = [
        (float(logits[pair, places[width, start]]), pair, start, start + width)
        for pair in range(passages)
        for start in range(length)
        for width in range(length)
        if (width, start) in places and mask[pair, start] and mask[pair, start + width]
    ]
    return SpanScores(*map(torch.tensor, zip(*rows, strict=True)))


@pytest.fixture(scope="module")
def cases():
    tensors = [{name: torch.tensor(value) for name, value in case.items()} for case in CASES]
    return [(case, spans_of(case["mask"], case["logits"])) for case in tensors]


def test_many_of_the_best_spans_tie(cases):
    tied, by_start = 0, 0
    for case, spans in cases:
        scores = spans.logits + case["relevance"][spans.pair]
        best = (scores == scores.max()).nonzero().flatten()
        tied += len(best) > 1
        by_start += int(spans.start[best[0]]) != int(case["chosen"][1])
    assert tied == len(cases) and by_start > len(cases) // 2  # the leftmost is another one, mostly


def test_the_passage_then_the_width_then_the_start_decide(cases):
    for case, spans in cases:
        ids, question = torch.arange(case["mask"].numel()).view_as(case["mask"]), torch.zeros(3, dtype=torch.long)
        read = ReadBeam(spans, case["relevance"][None], question, torch.arange(3), ids.size(1))
        found = best_spans(read, ids)
        best = found.of_question
        assert [int(best.pair[0]), int(best.start[0]), int(best.end[0])] == case["chosen"].tolist()
        block = case["chosen"][0]
        assert [int(found.of_pair.start[block]), int(found.of_pair.end[block])] == case["chosen"][1:].tolist()
