"""REALM's knowledge-augmented encoder, with the name, signature and numbers of transformers 4.57.6."""

from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.bert.modeling_bert import BertOnlyMLMHead
from transformers.utils.generic import can_return_tuple

from realm_hf.models.bert_initialization import BertStart, initialize_prediction_head
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.encoder_initialization import EncoderStart
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.losses import full_precision, gold_log_probs, marginal_log_likelihood
from realm_hf.models.mimetic_initialization import KINDS, initialize_mimetic
from realm_hf.models.modeling_any_tower import RealmAnyTower, masked_language_model
from realm_hf.models.modeling_base import RealmTowerModel, flatten_candidates, refuse_head_mask
from realm_hf.models.modeling_bert_tower import padding_mask, word_inputs
from realm_hf.models.ragged_encoding import ragged_apply


class RealmKnowledgeAugEncoder(RealmTowerModel):
    r"""
    The knowledge-augmented encoder: masked language modeling over query and passage joined (section 3.2).

    Args:
        config ([`RealmConfig`]): The configuration.
    """

    parts = frozenset({"encoder", "head"})
    _tied_weights_keys = {  # noqa: RUF012
        "cls.predictions.decoder.weight": "realm.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: RealmConfig) -> None:
        super().__init__(config)
        other = self.other_encoder
        if other is not None:
            self.realm, head = masked_language_model(other)
            self.cls = head
            self._tied_weights_keys = head.tied
        else:
            self.realm = self.new_tower()
            self.cls = BertOnlyMLMHead(config)
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Another encoder's head is tied as its own configuration says."""
        keys = super().get_expanded_tied_weights_keys(all_submodels)
        return keys if self.other_encoder is None else keys | (self._tied_weights_keys or {})

    @classmethod
    def from_scratch(cls, config: RealmConfig, seed: int = 0) -> Self:
        """
        An encoder that knows nothing, made to learn to read soon: see [`mimetic_initialization`].

        Args:
            config ([`RealmConfig`]): Its sizes, as a BERT, or `encoder_config`. Encoders of other kinds than BERT and
                RoBERTa start as transformers makes them, and need more tokens until they read.
            seed (`int`, *optional*, defaults to 0): Of all its weights.

        Returns:
            The model in evaluation mode, in float32.

        Example:
        ```python
        >>> encoder = RealmKnowledgeAugEncoder.from_scratch(RealmConfig(vocab_size=8192, hidden_size=256))
        ```
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        tower = model.realm.model if isinstance(model.realm, RealmAnyTower) else model.realm
        if model.other_encoder is None or model.other_encoder.model_type in KINDS:
            initialize_mimetic(tower, seed)
        return model.eval()

    def start_from_bert(self, start: BertStart) -> None:
        """Copy tower and prediction head."""
        self.load_state_dict(start.tower | start.head, strict=False)
        if not start.head:
            initialize_prediction_head(self.cls.predictions)

    def start_from_encoders(self, start: EncoderStart) -> None:
        """Copy a masked language model, encoder and prediction head."""
        assert start.encoder is not None
        weights, prefix = start.encoder.state_dict(), f"{start.encoder.base_model_prefix}."
        of_tower = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        cast(RealmAnyTower, self.realm).model.load_state_dict(of_tower)
        self.cls.model.load_state_dict({name: w for name, w in weights.items() if not name.startswith(prefix)})

    def hidden_states_at(
        self,
        rows: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        max_tokens_per_chunk: int | None = None,
        facts: RowFacts | None = None,
    ) -> torch.Tensor:
        """
        Final hidden states at chosen positions, without work on padding.

        Args:
            rows (`torch.LongTensor` of shape `(N, R)`): Positions to return.
            input_ids (`torch.LongTensor` of shape `(N, L)`): Query and candidate joined, N >= 1, padded on the right.
            attention_mask (`torch.Tensor` of shape `(N, L)`, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Segments; all 0 if not given.
            max_tokens_per_chunk (`int`, *optional*): Largest chunk in tokens, padding included.
            facts ([`~host_facts.RowFacts`], *optional*): Of the rows, where the host knows them; else they are read
                back from their device.

        Returns:
            `torch.Tensor` of shape `(N, R, hidden_size)`: The hidden states.
        """
        facts = RowFacts.of(input_ids, attention_mask) if facts is None else facts
        word_rows, inputs_of = word_inputs(self.realm, input_ids, facts)
        return ragged_apply(
            lambda ids, mask, segments, wanted: (
                self.realm(
                    attention_mask=padding_mask(self.realm, mask),
                    token_type_ids=segments,
                    output_rows=wanted,
                    return_dict=True,
                    **inputs_of(ids),
                ).last_hidden_state
            ),
            word_rows,
            attention_mask,
            token_type_ids,
            rows,
            max_tokens_per_chunk=max_tokens_per_chunk,
            lengths=facts.lengths,
        )

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
        labels: torch.LongTensor | None = None,
        mlm_mask: torch.Tensor | None = None,
        mlm_positions: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        r"""
        B and K are read from the tensors; `config.num_candidates` is not used.

        Without `mlm_positions` this is the port's function: logits at all positions, because a script written for it
        may read them. With them, nothing is computed at other positions of the prediction head and of the last layer.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, K, L)` or `(B * K, L)`, *optional*): Query and candidate
                joined.
            attention_mask (`torch.Tensor` of the same shape, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of the same shape, *optional*): Segments.
            position_ids (`torch.LongTensor` of shape `(B * K, L)`, *optional*): Positions.
            head_mask (`None`): Not supported by transformers 5; must stay `None`.
            inputs_embeds (`torch.Tensor` of shape `(B * K, L, hidden_size)`, *optional*): Instead of `input_ids`.
            relevance_score (`torch.Tensor` of shape `(B, K)`, *optional*):
                f(x, z) from [`RealmScorer`]; necessary if `labels` are given.
            labels (`torch.LongTensor` of shape `(B, L)`, or `(B, M)` with `mlm_positions`, *optional*):
                Right tokens; -100 where there is none.
            mlm_mask (`torch.Tensor` of the shape of `labels`, *optional*):
                1 at positions that count for the loss, 0 elsewhere. All count if not given: a position without a label
                then adds nothing to the sum and one to the count, as in the port.
            mlm_positions (`torch.LongTensor` of shape `(B, M)`, *optional*):
                Positions in the joint input at which logits are wanted, the same for all candidates of a query.
            kwargs (*optional*): `output_hidden_states`, `output_attentions` (neither with `mlm_positions`),
            `return_dict`.

        Returns:
            [`~transformers.modeling_outputs.MaskedLMOutput`]: `logits` of shape `(B * K, L, vocab_size)` or, with
            `mlm_positions`, `(B * K, M, vocab_size)`; `loss` if `labels` are given: minus the mean over counted
            positions of the log of the sum over z of p(y|z, x) p(z|x).

        Raises:
            `ValueError`: `labels` without `relevance_score`.
        """
        refuse_head_mask(head_mask)
        if labels is not None and relevance_score is None:
            raise ValueError(
                "`labels` were given without `relevance_score`: the loss needs p(z|x); pass RealmScorer's."
            )
        ids = flatten_candidates(input_ids)
        if mlm_positions is not None:
            rows = next(x for x in (ids, inputs_embeds) if x is not None).size(0)
            # [B, M] -> [B * K, M]
            kwargs["output_rows"] = mlm_positions.repeat_interleave(rows // mlm_positions.size(0), dim=0)
        outputs = self.realm(
            ids,
            attention_mask=flatten_candidates(attention_mask),
            token_type_ids=flatten_candidates(token_type_ids),
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.cls(outputs.last_hidden_state)
        loss = None
        if labels is not None and relevance_score is not None:
            loss = self._marginal_loss(logits, labels, relevance_score, mlm_mask)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _marginal_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        relevance_score: torch.Tensor,
        mlm_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        batch_size, length = labels.shape
        counted = torch.ones_like(labels) if mlm_mask is None else mlm_mask
        wanted = (labels != -100) & (counted != 0)
        # Only counted positions go through the softmax over the vocabulary.
        example, position = wanted.nonzero(as_tuple=True)
        by_candidate = logits.view(batch_size, -1, length, logits.size(-1))[example, :, position]
        gold = gold_log_probs(by_candidate, labels[wanted].unsqueeze(-1).expand(by_candidate.shape[:-1]))
        candidate_log_probs = F.log_softmax(full_precision(relevance_score), dim=-1)[example]
        has_label = torch.ones_like(example, dtype=torch.bool).unsqueeze(-1)
        marginal = marginal_log_likelihood(candidate_log_probs, gold.unsqueeze(-1), has_label)
        weights = counted[wanted].to(marginal.dtype)
        count = counted.sum()
        return -(marginal.squeeze(-1) * weights).sum() / (count + (count == 0))


__all__ = ["RealmKnowledgeAugEncoder"]
