"""Starting REALM from any encoders of transformers: one that embeds, and one that reads and fills in masked words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from realm_hf.models.any_encoder import check_is_encoder, has_masked_language_model
from realm_hf.models.bert_initialization import FromBertModel, quiet_loading, with_score_scale
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.modeling_any_tower import without_pooler
from realm_hf.models.prompts import check_joined, tokenize_prompts
from realm_hf.models.sentence_transformer_folder import FolderModules
from realm_hf.models.sentence_transformer_reading import own_reading

logger = logging.get_logger(__name__)

Place = str | PathLike[str]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class EncoderStart:
    """
    What the parts of a model start from.

    Args:
        embedder (`PreTrainedModel`, *optional*): Of the embedders: an encoder without a head.
        encoder (`PreTrainedModel`, *optional*): Of the knowledge-augmented encoder, a masked language model; of a
            reader, that or an encoder without a head.
        seed (`int`): Seed of what the checkpoints do not contain.
        modules ([`FolderModules`], *optional*): Of a folder of sentence-transformers: what follows its encoder.
    """

    embedder: PreTrainedModel | None
    encoder: PreTrainedModel | None
    seed: int
    modules: FolderModules | None = None


class FromEncodersModel(FromBertModel):
    """A model whose parts can start from any encoders of transformers."""

    @classmethod
    def from_encoders(
        cls,
        *,
        embedder: Place | None = None,
        encoder: Place | None = None,
        seed: int = 0,
        new_head: bool = False,
        **overrides: Any,
    ) -> Self:
        r"""
        Start the parts of this model from encoders of transformers, such as RoBERTa, MPNet, DeBERTa or ModernBERT.

        A model of BERT throughout is faster from [`~RealmPreTrainedModel.from_bert`]: the shortcuts are BERT's.

        Args:
            embedder (`str` or `PathLike`, *optional*):
                Hub id or directory of the encoder that embeds queries and passages; what `AutoModel` loads.
            encoder (`str` or `PathLike`, *optional*):
                Hub id or directory of the encoder that fills in masked words, which is what `AutoModelForMaskedLM`
                loads, or that reads. It may be the same as `embedder`; its tokenizer must be. Both may be what
                [`MaskedLMTrainer`] left of another encoder than BERT.
            seed (`int`, *optional*, defaults to 0):
                Seed of everything the checkpoints do not contain.
            new_head (`bool`, *optional*, defaults to `False`):
                Whether an encoder without a prediction head, as all sentence encoders are, gets a new one, tied to its
                word embeddings where its kind does that. It must learn first: see [`MaskedLMTrainer`].
            overrides (*optional*):
                Fields of [`RealmConfig`]. A folder of sentence-transformers (with `modules.json`) as `embedder` says
                itself how its embeddings are made; of other encoders, `pooling_mode` is `"mean"` where it is not
                given. `"cls"` is the last hidden state of the first token, without a pooler. With
                `projection="none"`, `retriever_proj_size` is the size of the embedder's hidden states; with
                `normalize=True`, `score_scale` is 20 where it is not given. Prompts and `score_scale="auto"` are as
                for [`~RealmPreTrainedModel.from_bert`].

        Returns:
            The model in evaluation mode, in float32. A projection starts as a random map that keeps angles.

        Raises:
            `ValueError`: a part is missing or one too many, is a decoder or no masked language model, has no weights,
                no tokenizer, no mask token or fewer words than its tokenizer; the tokenizers differ; or an override
                is no field. All but missing weights inside a checkpoint is found before one is loaded.

        Example:
        ```python
        >>> model = RealmForPreTraining.from_encoders(
        ...     embedder="sentence-transformers/all-mpnet-base-v2", encoder="microsoft/mpnet-base"
        ... )
        ```
        """
        modules = None
        if embedder is not None and "embedder" in cls.parts:
            overrides, modules = own_reading(embedder, overrides)
            if modules is not None and Path(embedder).is_dir():
                embedder = modules.encoder
        if modules is not None and modules.pooler is not None:
            raise ValueError(
                f"{str(embedder)!r} has a Dense with tanh behind its pooling, BERT's pooler, which the tower of "
                "another encoder has no place for: start from it with `from_bert`."
            )
        given = {name: place for name, place in (("embedder", embedder), ("encoder", encoder)) if place is not None}
        configs = _checked(cls.__name__, cls.parts, given)
        if overrides.get("document_format") == "joined":
            check_joined(AutoTokenizer.from_pretrained(next(iter(given.values())), trust_remote_code=False))
        if embedder is not None:
            overrides = tokenize_prompts(embedder, overrides)
        config = _realm_config(configs, with_score_scale(overrides))
        start = EncoderStart(
            embedder=_load(given["embedder"], configs["embedder"], AutoModel) if embedder is not None else None,
            encoder=(
                _load_encoder(given["encoder"], configs["encoder"], cls.parts, seed, new_head)
                if encoder is not None
                else None
            ),
            seed=seed,
            modules=modules,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        model.start_from_encoders(start)
        model.tie_weights()
        return model.eval()

    def start_from_encoders(self, start: EncoderStart) -> None:
        """Copy the weights of the encoders into every part of this model."""
        for child in self.children():
            if isinstance(child, FromEncodersModel):
                child.start_from_encoders(start)


def _checked(name: str, parts: frozenset[str], given: dict[str, Place]) -> dict[str, PreTrainedConfig]:
    """The configurations of what was given, after everything that can be checked without loading weights."""
    wanted = parts - {"head"}
    if set(given) != wanted:
        raise ValueError(
            f"{name}.from_encoders takes {' and '.join(sorted(wanted))}, but it was given "
            f"{' and '.join(sorted(given)) or 'neither'}."
        )
    configs, tokenizers = {}, {}
    for part, place in given.items():
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        if config.model_type == "realm":
            config = _encoder_of_realm(part, place, config)
        check_is_encoder(config, f"The {part} {str(place)!r}")
        if part == "encoder" and "head" in parts and not has_masked_language_model(config):
            raise ValueError(
                f"The encoder {str(place)!r} is of type {config.model_type!r}, of which transformers has no masked "
                "language model: give one that can fill in masked words."
            )
        if Path(place).is_dir() and not any((Path(place) / file).is_file() for file in _WEIGHTS):
            raise ValueError(f"The {part} {str(place)!r} has no weights: there is none of {', '.join(_WEIGHTS)}.")
        configs[part], tokenizers[part] = config, _tokenizer(part, place, config)
    _check_tokenizers(given, tokenizers, "head" in parts)
    return configs


def _encoder_of_realm(part: str, place: Place, config: RealmConfig) -> PreTrainedConfig:
    """The encoder that `MaskedLMTrainer` left there."""
    within = config.encoder_config
    if isinstance(within, PreTrainedConfig) and "RealmKnowledgeAugEncoder" in (config.architectures or []):
        return within
    kind = " and ".join(config.architectures or ["REALM"])
    raise ValueError(
        f"The {part} {str(place)!r} is a {kind}{'' if within else ' of BERT'}: load a REALM model with "
        "`from_pretrained`, and start from a BERT with `from_bert`."
    )


def _tokenizer(part: str, place: Place, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The {part} {str(place)!r} has no tokenizer: save the one it was trained with there."
        ) from error
    # Where a tokenizer's files are absent, transformers makes one that knows nothing.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(f"The {part} {str(place)!r} has no tokenizer: save the one it was trained with there.")
    words = int(getattr(config, "vocab_size", 0))
    if len(tokenizer) > words:
        raise ValueError(
            f"The tokenizer of the {part} {str(place)!r} has {len(tokenizer)} tokens, the {part} {words}: it is not "
            "its tokenizer."
        )
    return tokenizer


def _check_tokenizers(
    given: dict[str, Place], tokenizers: dict[str, PreTrainedTokenizerBase], masks_words: bool
) -> None:
    for part, tokenizer in tokenizers.items():
        if masks_words and tokenizer.mask_token_id is None:
            raise ValueError(
                f"The tokenizer of the {part} {str(given[part])!r} has no mask token, so that no word can be masked: "
                "give an encoder that was trained with one."
            )
    if len(tokenizers) == 2:
        described = [_describe(tokenizer) for tokenizer in tokenizers.values()]
        differing = [name for name in described[0] if described[0][name] != described[1][name]]
        if differing:
            raise ValueError(
                f"The embedder {str(given['embedder'])!r} and the encoder {str(given['encoder'])!r} have different "
                f"tokenizers (their {', '.join(differing)} differ), but both read the same tokens: "
                "give two encoders of one tokenizer, or one encoder for both parts."
            )


def _describe(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides which ids a text becomes."""
    probe = "Ångström's 1st naïve Café, No. 42: don't (re-)STOP!  北京 \u00a0 end"
    names = ("pad", "cls", "sep", "mask", "unk")
    return {
        "vocabularies": tokenizer.get_vocab(),
        "special tokens": [getattr(tokenizer, f"{name}_token_id") for name in names],
        "ids of a sample text": tokenizer(probe)["input_ids"],
    }


def _realm_config(configs: dict[str, PreTrainedConfig], overrides: dict[str, Any]) -> RealmConfig:
    unknown = set(overrides) - {field.name for field in fields(RealmConfig)} - {"attn_implementation"}
    if unknown:
        raise ValueError(f"RealmConfig has no field {', '.join(sorted(unknown))}: check the spelling of the override.")
    chosen: dict[str, Any] = {"pooling_mode": "mean"}
    embedder: Any = configs.get("embedder")
    if overrides.get("projection") == "none" and embedder is not None:
        chosen["retriever_proj_size"] = embedder.hidden_size
    # Where they came from is nobody's business who gets the model.
    named = {f"{part}_config": config.to_dict() | {"_name_or_path": ""} for part, config in configs.items()}
    return RealmConfig(**(chosen | overrides | named))


def _load_encoder(
    place: Place, config: PreTrainedConfig, parts: frozenset[str], seed: int, new_head: bool
) -> PreTrainedModel:
    if "head" not in parts:
        return _load(place, config, AutoModel)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _load(place, config, AutoModelForMaskedLM, new_head)


def _load(place: Place, config: PreTrainedConfig, kind: Any, new_head: bool = False) -> PreTrainedModel:
    """The weights at `place`, all of them."""
    prefix = "" if kind is AutoModel else f"{kind._model_mapping[type(config)].base_model_prefix}."
    pooler = without_pooler(config) if kind is AutoModel else {}
    with quiet_loading():
        model, info = kind.from_pretrained(
            place,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            # The names that weights have in a `RealmKnowledgeAugEncoder`.
            key_mapping={r"^realm\.model\.": prefix, r"^cls\.model\.": ""} if _is_realm(place) else None,
            **pooler,
        )
    missing = sorted(name for name in info["missing_keys"] if not new_head or name.startswith(prefix))
    if missing:
        raise ValueError(
            f"{str(place)!r} lacks {len(missing)} weights of a {type(model).__name__}, {missing[0]!r} among them: "
            "give a checkpoint that has them."
        )
    if info["missing_keys"]:
        logger.info("%s has no prediction head: the encoder's is new, and learns by masked language modelling.", place)
    return model


def _is_realm(place: Place) -> bool:
    return bool(AutoConfig.from_pretrained(place, trust_remote_code=False).model_type == "realm")


__all__ = ["EncoderStart", "FromEncodersModel"]
