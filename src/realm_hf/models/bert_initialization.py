"""Starting REALM from any BERT checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn
from transformers import AutoConfig, BertConfig, BertForPreTraining
from transformers.models.bert.modeling_bert import BertLMPredictionHead, BertPreTrainedModel
from transformers.utils import logging

from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.prompts import tokenize_prompts
from realm_hf.models.sentence_transformer_folder import FolderModules
from realm_hf.models.sentence_transformer_reading import own_reading

logger = logging.get_logger(__name__)

Pooler = Literal["checkpoint", "identity"]

# tanh(0.05 h) is linear within 2 % for |h| < 5; the layer normalization after the projection removes the factor again.
IDENTITY_POOLER_SCALE = 0.05
UNIT_SCORE_SCALE = 20.0


def with_score_scale(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a new model's configuration, with the `score_scale` that is meant by `"auto"` or by none."""
    scale = fields.get("score_scale")
    if fields.get("normalize"):
        # Of unit vectors: cosines between -1 and 1 must tell candidates apart after a softmax.
        return {**fields, "score_scale": UNIT_SCORE_SCALE if scale in (None, "auto") else scale}
    if scale != "auto":
        return dict(fields)
    if fields.get("projection", RealmConfig.projection) != "layer_norm":
        return {**fields, "score_scale": 1.0}
    # The inner product of two vectors of D numbers of variance 1 has a standard deviation of sqrt(D).
    size = fields.get("retriever_proj_size", RealmConfig.retriever_proj_size)
    return {**fields, "score_scale": float(size) ** -0.5}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide transformers' report on missing and unexpected weights: here both are expected, and checked afterwards."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@dataclass(frozen=True)
class BertStart:
    """
    What towers start from.

    Args:
        source (`str`): Name of the checkpoint, for messages.
        tower (`dict[str, torch.Tensor]`): Weights of embeddings, layers and (if the checkpoint has one) pooler,
            `realm.*`.
        head (`dict[str, torch.Tensor]`): Weights of the prediction head, `cls.predictions.*`; empty if there is none.
        pooler (`str`): `"checkpoint"` or `"identity"`, see [`~FromBertModel.from_bert`].
        seed (`int`): Seed of what the checkpoint does not contain.
        modules ([`FolderModules`], *optional*): Of a folder of sentence-transformers: what follows its encoder.
    """

    source: str
    tower: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    pooler: Pooler
    seed: int
    modules: FolderModules | None = None


def load_bert(name_or_path: str | PathLike[str], **overrides: Any) -> tuple[RealmConfig, dict[str, torch.Tensor]]:
    """
    The configuration and the weights of a BERT checkpoint, or of a [`RealmKnowledgeAugEncoder`], which is one.

    Args:
        name_or_path (`str` or `PathLike`): Hub id or directory; safetensors or `.bin`; saved from any BERT class.
        overrides (*optional*): Fields of [`RealmConfig`] that differ from the checkpoint's.

    Returns:
        `tuple[RealmConfig, dict[str, torch.Tensor]]`: The configuration, and what the checkpoint holds of
        `bert.*` and `cls.predictions.*`.

    Raises:
        `ValueError`: it is not a BERT checkpoint, lacks weights of the towers, or an override is no field of the
        config.
    """
    source = AutoConfig.from_pretrained(name_or_path)
    is_encoder = "RealmKnowledgeAugEncoder" in (source.architectures or [])
    if source.model_type != "bert" and not is_encoder:
        raise ValueError(
            f"{str(name_or_path)!r} is a checkpoint of type {source.model_type!r}: REALM's towers start from type "
            "'bert', or from an encoder that `MaskedLMTrainer` left; load REALM checkpoints with `from_pretrained`."
        )
    inherited = {name: getattr(source, name) for name in BertConfig.__annotations__ if name != "use_cache"}
    unknown = set(overrides) - {field.name for field in fields(RealmConfig)} - {"attn_implementation"}
    if unknown:
        raise ValueError(f"RealmConfig has no field {', '.join(sorted(unknown))}: check the spelling of the override.")
    if overrides.get("projection") == "none":
        overrides = {"retriever_proj_size": source.hidden_size} | overrides
    config = RealmConfig(**(inherited | overrides))
    bert_config = BertConfig(**{name: getattr(config, name) for name in inherited})
    with quiet_loading():
        loaded: Any = BertForPreTraining.from_pretrained(
            name_or_path,
            config=bert_config,
            dtype=torch.float32,
            output_loading_info=True,
            key_mapping={r"^realm\.": "bert."} if is_encoder else None,
        )
    bert, info = loaded
    missing = set(info["missing_keys"])
    lacking = sorted(key for key in missing if key.startswith("bert.") and not key.startswith("bert.pooler."))
    if lacking:
        raise ValueError(
            f"{str(name_or_path)!r} lacks {len(lacking)} BERT weights, {lacking[0]!r} among them: check that it is a "
            "BERT checkpoint and that no override asks for more layers than it has."
        )
    # A decoder tied to the word embeddings is there even if the head is not.
    without_head = "cls.predictions.transform.dense.weight" in missing
    return config, {
        key: value
        for key, value in bert.state_dict().items()
        if key not in missing and not (without_head and key.startswith("cls."))
    }


@torch.no_grad()
def initialize_pooler(pooler: nn.Linear) -> None:
    """Make a pooler a small multiple of the identity, so that the geometry of [CLS] survives its tanh."""
    pooler.weight.copy_(IDENTITY_POOLER_SCALE * torch.eye(pooler.out_features))
    pooler.bias.zero_()


@torch.no_grad()
def initialize_projection(projection: nn.Linear, generator: torch.Generator) -> None:
    """Make a projection a seeded random orthonormal map, so that angles between vectors survive."""
    rows, columns = projection.weight.shape
    random = torch.randn(max(rows, columns), min(rows, columns), generator=generator)
    orthonormal = torch.linalg.qr(random).Q
    projection.weight.copy_(orthonormal.T if rows <= columns else orthonormal)
    projection.bias.zero_()


@torch.no_grad()
def initialize_prediction_head(predictions: BertLMPredictionHead) -> None:
    """Start the head of a checkpoint without one: an identity transform, and a decoder tied to the word embeddings."""
    dense = predictions.transform.dense
    dense.weight.copy_(torch.eye(dense.out_features))
    dense.bias.zero_()
    predictions.bias.zero_()


class FromBertModel(BertPreTrainedModel):
    """A model with towers that can start from a BERT checkpoint."""

    parts: ClassVar[frozenset[str]] = frozenset()
    """What `from_encoders` must be given: `"embedder"`, `"encoder"`, and `"head"` where the encoder fills in words."""

    @classmethod
    def from_bert(
        cls, name_or_path: str | PathLike[str], *, pooler: Pooler = "checkpoint", seed: int = 0, **overrides: Any
    ) -> Self:
        r"""
        Start all towers of this model from one BERT checkpoint.

        Args:
            name_or_path (`str` or `PathLike`):
                Hub id or directory of any BERT checkpoint (`BertModel`, `BertForMaskedLM`, ...; safetensors or
                `.bin`).
            pooler (`str`, *optional*, defaults to `"checkpoint"`):
                `"checkpoint"`: the embedder's pooler is the checkpoint's and its projection is random, as in the
                paper. `"identity"`: the pooler starts as a small multiple of the identity and the projection as a
                random orthonormal map, so that the geometry of [CLS] survives; for checkpoints whose [CLS] means
                something without a pooler, and for those without one.
            seed (`int`, *optional*, defaults to 0):
                Seed of everything the checkpoint does not contain.
            overrides (*optional*):
                Fields of [`RealmConfig`], such as `retriever_proj_size=128`; what is not given comes from the
                checkpoint. A folder of sentence-transformers (with `modules.json`) says itself how its embeddings are
                made; other sentence encoders are read as they were made with `pooling_mode="mean"`,
                `projection="none"` and `normalize=True`; `retriever_proj_size` is then the size of its hidden states,
                and `score_scale` is 20 where it is not given. `score_scale="auto"` is 20 with `normalize`, the
                inverse square root of `retriever_proj_size` after a layer normalization, else 1; without it layer
                normalization keeps the paper's 1. Prompts, as `query_prompt="query: "`, are tokenized by the
                checkpoint's tokenizer.

        Returns:
            The model in evaluation mode, in float32. Without a prediction head in the checkpoint, the encoder's starts
            as the identity over tied word embeddings.

        Raises:
            `ValueError`: not a BERT checkpoint, weights are missing, no pooler with `pooler="checkpoint"`, or an
            override is no field.

        Example:
        ```python
        >>> model = RealmForPreTraining.from_bert("google-bert/bert-base-uncased", projection_dropout=0.1)
        ```
        """
        if pooler not in ("checkpoint", "identity"):
            raise ValueError(f"`pooler` is {pooler!r}: choose 'checkpoint' or 'identity'.")
        modules = None
        if "embedder" in cls.parts:
            overrides, modules = own_reading(name_or_path, overrides)
        if modules is not None:
            name_or_path = modules.encoder if Path(name_or_path).is_dir() else name_or_path
            if modules.pooler is None and overrides["pooling_mode"] == "cls" and pooler == "checkpoint":
                # BERT's own tower has a pooler; that of any encoder has none.
                overrides["embedder_config"] = AutoConfig.from_pretrained(name_or_path).to_dict() | {
                    "_name_or_path": ""
                }
        overrides = with_score_scale(tokenize_prompts(name_or_path, overrides))
        config, weights = load_bert(name_or_path, **overrides)
        start = BertStart(
            source=str(name_or_path),
            tower={f"realm.{key.removeprefix('bert.')}": w for key, w in weights.items() if key.startswith("bert.")},
            head={key: w for key, w in weights.items() if key.startswith("cls.predictions.")},
            pooler=pooler,
            seed=seed,
            modules=modules,
        )
        if not start.head:
            logger.info("%s has no prediction head: the encoder's starts from its word embeddings.", name_or_path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        model.start_from_bert(start)
        model.tie_weights()
        model.name_or_path = str(name_or_path)
        return model.eval()

    def start_from_bert(self, start: BertStart) -> None:
        """Copy a BERT checkpoint's weights into every tower of this model."""
        for child in self.children():
            if isinstance(child, FromBertModel):
                child.start_from_bert(start)


__all__ = [
    "BertStart",
    "FromBertModel",
    "initialize_pooler",
    "initialize_prediction_head",
    "initialize_projection",
    "load_bert",
    "with_score_scale",
]
