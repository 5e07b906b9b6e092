"""What all REALM models share: how they are loaded, tied and frozen, and two checks of the former port's arguments."""

from os import PathLike
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn
from transformers import PreTrainedConfig

from realm_hf.models.bert_initialization import quiet_loading
from realm_hf.models.checkpoint_parts import check_weights, load_part, part_of
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.encoder_initialization import FromEncodersModel
from realm_hf.models.modeling_any_tower import RealmAnyHead, RealmAnyTower
from realm_hf.models.modeling_bert_tower import RealmBertModel, UnreadPooler, UnreadPredictionHead
from realm_hf.models.places import find_model
from realm_hf.models.pooling import RealmScorerProjection


def flatten_candidates(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """`(B, K, L)` as `(B * K, L)`; two dimensions and `None` stay."""
    return tensor.flatten(0, -2) if tensor is not None else None


def refuse_head_mask(head_mask: torch.Tensor | None) -> None:
    """`head_mask` keeps its place in the old positional signatures, but transformers 5 removed what it did."""
    if head_mask is not None:
        raise ValueError(
            "`head_mask` was given, but transformers 5 has no head masks: leave it out, or zero the heads' rows in "
            "`attention.output.dense.weight`."
        )


class RealmPreTrainedModel(FromEncodersModel):
    """Weight initialization, loading, tying and freezing common to all REALM models."""

    config: RealmConfig
    base_model_prefix = "realm"

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Self:
        """
        As in transformers, but what the checkpoint lacks is never random: see [`~checkpoint_parts.check_weights`].

        A run directory stands for its `model` folder, see [`~places.find_model`]. A model that is a part of a larger
        one is read out of its checkpoint: [`RealmEmbedder`] and [`RealmKnowledgeAugEncoder`] of
        [`RealmForPreTraining`], [`RealmEmbedder`] (of the questions) and [`RealmReader`] of [`RealmForOpenQA`].

        Raises:
            ValueError: It is a checkpoint of another kind, or lacks weights.
        """
        place = pretrained_model_name_or_path and find_model(pretrained_model_name_or_path, cls.__name__)
        with_report = kwargs.pop("output_loading_info", False)
        within = part_of(cls.__name__, place, kwargs) if place else None
        loaded: Any
        if place and within is not None:
            loaded = load_part(*within, place, **kwargs)
        else:
            mismatched = kwargs.pop("ignore_mismatched_sizes", False)
            with quiet_loading():
                loaded = super().from_pretrained(
                    place, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
                )
            model, report = loaded
            check_weights(model, report, place, mismatched)
        return loaded if with_report else loaded[0]

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """A head's two biases are one parameter whatever `tie_word_embeddings` says, as in the port."""
        keys: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)
        biases = {k: v for k, v in (self._tied_weights_keys or {}).items() if k.endswith("decoder.bias")}
        return biases | keys

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie, then freeze unread parts: this runs after initialization, loading and resizing, which unfreeze them."""
        super().tie_weights(*args, **kwargs)
        self.freeze_unread_parameters()

    def requires_grad_(self, requires_grad: bool = True) -> "RealmPreTrainedModel":
        """As in `torch.nn.Module`, but unread parts stay frozen."""
        super().requires_grad_(requires_grad)
        self.freeze_unread_parameters()
        return self

    def freeze_unread_parameters(self) -> None:
        """Freeze embedders' and readers' prediction heads, and encoders' and readers' poolers."""
        for module in self.modules():
            if isinstance(module, UnreadPooler | UnreadPredictionHead):
                module.requires_grad_(False)
            elif isinstance(module, RealmScorerProjection) and module.predictions is not None:
                module.predictions.requires_grad_(False)


class RealmTowerModel(RealmPreTrainedModel):
    """A model of one tower, `realm`, and a prediction head in `cls.predictions`, read or not."""

    tower_class: type[RealmBertModel] = RealmBertModel
    """The encoder inside this model. Another has the same `forward`, `output_rows` and `pooler_output` included."""
    encoder_field: ClassVar[Literal["embedder_config", "encoder_config"]] = "encoder_config"
    """The entry of the configuration that names another encoder than BERT."""
    realm: RealmBertModel | RealmAnyTower
    cls: Any

    @property
    def other_encoder(self) -> PreTrainedConfig | None:
        """The configuration of the encoder that this model is made of, where it is not `tower_class`."""
        found: Any = getattr(self.config, self.encoder_field)
        return found

    def new_tower(self, pooler_is_read: bool = False) -> RealmBertModel | RealmAnyTower:
        """The encoder inside this model, with new weights."""
        other = self.other_encoder
        if other is not None:
            return RealmAnyTower.from_config(other)
        return self.tower_class(self.config, pooler_is_read=pooler_is_read)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.realm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.realm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The head's decoder; of an unread head too, so that `resize_token_embeddings` keeps its file loadable."""
        if self.other_encoder is not None:
            return self.cls.model.get_output_embeddings() if isinstance(self.cls, RealmAnyHead) else None
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder of the prediction head."""
        if isinstance(self.cls, RealmAnyHead):
            self.cls.model.set_output_embeddings(new_embeddings)
            return
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; another encoder's configuration counts its words too."""
        resized: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        if self.other_encoder is not None:
            self.other_encoder.vocab_size = resized.num_embeddings
        return resized


__all__ = ["RealmPreTrainedModel", "RealmTowerModel", "flatten_candidates", "refuse_head_mask"]
