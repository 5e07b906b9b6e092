"""Which wordpieces of a sentence become `[MASK]` (section 3.4: salient span masking), as released.

One visit masks one span. All its wordpieces become `[MASK]`: no 80/10/10 rule, for a visible answer could be copied
from the query. Draws come from a counter-based generator, so that visit (epoch, index) is the same in every run, on
any number of ranks, and after a resume, without replaying what came before.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.models.cut_lengths import MAX_QUERY_LENGTH

MaskingMode = Literal["salient", "span", "uniform"]
SkipReason = Literal["no_salient_span", "mask_outside_query", "empty_sentence"]

UNIFORM_RATE = 0.15
"""Share of a sentence's wordpieces that "uniform" masks, as in BERT."""
SPAN_LENGTH_PROBABILITY = 0.2
"""Parameter of the geometric distribution of span lengths, as in SpanBERT."""

MASKING_STREAM = 0
INVERSE_CLOZE_STREAM = 1
MASKED_LM_STREAM = 2
RECURRING_SPAN_STREAM = 3


@dataclass(frozen=True)
class MaskedQuery:
    """
    A masked sentence, ready for the collator.

    Args:
        input_ids (`np.ndarray` of shape `[L]`, int64): `[CLS] x [SEP]` with the masked wordpieces replaced.
        positions (`np.ndarray` of shape `[M]`, int64): Positions in `input_ids` to predict; the same in the joint
            input.
        labels (`np.ndarray` of shape `[M]`, int64): The wordpieces that stood there.
        span (`int`): Index of the masked span among the sentence's spans, -1 in the modes without spans.
        sentence_ids (`np.ndarray` of shape `[L - 2]`, int64): The unmasked sentence as far as the query holds it,
            without special tokens: what the retriever's exclusion looks for.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    span: int
    sentence_ids: np.ndarray


def no_example(special_tokens: SpecialTokens) -> MaskedQuery:
    """`[CLS] [SEP]`, with nothing to predict: where a rank has no example, and must take part all the same."""
    nothing = np.zeros(0, np.int64)
    ids = np.array([special_tokens.cls, special_tokens.sep])
    return MaskedQuery(ids, nothing, nothing, span=-1, sentence_ids=nothing)


@dataclass(frozen=True)
class Skip:
    """
    A visit that gives no example; the trainer counts it and goes on.

    Args:
        reason (`str`): `"no_salient_span"`, `"mask_outside_query"` (the drawn span is cut off by the query's length)
            or `"empty_sentence"`.
    """

    reason: SkipReason


def example_rng(seed: int, epoch: int, index: int, stream: int = MASKING_STREAM) -> np.random.Generator:
    """
    The random generator of one visit: a Philox counter set to (epoch, index), keyed by (seed, stream).

    Args:
        seed (`int`): Seed of the run.
        epoch (`int`): Epoch, or the visit's number.
        index (`int`): Row of the sentence or passage.
        stream (`int`, *optional*): Keeps different uses of one seed apart.
    """
    # The low two words count the draws of this visit.
    return np.random.Generator(np.random.Philox(counter=[0, 0, epoch, index], key=[seed, stream]))


def mask_example(
    input_ids: np.ndarray,
    spans: np.ndarray,
    *,
    special_tokens: SpecialTokens,
    rng: np.random.Generator,
    mode: MaskingMode = "salient",
    max_masked: int = 10,
    max_query_length: int = MAX_QUERY_LENGTH,
) -> MaskedQuery | Skip:
    """
    Mask one sentence for one visit.

    As in the release, a span is drawn from all of the sentence's spans, and the visit is skipped when the span does
    not lie wholly within `[CLS] x [SEP]` of `max_query_length`; a longer sentence is cut there. Of a span with more
    than `max_masked` wordpieces all are masked, and the first `max_masked` are predicted.

    Args:
        input_ids (`np.ndarray` of shape `[T]`): Wordpieces of the sentence, without special tokens.
        spans (`np.ndarray` of shape `[S, 2]`): Salient spans in wordpieces, end exclusive. Read in mode "salient"
            only.
        special_tokens (`SpecialTokens`): Of the tokenizer.
        rng (`np.random.Generator`): See [`example_rng`].
        mode (`str`, *optional*, defaults to `"salient"`): `"salient"`: one of `spans`. The others are the paper's
            ablation (table 2): `"span"`: one run of wordpieces anywhere, its length geometric with p = 0.2 and at most
            `max_masked`; `"uniform"`: 15 % of the wordpieces (at least one, at most `max_masked`), each on its own.
        max_masked (`int`, *optional*, defaults to 10): Most wordpieces to predict.
        max_query_length (`int`, *optional*, defaults to `MAX_QUERY_LENGTH`): Lq, special tokens included.

    Returns:
        [`MaskedQuery`] or [`Skip`].

    Raises:
        ValueError: If `mode` is unknown, or a length is too small to mask anything.
    """
    if max_query_length < 3 or max_masked < 1:
        raise ValueError(f"max_query_length={max_query_length}, max_masked={max_masked}: at least 3 and 1 are needed")
    ids = np.asarray(input_ids, np.int64)
    room = max_query_length - 2
    visible = min(len(ids), room)
    if not visible:
        return Skip("empty_sentence")
    span = -1
    if mode == "salient":
        if not len(spans):
            return Skip("no_salient_span")
        span = int(rng.integers(len(spans)))
        start, end = (int(edge) for edge in spans[span])
        if end > room:
            return Skip("mask_outside_query")
        masked = np.arange(start, end)
    elif mode == "span":
        length = min(int(rng.geometric(SPAN_LENGTH_PROBABILITY)), max_masked, visible)
        start = int(rng.integers(visible - length + 1))
        masked = np.arange(start, start + length)
    elif mode == "uniform":
        count = min(max(1, round(UNIFORM_RATE * visible)), max_masked)
        masked = np.sort(rng.choice(visible, count, replace=False))
    else:
        raise ValueError(f"masking mode is {mode!r}: it must be 'salient', 'span' or 'uniform'")

    query = np.concatenate([[special_tokens.cls], ids[:visible], [special_tokens.sep]])
    query[masked + 1] = special_tokens.mask
    predicted = masked[:max_masked]
    return MaskedQuery(query, predicted + 1, ids[predicted], span, ids[:visible])
