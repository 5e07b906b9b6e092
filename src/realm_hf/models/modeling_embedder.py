"""REALM's embedder and scorer, with the names, signatures and numbers of transformers 4.57.6.

State-dict keys are those of that port and of the published google/realm-* weights, which contain parts that no
computation reads: the prediction head inside every embedder and the encoder's pooler. They are kept so that files load
in both directions, and frozen so that neither optimizers nor DistributedDataParallel wait for gradients that never
come.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.embedder_start import EmbedderStart
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.losses import relevance_scores
from realm_hf.models.modeling_base import RealmPreTrainedModel, RealmTowerModel, flatten_candidates, refuse_head_mask
from realm_hf.models.modeling_bert_tower import padding_mask, word_inputs
from realm_hf.models.modeling_outputs import RealmEmbedderOutput, RealmScorerOutput
from realm_hf.models.pooling import RealmScorerProjection, mean_of_tokens
from realm_hf.models.prompts import ROLES, Role, add_prompt, join_pairs, prompt_ids
from realm_hf.models.ragged_encoding import ragged_apply
from realm_hf.models.sentence_transformer import SentenceTransformerBridge
from realm_hf.models.text_encoding import TextEncoder


class RealmEmbedder(EmbedderStart, SentenceTransformerBridge, TextEncoder, RealmTowerModel):
    r"""
    A tower that embeds queries or passages: Embed(x) = LayerNorm(W tanh(pooler(BERT_CLS(x)))), or as the fields
    `pooling_mode`, `projection` and `normalize` of the configuration say.

    `encode` puts the configuration's prompts before what it embeds; `forward` embeds the tokens it is given and no
    others.

    Args:
        config ([`RealmConfig`]): The configuration.

    Raises:
        `ValueError`: there is no projection, and an embedding has not as many dimensions as a hidden state; or a
            prompt has no token ids.
    """

    encoder_field = "embedder_config"
    parts = frozenset({"embedder"})
    _tied_weights_keys = {"cls.predictions.decoder.bias": "cls.predictions.bias"}  # noqa: RUF012

    def __init__(self, config: RealmConfig) -> None:
        super().__init__(config)
        self.realm = self.new_tower(pooler_is_read=config.pooling_mode == "cls")
        self.cls = RealmScorerProjection(config)
        if self.cls.predictions is None:
            self._tied_weights_keys = {}
        for role in ROLES:
            if ids := prompt_ids(config, role):
                # Among the weights, so that whatever compares towers by these knows of their prompts.
                self.register_buffer(f"{role}_prompt_ids", torch.tensor(ids))
        if config.document_format == "joined":
            self.register_buffer("documents_are_joined", torch.tensor([1]))  # for the same reason
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        head_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RealmEmbedderOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Token ids.
            attention_mask (`torch.Tensor` of shape `(N, L)`, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Segments; all 0 if not given.
            position_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Positions; counted from 0 if not given.
            head_mask (`None`): Not supported by transformers 5; must stay `None`.
            inputs_embeds (`torch.Tensor` of shape `(N, L, hidden_size)`, *optional*): Instead of `input_ids`.
            kwargs (*optional*): `output_hidden_states`, `output_attentions` (with eager attention), `return_dict`.

        Returns:
            [`RealmEmbedderOutput`]: `projected_score` of shape `(N, retriever_proj_size)`.

        Raises:
            `ValueError`: neither or both of `input_ids` and `inputs_embeds` are given, or a `head_mask` is.

        Example:
        ```python
        >>> embeddings = embedder(**tokenizer("Paris is in France.", return_tensors="pt")).projected_score
        ```
        """
        refuse_head_mask(head_mask)
        inputs = input_ids if input_ids is not None else inputs_embeds
        recorded = ("output_hidden_states", "output_attentions")
        of_cls = self.config.pooling_mode == "cls"
        if inputs is not None and of_cls and not any(kwargs.get(n, getattr(self.config, n)) for n in recorded):
            # Only [CLS] is read, unless the caller asks to see all there is.
            kwargs["output_rows"] = torch.zeros(inputs.shape[0], 1, dtype=torch.long, device=inputs.device)
        outputs = self.realm(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return RealmEmbedderOutput(
            projected_score=self.cls(self._pool(outputs, attention_mask)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def pooled(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the projection reads, `(N, hidden_size)`, of token ids `(N, L)`, no prompt added."""
        outputs = self.realm(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return self._pool(outputs, attention_mask)

    def with_prompt(
        self, role: Role, rows: Mapping[str, torch.Tensor | None], facts: RowFacts | None = None
    ) -> tuple[dict[str, Any], RowFacts]:
        """
        Rows as the tower reads them: with the prompt of queries or passages behind their first token, if there is one,
        and passages joined to one text where the configuration says so.

        Args:
            role (`str`): `"query"` or `"document"`.
            rows (`Mapping[str, torch.Tensor]`): `input_ids`, `attention_mask`, `token_type_ids`, `(N, L)`; the last
                two may be `None`.
            facts ([`~host_facts.RowFacts`], *optional*): Of the rows, where the host knows them.

        Returns:
            The rows, at most as long as the tower has positions, and their facts.
        """
        if role == "document" and self.config.document_format == "joined":
            rows, facts = join_pairs(rows)
        elif facts is None:
            facts = RowFacts.of(cast(torch.Tensor, rows["input_ids"]), rows.get("attention_mask"))
        return add_prompt(prompt_ids(self.config, role), self.config.max_position_embeddings, rows, facts)

    def _pool(self, outputs: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if self.config.pooling_mode == "cls":
            return outputs.pooler_output
        return mean_of_tokens(outputs.last_hidden_state, attention_mask)

    def encode_tokens(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        max_tokens_per_chunk: int | None = None,
        facts: RowFacts | None = None,
        role: Role | None = None,
    ) -> torch.Tensor:
        """
        Embeddings of rows of unequal length without work on padding; see [`~encoding.ragged_apply`]. `encode` of token
        ids is this.

        Args:
            input_ids (`torch.LongTensor` of shape `(N, L)`): Token ids, N >= 1, padded on the right.
            attention_mask (`torch.Tensor` of shape `(N, L)`, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Segments; all 0 if not given.
            max_tokens_per_chunk (`int`, *optional*): Largest chunk in tokens, padding included.
            facts ([`~host_facts.RowFacts`], *optional*): Of the rows, where the host knows them; else they are read
                back from their device.
            role (`str`, *optional*): `"query"` or `"document"`, which says what prompt is put before the rows. By
                default those with segments are passages, as in REALM's formats.

        Returns:
            `torch.Tensor` of shape `(N, retriever_proj_size)`: The embeddings.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        sent, facts = self.with_prompt(role or ("query" if token_type_ids is None else "document"), given, facts)
        word_rows, inputs_of = word_inputs(self.realm, sent["input_ids"], facts)

        def embed(rows: torch.Tensor, mask: torch.Tensor | None, segments: torch.Tensor | None) -> torch.Tensor:
            return self(
                attention_mask=padding_mask(self.realm, mask),
                token_type_ids=segments,
                return_dict=True,
                **inputs_of(rows),
            ).projected_score

        return ragged_apply(
            embed,
            word_rows,
            sent["attention_mask"],
            sent["token_type_ids"],
            max_tokens_per_chunk=max_tokens_per_chunk,
            lengths=facts.lengths,
        )


class RealmScorer(RealmPreTrainedModel):
    r"""
    Relevance scores f(x, z) of given candidates (section 3.2).

    Args:
        config ([`RealmConfig`]): The configuration.
        query_embedder ([`RealmEmbedder`], *optional*):
            Tower of the queries. Without it, queries share the passages' weights, unless `config.share_embedders` is
            `False`.
    """

    parts = frozenset({"embedder"})
    # Of a whole pre-trained model.
    _keys_to_ignore_on_load_unexpected = [r"^encoder\."]  # noqa: RUF012

    def __init__(self, config: RealmConfig, query_embedder: RealmEmbedder | None = None) -> None:
        super().__init__(config)
        self.embedder = RealmEmbedder(config)
        self.query_embedder = query_embedder if query_embedder is not None else RealmEmbedder(config)
        if query_embedder is None and config.share_embedders:
            # Tied parameter by parameter: old files contain both towers, and stay two if their weights differ.
            names = [name for name, _ in self.embedder.named_parameters(remove_duplicate=False)]
            # The second of a head's two biases is tied by each tower itself.
            names = [name for name in names if not name.endswith("decoder.bias")]
            self._tied_weights_keys = {f"query_embedder.{name}": f"embedder.{name}" for name in names}
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The towers share their weights whether or not the word embeddings are tied to a head."""
        return super().get_expanded_tied_weights_keys(all_submodels) | (self._tied_weights_keys or {})

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embedder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embedder.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize both towers; arguments as in `PreTrainedModel`."""
        resized: nn.Embedding = self.embedder.resize_token_embeddings(*args, **kwargs)
        self.query_embedder.resize_token_embeddings(*args, **kwargs)
        self.tie_weights()
        return resized

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        candidate_input_ids: torch.LongTensor | None = None,
        candidate_attention_mask: torch.Tensor | None = None,
        candidate_token_type_ids: torch.LongTensor | None = None,
        candidate_inputs_embeds: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RealmScorerOutput:
        r"""
        B and K are read from the tensors; `config.num_candidates` is not used.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): Token ids of the queries.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): Segments; all 0 if not given.
            position_ids (`torch.LongTensor` of shape `(1, L)`, *optional*):
                Positions, of queries and of candidates, as in the port; counted from 0 if not given.
            candidate_input_ids (`torch.LongTensor` of shape `(B, K, L)` or `(B * K, L)`, *optional*): Token ids.
            candidate_attention_mask (`torch.Tensor` of the same shape, *optional*): 1 at tokens, 0 at padding.
            candidate_token_type_ids (`torch.LongTensor` of the same shape, *optional*): Segments.
            candidate_inputs_embeds (`torch.Tensor` of shape `(B * K, L, hidden_size)`, *optional*):
                Instead of `candidate_input_ids`.
            head_mask (`None`): Not supported by transformers 5; must stay `None`.
            inputs_embeds (`torch.Tensor` of shape `(B, L, hidden_size)`, *optional*): Instead of `input_ids`.
            kwargs (*optional*): `return_dict`, `output_attentions`, `output_hidden_states`.

        Returns:
            [`RealmScorerOutput`]: `relevance_score` `(B, K)`, `query_score` `(B, D)`, `candidate_score` `(B, K, D)`.

        Raises:
            `ValueError`: queries or candidates are missing, or their counts do not divide.
        """
        if input_ids is None and inputs_embeds is None:
            raise ValueError("No query was given: pass `input_ids` or `inputs_embeds`.")
        if candidate_input_ids is None and candidate_inputs_embeds is None:
            raise ValueError("No candidate was given: pass `candidate_input_ids` or `candidate_inputs_embeds`.")
        common = {"position_ids": position_ids, "head_mask": head_mask, "return_dict": True, **kwargs}
        query: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        query["token_type_ids"] = token_type_ids
        if input_ids is not None:
            query, _ = self.query_embedder.with_prompt("query", query)
        query_score = self.query_embedder(**query, inputs_embeds=inputs_embeds, **common).projected_score
        ids, mask = flatten_candidates(candidate_input_ids), flatten_candidates(candidate_attention_mask)
        segments = flatten_candidates(candidate_token_type_ids)
        if ids is not None and mask is not None and position_ids is None and not kwargs:
            candidate_score = self.embedder.encode_tokens(ids, mask, segments, role="document")
        else:
            passage: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
            if ids is not None:
                passage, _ = self.embedder.with_prompt("document", passage)
            candidate_score = self.embedder(**passage, inputs_embeds=candidate_inputs_embeds, **common).projected_score
        queries, candidates = query_score.size(0), candidate_score.size(0)
        if candidates % queries:
            raise ValueError(
                f"{candidates} candidates cannot be shared out to {queries} queries: give every query the same number."
            )
        candidate_score = candidate_score.view(queries, candidates // queries, -1)
        return RealmScorerOutput(
            relevance_score=relevance_scores(query_score, candidate_score, self.config.score_scale),
            query_score=query_score,
            candidate_score=candidate_score,
        )


__all__ = [
    "RealmEmbedder",
    "RealmScorer",
]
