"""A tower of any encoder of transformers, and the head of any masked language model.

What is written for BERT (a last layer of the rows that are read, words looked up once a batch, masks made on the host)
is not done here: whole rows go through the encoder as its authors wrote it, so that it takes longer and is never
wrong. An encoder without a pooler of its own, as most are, is read at its first token itself.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from realm_hf.models.modeling_bert_tower import gather_rows


class RealmAnyTower(nn.Module):
    """
    An encoder of transformers with the `forward` of [`RealmBertModel`].

    Args:
        model (`PreTrainedModel`): The encoder without a head, as `AutoModel` makes it.
    """

    takes_prepared_inputs: ClassVar[bool] = False
    """Whether words may come looked up, and masks as attention takes them; see [`RealmBertModel`]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> RealmAnyTower:
        """A tower with new weights; without a pooler, which nothing here reads."""
        return cls(AutoModel.from_config(config, **without_pooler(config)))

    @property
    def config(self) -> PreTrainedConfig:
        """The encoder's own."""
        return self.model.config

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_rows: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """
        Run the encoder.

        Args:
            input_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Token ids.
            attention_mask (`torch.Tensor` of shape `(N, L)`, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Segments; left out where the encoder
                tells none apart.
            position_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Positions.
            inputs_embeds (`torch.Tensor` of shape `(N, L, H)`, *optional*): Instead of `input_ids`.
            output_rows (`torch.LongTensor` of shape `(N, R)`, *optional*): Positions to return; all if not given.
            kwargs (*optional*): `output_hidden_states`, `output_attentions`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` `(N, R, H)` or `(N, L, H)`, and its first row as
            `pooler_output` `(N, H)`.

        Raises:
            `ValueError`: `position_ids` are given to an encoder that takes none.
        """
        accepted = inspect.signature(self.model.forward).parameters
        if position_ids is not None:
            if "position_ids" not in accepted:
                raise ValueError(f"{type(self.model).__name__} takes no `position_ids`: leave them out.")
            kwargs["position_ids"] = position_ids
        if token_type_ids is not None and "token_type_ids" in accepted and _segments(self.config) > 1:
            kwargs["token_type_ids"] = token_type_ids
        kwargs["return_dict"] = True
        outputs = self.model(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        states = outputs.last_hidden_state
        if output_rows is not None:
            states = gather_rows(states, output_rows)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=states[:, 0],
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )


def _segments(config: PreTrainedConfig) -> int:
    return int(getattr(config, "type_vocab_size", 0) or 0)


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """What `AutoModel` must be told so that an encoder of this kind gets no pooler."""
    kind: Any = AutoModel._model_mapping[type(config)]
    arguments = inspect.signature(kind).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in arguments else {}


class _GivenStates(nn.Module):
    """Stands where a masked language model has its encoder, and returns the hidden states that it is given."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        # In a tuple, so that its weights are not counted as this module's too.
        self.encoder_of_head = (encoder,)

    def __getattr__(self, name: str) -> Any:
        # A head may read something of the encoder: DeBERTa's reads its word embeddings.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["encoder_of_head"][0], name)

    def forward(self, *unused: Any, inputs_embeds: torch.Tensor, **ignored: Any) -> BaseModelOutput:  # noqa: ARG002
        """`inputs_embeds` as the last hidden state."""
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class RealmAnyHead(nn.Module):
    """
    The prediction head of a masked language model of transformers, without its encoder.

    Args:
        model (`PreTrainedModel`): The masked language model. Its encoder is taken out.

    Attributes:
        tied (`dict[str, str]`): Names of weights of the head that are another weight too, and the name of that, in a
            model that calls the encoder's tower `realm` and this head `cls`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        prefix = f"{model.base_model_prefix}."
        self.tied = {
            f"cls.model.{name}": (
                f"realm.model.{source.removeprefix(prefix)}" if source.startswith(prefix) else f"cls.model.{source}"
            )
            for name, source in model.get_expanded_tied_weights_keys().items()
        }
        # Whoever holds both parts ties them.
        model._tied_weights_keys = model.all_tied_weights_keys = {}
        setattr(model, model.base_model_prefix, _GivenStates(getattr(model, model.base_model_prefix)))
        self.model = model

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`hidden_states` `(..., H)` to the scores of all tokens of the vocabulary, `(..., V)`."""
        flat = hidden_states.reshape(1, -1, hidden_states.size(-1))
        scores = self.model(inputs_embeds=flat, return_dict=True).logits
        return scores.view(*hidden_states.shape[:-1], -1)


def masked_language_model(config: PreTrainedConfig) -> tuple[RealmAnyTower, RealmAnyHead]:
    """
    A masked language model with new weights, in two parts.

    Args:
        config (`PreTrainedConfig`): Of an encoder that transformers has a masked language model of.
    """
    model = AutoModelForMaskedLM.from_config(config)
    encoder: Any = model.base_model
    return RealmAnyTower(encoder), RealmAnyHead(model)


__all__ = [
    "RealmAnyHead",
    "RealmAnyTower",
    "masked_language_model",
    "without_pooler",
]
