"""`RealmForPreTraining`: retriever and knowledge-augmented encoder trained jointly, in one forward pass."""

import math
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.generic import can_return_tuple

from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.host_facts import NULL_PASSAGE, PreTrainingFacts
from realm_hf.models.losses import gold_log_probs, marginal_log_likelihood, relevance_scores, retrieval_utility
from realm_hf.models.modeling_base import RealmPreTrainedModel
from realm_hf.models.modeling_embedder import RealmEmbedder, RealmScorer
from realm_hf.models.modeling_encoder import RealmKnowledgeAugEncoder
from realm_hf.models.modeling_outputs import RealmForPreTrainingOutput
from realm_hf.models.ragged_encoding import chunks_are_equal
from realm_hf.models.transfer import to_device


class RealmForPreTraining(RealmPreTrainedModel):
    r"""
    REALM pre-training: log p(y|x) = log sum over z of p(y|z, x) p(z|x), with gradient through p(z|x) (section 3).

    Submodules: `embedder` (the passage tower), `query_embedder` (the same module if `config.share_embedders`) and
    `encoder`. Save a tower alone by `model.embedder.save_pretrained(...)`.

    Args:
        config ([`RealmConfig`]): The configuration.

    Attributes:
        max_tokens_per_chunk (`int`, *optional*):
            Largest batch of tokens that goes through a tower at once, padding included; `None` for the device's
            default.
    """

    parts = frozenset({"embedder", "encoder", "head"})

    def __init__(self, config: RealmConfig) -> None:
        super().__init__(config)
        self.embedder = RealmEmbedder(config)
        if not config.share_embedders:
            self._modules["query_embedder"] = RealmEmbedder(config)
        self.encoder = RealmKnowledgeAugEncoder(config)
        self.max_tokens_per_chunk: int | None = None
        self.post_init()

    @property
    def query_embedder(self) -> RealmEmbedder:
        """The query tower. A property, because one module under two names could not be saved."""
        return cast(RealmEmbedder, self._modules.get("query_embedder", self.embedder))

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's word embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's word embeddings."""
        self.encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The decoder of the encoder's prediction head."""
        return self.encoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder of the encoder's prediction head."""
        self.encoder.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize all towers; arguments as in `PreTrainedModel`. Returns the encoder's word embeddings."""
        resized: nn.Embedding = self.encoder.resize_token_embeddings(*args, **kwargs)
        for tower in self.children():
            if isinstance(tower, RealmEmbedder):
                tower.resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = resized.num_embeddings
        return resized

    @can_return_tuple
    def forward(
        self,
        query_input_ids: torch.LongTensor,
        query_attention_mask: torch.Tensor,
        candidate_input_ids: torch.LongTensor,
        candidate_attention_mask: torch.Tensor,
        joint_input_ids: torch.LongTensor,
        joint_attention_mask: torch.Tensor,
        mlm_positions: torch.LongTensor,
        mlm_labels: torch.LongTensor,
        candidate_token_type_ids: torch.LongTensor | None = None,
        joint_token_type_ids: torch.LongTensor | None = None,
        candidate_mask: torch.Tensor | None = None,
        candidate_ids: torch.LongTensor | None = None,
        unread_mask: torch.Tensor | None = None,
        num_items: torch.Tensor | int | None = None,
        detach_retrieval: bool = False,
        facts: PreTrainingFacts | None = None,
    ) -> RealmForPreTrainingOutput:
        r"""
        Sequences are padded on the right. The null passage, where a row has it, is its candidate 0.

        Args:
            query_input_ids (`torch.LongTensor` of shape `(B, Lq)`): `[CLS] x [SEP]`, with x masked.
            query_attention_mask (`torch.Tensor` of shape `(B, Lq)`): 1 at tokens, 0 at padding.
            candidate_input_ids (`torch.LongTensor` of shape `(B, K, Lc)`): `[CLS] title [SEP] body [SEP]`.
            candidate_attention_mask (`torch.Tensor` of shape `(B, K, Lc)`): 1 at tokens, 0 at padding.
            joint_input_ids (`torch.LongTensor` of shape `(B, K, Lj)`): `[CLS] x [SEP] body [SEP]`.
            joint_attention_mask (`torch.Tensor` of shape `(B, K, Lj)`): 1 at tokens, 0 at padding.
            mlm_positions (`torch.LongTensor` of shape `(B, M)`):
                Masked positions; the same in query and joint input, which both start with `[CLS] x`. Anything in
                `[0, Lj)` where there is no label.
            mlm_labels (`torch.LongTensor` of shape `(B, M)`):
                The tokens that were masked; -100 where there is none. A row without any adds nothing to loss and
                count.
            candidate_token_type_ids (`torch.LongTensor` of shape `(B, K, Lc)`, *optional*): Segments; 0 if not given.
            joint_token_type_ids (`torch.LongTensor` of shape `(B, K, Lj)`, *optional*): Segments; 0 if not given.
            candidate_mask (`torch.BoolTensor` of shape `(B, K)`, *optional*):
                False where a row has no such candidate; nothing is computed there.
            candidate_ids (`torch.LongTensor` of shape `(B, K)`, *optional*):
                Passage rows; -1 is the null passage, -2 an absent candidate. Equal ids are embedded once. Without it,
                candidate 0 of every row is taken for the null passage.
            unread_mask (`torch.BoolTensor` of shape `(B, B * K)`, *optional*):
                True where the candidate of another query, counted flat (of equal ones the first), takes part in
                p(z|x) without being read: it is taken to be worth what the null passage is, p(y|z, x) = p(y|null, x),
                and its probability is counted with the null passage's. Neither paper nor released code has it: their
                sum is over the read candidates alone.
            num_items (`torch.Tensor` or `int`, *optional*):
                What the summed loss is divided by: the number of masked tokens (`"token"`) or of examples with one
                (`"span"`) of the whole optimizer step, over ranks and accumulation. Defaults to this batch's own.
            detach_retrieval (`bool`, *optional*, defaults to `False`):
                Treat p(z|x) as a constant (an ablation): the towers run without gradient, and their trainable
                parameters receive zeros.
            facts ([`~host_facts.PreTrainingFacts`], *optional*):
                `PreTrainingFacts.of(**batch)` of this batch while it was on the host: with it nothing here waits for
                the device. Without it the batch is read back.

        Returns:
            [`RealmForPreTrainingOutput`]

        Raises:
            `ValueError`: a row has no candidate at all.
        """
        if facts is None:
            facts = PreTrainingFacts.of(
                query_input_ids=query_input_ids,
                query_attention_mask=query_attention_mask,
                candidate_input_ids=candidate_input_ids,
                candidate_attention_mask=candidate_attention_mask,
                joint_input_ids=joint_input_ids,
                joint_attention_mask=joint_attention_mask,
                mlm_labels=mlm_labels,
                candidate_mask=candidate_mask,
                candidate_ids=candidate_ids,
            )
        places = to_device(facts.places(), query_input_ids.device)
        label_mask = mlm_labels != -100
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_retrieval):
            query_score, encoded_score = self._embed(
                query_input_ids,
                query_attention_mask,
                candidate_input_ids,
                candidate_attention_mask,
                candidate_token_type_ids,
                facts,
                places["encoded"],
            )
            # Absent candidates point at row 0 and are masked.
            candidate_score = encoded_score[places["source"]].view(*facts.candidate_mask.shape, -1)
            retrieval_score = relevance_scores(query_score, candidate_score, self.config.score_scale)
            retrieval_score = retrieval_score.masked_fill(~places["candidate_mask"], -torch.inf)
            counted_score = retrieval_score
            if unread_mask is not None:
                unread_of_encoded = unread_mask[:, places["encoded"]]
                counted_score = self._with_unread(retrieval_score, query_score, encoded_score, unread_of_encoded)
            # [B, K]
            candidate_log_probs = F.log_softmax(counted_score, dim=-1)
        # [B, K, M]
        gold = self._gold_log_probs(
            joint_input_ids, joint_attention_mask, joint_token_type_ids, mlm_positions, mlm_labels, facts, places
        )
        # [B, M] or [B]
        marginal = marginal_log_likelihood(candidate_log_probs, gold, label_mask, self.config.marginalization)
        if num_items is None:
            counted = label_mask if self.config.marginalization == "token" else label_mask.any(-1)
            num_items = counted.sum().clamp(min=1)
        loss = -marginal.sum() / num_items
        unread = detach_retrieval or not facts.label_mask.any()
        if unread and torch.is_grad_enabled() and not chunks_are_equal():
            loss = loss + self._zero_with_gradient()
        starts_with_null = (
            candidate_ids[:, 0] == NULL_PASSAGE
            if candidate_ids is not None
            else torch.ones_like(places["candidate_mask"][:, 0])
        )
        utility, marginal_utility = retrieval_utility(gold, candidate_log_probs, label_mask)
        return RealmForPreTrainingOutput(
            loss=loss,
            retrieval_score=retrieval_score,
            candidate_log_probs=candidate_log_probs,
            gold_log_probs=gold,
            marginal_log_probs=marginal,
            retrieval_utility=utility.masked_fill(~starts_with_null.unsqueeze(-1), torch.nan),
            marginal_utility=marginal_utility.masked_fill(~starts_with_null, torch.nan),
            null_mass=candidate_log_probs.detach()[:, 0].exp() * starts_with_null,
            query_score=query_score,
        )

    def _embed(
        self,
        query_input_ids: torch.Tensor,
        query_attention_mask: torch.Tensor,
        candidate_input_ids: torch.Tensor,
        candidate_attention_mask: torch.Tensor,
        candidate_token_type_ids: torch.Tensor | None,
        facts: PreTrainingFacts,
        encoded: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the queries `(B, D)` and of the E distinct candidates `(E, D)`, embedded once each."""
        segments = candidate_token_type_ids
        embeddings = self.embedder.encode_tokens(
            candidate_input_ids.flatten(0, 1)[encoded],
            candidate_attention_mask.flatten(0, 1)[encoded],
            segments.flatten(0, 1)[encoded] if segments is not None else None,
            self.max_tokens_per_chunk,
            facts.candidate[facts.encoded],
            role="document",
        )
        query_score = self.query_embedder.encode_tokens(
            query_input_ids,
            query_attention_mask,
            max_tokens_per_chunk=self.max_tokens_per_chunk,
            facts=facts.query,
            role="query",
        )
        return query_score, embeddings

    def _with_unread(
        self, scores: torch.Tensor, query_score: torch.Tensor, encoded_score: torch.Tensor, unread: torch.Tensor
    ) -> torch.Tensor:
        """Scores `(B, K)` whose null passage stands for the unread candidates, too; `unread` is `(B, E)`."""
        every = relevance_scores(query_score, encoded_score.unsqueeze(0), self.config.score_scale)
        of_unread = every.masked_fill(~unread, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([torch.logaddexp(scores[:, :1], of_unread), scores[:, 1:]], dim=-1)

    def _gold_log_probs(
        self,
        joint_input_ids: torch.Tensor,
        joint_attention_mask: torch.Tensor,
        joint_token_type_ids: torch.Tensor | None,
        mlm_positions: torch.Tensor,
        mlm_labels: torch.Tensor,
        facts: PreTrainingFacts,
        places: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Log p(y_m|z, x) `(B, K, M)`; joint inputs nobody asks about are not encoded, nor other positions decoded."""
        shape = (*facts.candidate_mask.shape, mlm_labels.size(1))
        pairs, segments = places["pairs"], joint_token_type_ids
        if not len(facts.pairs):
            dtype = torch.promote_types(self.encoder.dtype, torch.float32)
            nothing = torch.zeros(shape, dtype=dtype, device=mlm_labels.device)
            if not chunks_are_equal():
                return nothing
            # Other ranks encode, and gather weights with this one.
            hidden = self.encoder.hidden_states_at(
                mlm_positions.new_zeros(1, 1),
                joint_input_ids.flatten(0, 1)[:1],
                joint_attention_mask.flatten(0, 1)[:1],
                segments.flatten(0, 1)[:1] if segments is not None else None,
                self.max_tokens_per_chunk,
                facts.joint[np.array([0])],
            )
            return nothing + 0.0 * self.encoder.cls(hidden).sum()
        # [P, M, H]
        hidden = self.encoder.hidden_states_at(
            # Unlabelled entries may point anywhere, also behind the end of a row.
            mlm_positions.masked_fill(mlm_labels == -100, 0)[pairs // shape[1]],
            joint_input_ids.flatten(0, 1)[pairs],
            joint_attention_mask.flatten(0, 1)[pairs],
            segments.flatten(0, 1)[pairs] if segments is not None else None,
            self.max_tokens_per_chunk,
            facts.joint[facts.pairs],
        )
        logits = self.encoder.cls(hidden.flatten(0, 1)[places["labelled"]])
        gold = gold_log_probs(logits, mlm_labels.flatten()[places["label"]])
        return gold.new_zeros(math.prod(shape)).index_copy(0, places["gold"], gold).view(shape)

    def _zero_with_gradient(self) -> torch.Tensor:
        """A zero that depends on each trainable parameter: DistributedDataParallel waits for all, on every rank."""
        touched = [parameter.flatten()[0] for parameter in self.parameters() if parameter.requires_grad]
        return 0.0 * torch.stack(touched).sum() if touched else torch.zeros((), device=self.device)


__all__ = ["NULL_PASSAGE", "RealmEmbedder", "RealmForPreTraining", "RealmKnowledgeAugEncoder", "RealmScorer"]
