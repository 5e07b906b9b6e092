"""An embedder from sentence-transformers, and back: see [`sentence_transformer_folder`]."""

from __future__ import annotations

import copy
from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from realm_hf.models.bert_initialization import UNIT_SCORE_SCALE, quiet_loading
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.modeling_any_tower import RealmAnyTower, without_pooler
from realm_hf.models.sentence_transformer_folder import (
    FolderModules,
    is_sentence_transformer,
    norm_scale,
    read_modules,
    write_description,
    write_encoder_settings,
    write_modules,
    write_router,
)


class SentenceTransformerBridge:
    """The part of an embedder that reads and writes folders of sentence-transformers."""

    @classmethod
    def from_sentence_transformer(cls, folder: str | PathLike[str], **overrides: Any) -> Self:
        r"""
        The embedder that a folder of sentence-transformers is: the same embeddings, without that library.

        Args:
            folder (`str` or `PathLike`): A directory with `modules.json`: Transformer, Pooling (mean or [CLS]) and, if
                it has them, Dense without activation, LayerNorm and Normalize.
            overrides (*optional*): Fields of [`RealmConfig`] that do not change embeddings, such as `score_scale`,
                which is 20 where embeddings have length 1.

        Returns:
            The embedder in evaluation mode, in float32. Titles are read as the first of two texts.

        Raises:
            `ValueError`: it is no such folder, or has a module that an embedder has no place for.

        Example:
        ```python
        >>> embedder = RealmEmbedder.from_sentence_transformer("all-MiniLM-L6-v2")
        ```
        """
        place = Path(folder)
        if not is_sentence_transformer(place):
            raise ValueError(f"{place} has no modules.json: give a folder that sentence-transformers has saved.")
        modules = read_modules(place)
        source = AutoConfig.from_pretrained(modules.encoder, trust_remote_code=False)
        config = _configuration(source, modules, overrides)
        with quiet_loading():
            encoder: Any = AutoModel.from_pretrained(
                modules.encoder, config=source, dtype=torch.float32, trust_remote_code=False, **without_pooler(source)
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            embedder: Any = cast(Any, cls)(config)
        _fill(embedder, encoder, modules)
        embedder.tie_weights()
        embedder.name_or_path = str(modules.encoder)
        return cast(Self, embedder.eval())

    def to_sentence_transformer(
        self,
        folder: str | PathLike[str],
        *,
        query_embedder: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
    ) -> None:
        r"""
        Write this embedder as a folder that sentence-transformers loads by itself, with its own modules only.

        Embeddings of one text, and of a title and a text as a pair, are equal; similarity is the dot product.

        Args:
            folder (`str` or `PathLike`): Where to; absent or empty.
            query_embedder ([`RealmEmbedder`], *optional*): Another tower for queries: the folder has both, which
                `encode_query` and `encode_document` tell apart. Without it one tower embeds both.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): `embedder.tokenizer`, or that of where it came from, by
                default.
            max_length (`int`, *optional*): Where texts are cut; the embedder's positions by default.

        Raises:
            FileExistsError: There is something in the folder.
            ValueError: There is no tokenizer, or a tower has a prompt.

        Example:
        ```python
        >>> model.embedder.to_sentence_transformer("my-embedder", query_embedder=model.query_embedder)
        ```
        """
        embedder: Any = self
        target = Path(folder)
        if target.exists() and any(target.iterdir()):
            raise FileExistsError(f"{target} is not empty: give a new folder.")
        target.mkdir(parents=True, exist_ok=True)
        chosen = tokenizer or embedder._own_tokenizer()
        length = embedder.config.max_position_embeddings if max_length is None else max_length
        if query_embedder is None or query_embedder is embedder:
            write_description(target, _write_tower(embedder, target, "", chosen, length))
            return
        routes = {
            name: _write_tower(tower, target, f"{name}_", chosen, length)
            for name, tower in (("query", query_embedder), ("document", embedder))
        }
        write_router(target, routes)
        write_description(target, [("Router", "")])


def _write_tower(
    embedder: Any, folder: Path, prefix: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[str, str]]:
    """Write encoder and modules of one tower; kind and folder of each."""
    path = f"{prefix}0_Transformer" if prefix else ""
    place = folder / path
    if embedder.config.query_prompt or embedder.config.document_prompt:
        raise ValueError("The embedder has prompts (query_prompt, document_prompt), which are not written there yet.")
    encoder = _plain_encoder(embedder)
    encoder.save_pretrained(place)
    tokenizer.save_pretrained(place)
    write_encoder_settings(place, max_length)
    config, head = embedder.config, embedder.cls
    dense = copy.deepcopy(head.dense)
    if head.LayerNorm is not None:
        scale = norm_scale(head.LayerNorm.eps)
        with torch.no_grad():
            dense.weight.mul_(scale)
            dense.bias.mul_(scale)
    has_pooler = config.pooling_mode == "cls" and not isinstance(embedder.realm, RealmAnyTower)
    modules = FolderModules(
        pooling=config.pooling_mode,
        pooler=embedder.realm.pooler.dense if has_pooler else None,
        dense=dense,
        norm=head.LayerNorm,
        normalize=config.normalize,
        encoder=place,
    )
    return [("Transformer", path), *write_modules(folder, modules, prefix=prefix)]


def _plain_encoder(embedder: Any) -> PreTrainedModel:
    """The encoder as transformers has it, without what is the embedder's own."""
    if isinstance(embedder.realm, RealmAnyTower):
        return embedder.realm.model
    fields = {name: getattr(embedder.config, name) for name in BertConfig.__annotations__}
    bert = BertModel(BertConfig(**fields), add_pooling_layer=False)
    weights = {name: w for name, w in embedder.realm.state_dict().items() if not name.startswith("pooler.")}
    bert.load_state_dict(weights)
    return bert


def _configuration(source: Any, modules: FolderModules, overrides: dict[str, Any]) -> RealmConfig:
    size = source.hidden_size
    chosen: dict[str, Any] = {
        "pooling_mode": modules.pooling,
        "normalize": modules.normalize,
        "projection": "layer_norm" if modules.norm is not None else "linear" if modules.dense is not None else "none",
        "retriever_proj_size": size if modules.dense is None else modules.dense.out_features,
    }
    if modules.normalize:
        chosen["score_scale"] = UNIT_SCORE_SCALE
    fixed = sorted(set(chosen) & set(overrides) - {"score_scale"})
    if fixed:
        raise ValueError(f"The folder says what {', '.join(fixed)} must be: leave it out.")
    is_bert = source.model_type == "bert" and (modules.pooling == "mean" or modules.pooler is not None)
    if is_bert:
        chosen |= {name: getattr(source, name) for name in BertConfig.__annotations__ if name != "use_cache"}
    else:
        chosen["embedder_config"] = source.to_dict() | {"_name_or_path": ""}
    return RealmConfig(**(chosen | overrides))


def _fill(embedder: Any, encoder: PreTrainedModel, modules: FolderModules) -> None:
    """Write the weights of a folder into an embedder."""
    if isinstance(embedder.realm, RealmAnyTower):
        if modules.pooler is not None:
            raise ValueError("A Dense with tanh follows the pooling of an encoder that is no BERT: it cannot be kept.")
        embedder.realm.model.load_state_dict(encoder.state_dict())
    else:
        embedder.realm.load_state_dict(encoder.state_dict(), strict=False)
        if modules.pooler is not None:
            embedder.realm.pooler.dense.load_state_dict(modules.pooler.state_dict())
    head = embedder.cls
    dense = modules.dense
    if modules.norm is not None:
        head.LayerNorm.load_state_dict(modules.norm.state_dict())
        scale = norm_scale(head.LayerNorm.eps)
        dense = cast(nn.Linear, dense)
        with torch.no_grad():
            dense.weight.div_(scale)
            dense.bias.div_(scale)
    if dense is not None:
        head.dense.load_state_dict(dense.state_dict())


__all__ = ["SentenceTransformerBridge"]
