"""What an embedder starts from: a BERT, another encoder, or a folder of sentence-transformers with all that it has."""

from __future__ import annotations

from typing import Any

import torch

from realm_hf.models.bert_initialization import BertStart, initialize_pooler, initialize_projection
from realm_hf.models.encoder_initialization import EncoderStart
from realm_hf.models.modeling_any_tower import RealmAnyTower
from realm_hf.models.sentence_transformer_folder import FolderModules
from realm_hf.models.sentence_transformer_reading import fill_head


class EmbedderStart:
    """The part of an embedder that takes weights from a checkpoint of another kind."""

    def start_from_bert(self, start: BertStart) -> None:
        """Copy the tower; `"identity"` also sets the pooler. What follows a mean or such a pooler starts as a map that
        keeps angles.
        """
        tower: Any = self  # a RealmEmbedder
        tower.name_or_path = start.source  # where its tokenizer is
        of_cls, modules = tower.config.pooling_mode == "cls", start.modules
        pooler = None if modules is None or start.pooler == "identity" else modules.pooler
        if isinstance(tower.realm, RealmAnyTower):
            weights = {name.removeprefix("realm."): w for name, w in start.tower.items() if ".pooler." not in name}
            tower.realm.model.load_state_dict(weights)
            self._start_projection(modules, start.seed)
            return
        if (
            of_cls
            and start.pooler == "checkpoint"
            and pooler is None
            and "realm.pooler.dense.weight" not in start.tower
        ):
            raise ValueError(f"{start.source!r} has no pooler: pass `pooler='identity'`, or `pooling_mode='mean'`.")
        tower.load_state_dict(start.tower, strict=False)
        if of_cls and start.pooler == "identity":
            initialize_pooler(tower.realm.pooler.dense)
        elif pooler is not None:
            tower.realm.pooler.dense.load_state_dict(pooler.state_dict())
        if modules is not None or not (of_cls and start.pooler == "checkpoint"):
            self._start_projection(modules, start.seed)

    def _start_projection(self, modules: FolderModules | None, seed: int) -> None:
        """A map that keeps angles, or that of a folder of sentence-transformers; texts are cut as there."""
        tower: Any = self
        if modules is not None:
            tower.max_text_length = modules.max_length
        if modules is not None and modules.dense is not None:
            fill_head(tower.cls, modules)
        elif tower.cls.dense is not None:
            initialize_projection(tower.cls.dense, torch.Generator().manual_seed(seed))

    def start_from_encoders(self, start: EncoderStart) -> None:
        """Copy the encoder; the projection starts as a map that keeps angles."""
        tower: Any = self
        assert isinstance(tower.realm, RealmAnyTower) and start.embedder is not None
        tower.name_or_path = start.embedder.name_or_path
        tower.realm.model.load_state_dict(start.embedder.state_dict())
        self._start_projection(start.modules, start.seed)


__all__ = ["EmbedderStart"]
