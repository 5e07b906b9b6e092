"""An embedder from sentence-transformers, and back: see [`sentence_transformer_folder`]."""

from __future__ import annotations

import copy
from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from realm_hf.models.bert_initialization import UNIT_SCORE_SCALE, quiet_loading
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.modeling_any_tower import RealmAnyTower, without_pooler
from realm_hf.models.prompts import check_prompts, tokenize_prompts
from realm_hf.models.sentence_transformer_folder import (
    FolderModules,
    norm_scale,
    save_plain_tokenizer,
    write_description,
    write_encoder_settings,
    write_modules,
    write_router,
)
from realm_hf.models.sentence_transformer_reading import Route, fill_head, read_modules, reading_fields


class SentenceTransformerBridge:
    """The part of an embedder that reads and writes folders of sentence-transformers."""

    @classmethod
    def from_sentence_transformer(
        cls, folder: str | PathLike[str], *, route: Route | None = None, **overrides: Any
    ) -> Self:
        r"""
        The embedder that a folder of sentence-transformers is: the same embeddings, without that library.

        Args:
            folder (`str` or `PathLike`): A directory with `modules.json`: Transformer, Pooling (mean or [CLS]) and, if
                it has them, Dense without activation, LayerNorm and Normalize. Prompts of the folder become
                `query_prompt` and `document_prompt`: those that `encode_query` and `encode_document` use there.
            route (`str`, *optional*): `"query"` or `"document"`: which tower of a folder that has two, a Router.
            overrides (*optional*): Fields of [`RealmConfig`] that the folder does not decide, such as `score_scale`,
                which is 20 where embeddings have length 1, `document_format`, or other prompts.

        Returns:
            The embedder in evaluation mode, in float32. `encode` cuts texts where the folder says. Titles are read as
            the first of two texts; with `document_format="joined"` as the beginning of one.

        Raises:
            `ValueError`: it is no such folder, has a module that an embedder has no place for, or has two towers and
                no `route` is given.

        Example:
        ```python
        >>> embedder = RealmEmbedder.from_sentence_transformer("all-MiniLM-L6-v2")
        ```
        """
        modules = read_modules(Path(folder), route)
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
        embedder.max_text_length = modules.max_length
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

        Embeddings of one text, and of a title and a text, are equal: given as a pair, or joined by a space where the
        embedder's `document_format` is `"joined"`. Similarity is the dot product. Prompts are written too, so that
        `encode_query` and `encode_document` use them.

        Args:
            folder (`str` or `PathLike`): Where to; absent or empty.
            query_embedder ([`RealmEmbedder`], *optional*): Another tower for queries: the folder has both, which
                `encode_query` and `encode_document` tell apart. Without it one tower embeds both.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): `embedder.tokenizer`, or that of where it came from, by
                default.
            max_length (`int`, *optional*): Where texts are cut; by default `embedder.max_text_length`, or else the
                embedder's positions.

        Raises:
            FileExistsError: There is something in the folder.
            ValueError: There is no tokenizer, or one with which a prompt is cut into other tokens than the embedder
                puts before a text: byte-level BPE, whose words have other tokens behind a space.

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
        length = max_length or embedder._longest()
        queries = embedder if query_embedder is None else query_embedder
        prompts = {"query": queries.config.query_prompt, "document": embedder.config.document_prompt}
        check_prompts(prompts, chosen)
        described = (prompts, embedder.config.document_format)
        if queries is embedder:
            write_description(target, _write_tower(embedder, target, "", chosen, length), *described)
            return
        routes = {
            name: _write_tower(tower, target, f"{name}_", chosen, length)
            for name, tower in (("query", queries), ("document", embedder))
        }
        write_router(target, routes)
        write_description(target, [("Router", "")], *described)


def _write_tower(
    embedder: Any, folder: Path, prefix: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[str, str]]:
    """Write encoder and modules of one tower; kind and folder of each."""
    path = f"{prefix}0_Transformer" if prefix else ""
    place = folder / path
    encoder = _plain_encoder(embedder)
    encoder.save_pretrained(place)
    save_plain_tokenizer(tokenizer, place)
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
    chosen = reading_fields(modules)
    free = {"score_scale", "document_format", "query_prompt", "document_prompt"}
    fixed = sorted(set(chosen) & set(overrides) - free)
    if fixed:
        raise ValueError(f"The folder says what {', '.join(fixed)} must be: leave it out.")
    if modules.normalize:
        chosen["score_scale"] = UNIT_SCORE_SCALE
    is_bert = source.model_type == "bert" and (modules.pooling == "mean" or modules.pooler is not None)
    if is_bert:
        chosen |= {name: getattr(source, name) for name in BertConfig.__annotations__ if name != "use_cache"}
    else:
        chosen["embedder_config"] = source.to_dict() | {"_name_or_path": ""}
    fields = tokenize_prompts(modules.encoder, chosen | overrides)
    prompts = {name: prompt for name, prompt in modules.prompts.items() if name not in overrides}
    if prompts:
        check_prompts(prompts, AutoTokenizer.from_pretrained(modules.encoder, trust_remote_code=False))
    return RealmConfig(**fields)


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
    fill_head(embedder.cls, modules)


__all__ = ["SentenceTransformerBridge"]
