"""REALM's reader, which scores answer spans in passages; names, signature, keys and numbers of transformers 4.57.6.

That port embeds the padding, and scores every span of the padded input before it masks what is no span of the passage.
Here rows go through the tower in chunks of similar length, only tokens of passages go through the head, and spans are
sums of two slices of those tokens, one width at a time: nothing is gathered, and hardly any invalid span is scored.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from realm_hf.models.bert_initialization import BertStart
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.encoder_initialization import EncoderStart
from realm_hf.models.host_facts import ReaderFacts, on_host
from realm_hf.models.losses import full_precision
from realm_hf.models.modeling_any_tower import RealmAnyTower
from realm_hf.models.modeling_base import RealmTowerModel, flatten_candidates, refuse_head_mask
from realm_hf.models.modeling_bert_tower import UnreadPredictionHead, padding_mask, word_inputs
from realm_hf.models.modeling_outputs import RealmReaderOutput, SpanScores
from realm_hf.models.ragged_encoding import ragged_tokens
from realm_hf.models.reading import ReadBeam
from realm_hf.models.transfer import to_device


def _from_first_to_last(mask: np.ndarray) -> np.ndarray:
    """`mask` `[P, L]` with its holes filled: True from the first to the last True of each row."""
    seen = mask.cumsum(axis=1)
    return (seen > 0) & (mask | (seen < seen[:, -1:]))


class RealmReaderProjection(nn.Module):
    """The span head: score(start, end) = w . LayerNorm(relu(A h_start + B h_end)) + b, from the hidden states h."""

    def __init__(self, config: RealmConfig) -> None:
        super().__init__()
        self.max_span_width = config.max_span_width
        self.dense_intermediate = nn.Linear(config.encoder_hidden_size, config.span_hidden_size * 2)
        self.dense_output = nn.Linear(config.span_hidden_size, 1)
        self.layer_normalization = nn.LayerNorm(config.span_hidden_size, eps=config.reader_layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, block_mask: np.ndarray) -> SpanScores:
        """
        Score all spans that start and end in the passage.

        Args:
            hidden_states (`torch.Tensor` of shape `(N, hidden_size)`):
                Of each row's tokens from its first to its last True in `block_mask`, by row, then by position.
            block_mask (`np.ndarray`, bool `[P, L]`): True at tokens of the passage.

        Returns:
            [`SpanScores`]
        """
        if not len(hidden_states):
            return self.no_spans(hidden_states.device)
        row, position = np.nonzero(_from_first_to_last(block_mask))
        inside = block_mask[row, position]
        tokens = len(row)
        widest = min(self.max_span_width, tokens)
        # [N, span_hidden_size] each, in float32 from here on
        first, last = full_precision(self.dense_intermediate(hidden_states)).chunk(2, dim=-1)
        logits, valid = [], np.zeros((tokens, widest), bool)
        for width in range(1, widest + 1):
            # Spans that reach into the next row are scored too: fewer than `width` a row.
            starts, ends = slice(0, tokens - width + 1), slice(width - 1, tokens)
            logits.append(F.pad(self._score(first[starts] + last[ends]), (0, width - 1)))
            valid[starts, width - 1] = inside[starts] & inside[ends] & (row[starts] == row[ends])
        # [N, W], counted flat: by row, start, width
        sent = to_device({"chosen": np.flatnonzero(valid), "row": row, "position": position}, hidden_states.device)
        token, wider = sent["chosen"] // widest, sent["chosen"] % widest
        start = sent["position"][token]
        return SpanScores(
            logits=torch.stack(logits, dim=-1).flatten()[sent["chosen"]],
            pair=sent["row"][token],
            start=start,
            end=start + wider,
        )

    def no_spans(self, device: torch.device) -> SpanScores:
        """The scores where there is no span; part of the graph, so that a loss of them has a gradient (of zero)."""
        none = torch.zeros(0, dtype=torch.long, device=device)
        logits = self._score(torch.zeros(0, self.dense_output.in_features, device=device))
        return SpanScores(logits, none, none, none)

    def _score(self, hidden: torch.Tensor) -> torch.Tensor:
        """From `(N, span_hidden_size)` to `(N,)`, in at least float32."""
        norm, output = self.layer_normalization, self.dense_output
        with torch.autocast(hidden.device.type, enabled=False):
            normed = F.layer_norm(
                hidden.relu(), norm.normalized_shape, full_precision(norm.weight), full_precision(norm.bias), norm.eps
            )
            return F.linear(normed, full_precision(output.weight), full_precision(output.bias)).squeeze(-1)


class RealmReader(RealmTowerModel):
    r"""
    The reader: scores every span of at most `config.max_span_width` wordpieces in the passages of a question.

    Its prediction head `cls` and its pooler are in every checkpoint and read by nobody; they are frozen.

    Args:
        config ([`RealmConfig`]): The configuration.
    """

    parts = frozenset({"encoder"})
    _tied_weights_keys = {"cls.predictions.decoder.bias": "cls.predictions.bias"}  # noqa: RUF012

    def __init__(self, config: RealmConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.realm = self.new_tower()
        self.cls = UnreadPredictionHead(config) if self.other_encoder is None else None
        if self.cls is None:
            self._tied_weights_keys = {}
        self.qa_outputs = RealmReaderProjection(config)
        self.post_init()

    def start_from_bert(self, start: BertStart) -> None:
        """Copy the tower and the unread head; the span head keeps its seeded start."""
        self.load_state_dict(start.tower | start.head, strict=False)

    def start_from_encoders(self, start: EncoderStart) -> None:
        """Copy the encoder; the span head keeps its seeded start."""
        assert isinstance(self.realm, RealmAnyTower) and start.encoder is not None
        self.realm.model.load_state_dict(start.encoder.base_model.state_dict())

    def score_spans(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        block_mask: torch.Tensor,
        max_tokens_per_chunk: int | None = None,
        facts: ReaderFacts | None = None,
    ) -> SpanScores:
        """
        Logits of all valid spans in P joint inputs, without work on padding or on invalid spans.

        Args:
            input_ids (`torch.LongTensor` of shape `(P, L)`): `[CLS] question [SEP] body [SEP]`, padded on the right.
            attention_mask (`torch.Tensor` of shape `(P, L)`, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(P, L)`, *optional*): 0 in the question, 1 in the body.
            block_mask (`torch.BoolTensor` of shape `(P, L)`):
                True at the body's wordpieces. A span needs its first and its last wordpiece there.
            max_tokens_per_chunk (`int`, *optional*): Largest chunk in tokens, padding included.
            facts ([`~host_facts.ReaderFacts`], *optional*): Of these inputs, where the host knows them; else they are
                read back from their device.

        Returns:
            [`SpanScores`]: By joint input, then start, then width; empty if no row has a body. Gradients flow.

        Example:
        ```python
        >>> spans = reader.score_spans(**batch)
        >>> logits = spans.logits + relevance_score[spans.pair]
        >>> question = question_of_pair[spans.pair]
        >>> log_probs = span_log_softmax(logits, question, num_questions)
        ```
        """
        facts = ReaderFacts.of(input_ids, attention_mask, block_mask) if facts is None else facts
        if not facts.block_mask.any():
            return self.qa_outputs.no_spans(input_ids.device)
        word_rows, inputs_of = word_inputs(self.realm, input_ids, facts.rows)
        hidden = ragged_tokens(
            lambda rows, mask, segments: (
                self.realm(
                    attention_mask=padding_mask(self.realm, mask),
                    token_type_ids=segments,
                    return_dict=True,
                    **inputs_of(rows),
                ).last_hidden_state
            ),
            _from_first_to_last(facts.block_mask),
            word_rows,
            attention_mask,
            token_type_ids,
            max_tokens_per_chunk,
            facts.rows.lengths,
        )
        return self.qa_outputs(hidden, facts.block_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        head_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        relevance_score: torch.Tensor | None = None,
        block_mask: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        has_answers: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RealmReaderOutput:
        r"""
        One question with `input_ids` of two dimensions, as in the port, or a batch of B questions with three.

        R is read from the inputs; `config.reader_beam_size` is not used. What is given for the whole beam (S >= R
        passages) is cut to the first R where the reader needs it.

        Args:
            input_ids (`torch.LongTensor` of shape `(R, L)` or `(B, R, L)`, *optional*):
                `[CLS] question [SEP] passage [SEP]`, best passage first.
            attention_mask (`torch.Tensor` of the same shape, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of the same shape, *optional*): Segments; all 0 if not given.
            position_ids (`torch.LongTensor` of shape `(R, L)` or `(B * R, L)`, *optional*): Positions.
            head_mask (`None`): Not supported by transformers 5; must stay `None`.
            inputs_embeds (`torch.Tensor` of shape `(R, L, hidden_size)`, *optional*):
                Instead of `input_ids`, for one question.
            relevance_score (`torch.Tensor` of shape `(S,)` or `(B, S)`):
                Scores of the beam; minus infinity where a question has no such passage.
            block_mask (`torch.BoolTensor` of shape `(S, L)` or `(B, S, L)`):
                True at wordpieces of the passage; at least R rows.
            start_positions (`torch.LongTensor` of shape `(S, A)` or `(B, S, A)`, *optional*):
                First wordpieces of answers in the input; -1 fills up. Answers that are no span of the passage or too
                wide are not counted.
            end_positions (`torch.LongTensor` of the same shape, *optional*): Last wordpieces, inclusive.
            has_answers (`torch.BoolTensor` of shape `(S,)` or `(B, S)`, *optional*):
                Whether a passage of the beam contains an answer.
            kwargs (*optional*): `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            [`RealmReaderOutput`]

        Raises:
            `ValueError`: `relevance_score`, `block_mask` or the inputs are missing.
        """
        refuse_head_mask(head_mask)
        if relevance_score is None:
            raise ValueError(
                "`relevance_score` is missing: it is added to every span's logit; pass the beam's scores."
            )
        if block_mask is None:
            raise ValueError(
                "`block_mask` is missing: pass True at the passages' wordpieces, False at the questions'."
            )
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None:
            raise ValueError("No input was given: pass `input_ids` or `inputs_embeds`.")
        batched = input_ids is not None and input_ids.dim() == 3
        read, length = inputs.shape[1 if batched else 0], inputs.shape[2 if batched else 1]
        if not batched:
            relevance_score, block_mask = relevance_score.unsqueeze(0), block_mask.unsqueeze(0)
        ids, mask = flatten_candidates(input_ids), flatten_candidates(attention_mask)
        segments, body = flatten_candidates(token_type_ids), block_mask[:, :read].flatten(0, 1).bool()
        outputs = BaseModelOutput()
        recorded = ("output_hidden_states", "output_attentions")
        wants_all = any(kwargs.get(name, getattr(self.config, name)) for name in recorded)
        if ids is not None and position_ids is None and not wants_all:
            spans = self.score_spans(ids, mask, segments, body)
        else:
            outputs = self.realm(
                ids,
                attention_mask=mask,
                token_type_ids=segments,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
            passages = on_host(body)
            places = {"tokens": np.flatnonzero(_from_first_to_last(passages))}
            tokens = to_device(places, body.device)["tokens"]
            spans = self.qa_outputs(outputs.last_hidden_state.flatten(0, 1)[tokens], passages)
        number = torch.arange(len(body), device=body.device)
        found = ReadBeam(spans, full_precision(relevance_score), number // read, number % read, length)
        result = self._best_spans(found)
        if start_positions is not None and end_positions is not None and has_answers is not None:
            labels = (start_positions, end_positions, has_answers.bool())
            starts, ends, has_answer = (label if batched else label.unsqueeze(0) for label in labels)
            gold = self._gold_candidates(starts[:, :read], ends[:, :read], length)
            correct = gold.flatten(0, 1)[spans.pair, self._candidate(spans.start, spans.end, length)]
            result["retriever_loss"], result["reader_loss"] = found.losses(has_answer, correct)
            result["retriever_correct"], result["reader_correct"] = has_answer, gold
        if not batched:
            # The port's positions have one dimension, its other results none.
            keep = ("start_pos", "end_pos")
            result = {name: value if name in keep else value.squeeze(0) for name, value in result.items()}
        loss = (result["retriever_loss"] + result["reader_loss"]).mean() if "reader_loss" in result else None
        return RealmReaderOutput(
            loss=loss, **result, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _candidate(self, start: torch.Tensor, end: torch.Tensor, length: int) -> torch.Tensor:
        """The number of a span among all of an input of `length`: by width, then by start."""
        narrower = end - start
        # Widths 1, 2, ... have length, length - 1, ... spans.
        return narrower * length - narrower * (narrower - 1) // 2 + start

    def _gold_candidates(self, starts: torch.Tensor, ends: torch.Tensor, length: int) -> torch.Tensor:
        """Whether a candidate is an answer: from positions `(B, R, A)` to bool `(B, R, num_candidates)`."""
        width = ends - starts + 1
        widest = min(self.config.max_span_width, length)
        possible = (starts >= 0) & (ends < length) & (width >= 1) & (width <= widest)
        candidates = sum(length - wider for wider in range(widest))
        gold = torch.zeros(*starts.shape[:2], candidates, dtype=torch.bool, device=starts.device)
        batch, passage, answer = possible.nonzero(as_tuple=True)
        first, last = starts[batch, passage, answer], ends[batch, passage, answer]
        gold[batch, passage, self._candidate(first, last, length)] = True
        return gold

    def _best_spans(self, found: ReadBeam) -> dict[str, torch.Tensor]:
        """The best span of each question as the port names it, `(B,)` each; zeros where there is no span."""
        spans, chosen = found.spans, found.best_of_questions()

        def of_best(values: torch.Tensor) -> torch.Tensor:
            return F.pad(values, (0, 1))[chosen]

        return {
            "block_idx": of_best(found.input_rank[spans.pair]),
            "candidate": of_best(self._candidate(spans.start, spans.end, found.length)),
            "start_pos": of_best(spans.start),
            "end_pos": of_best(spans.end),
        }


__all__ = ["RealmReader", "RealmReaderProjection"]
