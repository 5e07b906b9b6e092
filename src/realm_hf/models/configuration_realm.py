"""The configuration of every REALM model: BERT's fields, the former transformers port's, and pre-training's own."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig, PreTrainedConfig

from realm_hf.models.any_encoder import encoder_configuration, fields_of_encoder, positions_of
from realm_hf.models.cut_lengths import MAX_PASSAGE_LENGTH, MAX_QUERY_LENGTH
from realm_hf.registration import register_classes

_READER_QUESTION_LENGTH = 32

_MOST_LABELS = 10_000
"""Of a configuration's file. No REALM model has labels; for each, transformers makes two entries of a dictionary."""
_LARGEST_NUMBER = 1 << 31
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention that a file may name; another name is a repository, whose code transformers would fetch. A caller may give
what he likes: `from_pretrained(..., attn_implementation=...)`."""


@strict
class RealmConfig(BertConfig):
    r"""
    Configuration of [`RealmEmbedder`], [`RealmScorer`], [`RealmKnowledgeAugEncoder`], [`RealmForPreTraining`],
    [`RealmReader`] and [`RealmForOpenQA`].

    All fields of `transformers.BertConfig` are understood; `embedder_config` and `encoder_config` name other encoders.
    Names and defaults are those of `RealmConfig` in transformers 4.57.6, so its `config.json` files load as they are,
    with one exception: special token ids default to BERT's own (`pad_token_id=0`, no `bos`/`eos`) instead of the
    port's 1/0/2, which never matched the BERT vocabulary. A file that names other ids keeps them.

    Args:
        hidden_act (`str`, *optional*, defaults to `"gelu_new"`):
            Activation of the feed-forward layers and the prediction head; [`~RealmPreTrainedModel.from_bert`] takes
            the checkpoint's.
        use_cache (`bool`, *optional*, defaults to `False`):
            Of no effect: a bidirectional encoder has no cache. Off, so that gradient checkpointing does not warn.
        retriever_proj_size (`int`, *optional*, defaults to 128):
            Dimension D of query and passage embeddings (section 3.2 of the paper).
        pooling_mode (`str`, *optional*, defaults to `"cls"`):
            What an embedding is made of: `"cls"`, [CLS] through BERT's pooler (section 3.2), or `"mean"`, the mean of
            the last hidden states of all tokens, as most sentence encoders are trained to be read.
        projection (`str`, *optional*, defaults to `"layer_norm"`):
            What follows: `"layer_norm"`, a linear layer and a layer normalization (section 3.2 and the release),
            `"linear"`, a linear layer, or `"none"`; `retriever_proj_size` must be `hidden_size` then.
        normalize (`bool`, *optional*, defaults to `False`):
            Divide embeddings by their length, so that inner products are cosines.
        query_prompt (`str`, *optional*, defaults to `""`):
            Text that the tower embeds before each query, as `"query: "`: some sentence encoders are trained so. It
            counts for lengths, and the mean of the tokens includes it. The reader does not see it.
        document_prompt (`str`, *optional*, defaults to `""`):
            The same before each passage, in front of its title.
        query_prompt_ids (`list[int]`, *optional*):
            Token ids of `query_prompt`, without special tokens; [`~RealmPreTrainedModel.from_bert`] finds them.
        document_prompt_ids (`list[int]`, *optional*):
            Token ids of `document_prompt`.
        document_format (`str`, *optional*, defaults to `"pair"`):
            How the embedder reads a passage: `"pair"`, title and body as two texts (the released format), or
            `"joined"`, `title body` as one text, which is what tools embed that know no pairs. The reader always reads
            the body alone.
        num_candidates (`int`, *optional*, defaults to 8):
            Candidates K per query, the null passage included. The models read K from their inputs; this value is what
            trainer and retriever use when nothing else is said.
        span_hidden_size (`int`, *optional*, defaults to 256):
            Hidden size of the reader's span scorer.
        max_span_width (`int`, *optional*, defaults to 10):
            Longest answer of the reader, in wordpieces.
        reader_layer_norm_eps (`float`, *optional*, defaults to 0.001):
            Epsilon of the reader's layer normalization.
        reader_beam_size (`int`, *optional*, defaults to 5):
            Passages that the reader reads per question.
        reader_seq_len (`int`, *optional*, defaults to 320):
            Length of the reader's input, in wordpieces: `MAX_PASSAGE_LENGTH` for the passage, 32 for the question.
        num_block_records (`int`, *optional*, defaults to 13353718):
            Rows of the index inside an old open-domain QA checkpoint. Not read here: a retriever knows its own. Set it
            to the number of passages before a file goes back to transformers 4.57.6, which allocates that many.
        searcher_beam_size (`int`, *optional*, defaults to 5000):
            Passages that are retrieved in training, over which the retriever's fine-tuning loss runs.
        projection_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on embeddings, after their layer normalization, in training. The released code uses 0.1.
        score_scale (`float`, *optional*, defaults to 1.0):
            Factor on the inner product of query and passage embeddings before the softmax over candidates. Embeddings
            are layer-normalised, so unscaled scores lie within +-`retriever_proj_size`; divided by its square root
            they are near 1. Cosines (`normalize`) want about 20, which [`~RealmPreTrainedModel.from_bert`] takes;
            with `score_scale="auto"` it takes what fits in either case.
        marginalization (`str`, *optional*, defaults to `"token"`):
            Where the sum over candidates stands: `"token"` sums for each masked token by itself (the released code),
            `"span"` sums over the product of the span's tokens (equation 1 of the paper).
        share_embedders (`bool`, *optional*, defaults to `True`):
            Whether queries and passages are embedded by the same weights.
        embedder_config (`PreTrainedConfig` or `dict`, *optional*):
            Of another encoder that the embedders are made of, with its `model_type`. Without it they are BERT, as the
            fields above say; with it those fields are taken from it.
        encoder_config (`PreTrainedConfig` or `dict`, *optional*):
            The same for the knowledge-augmented encoder and the reader.

    Raises:
        `ValueError`: an encoder is a decoder, or a file has numbers or labels beyond bounds, or names attention from a
            repository.
        `StrictDataclassError`: a field has the wrong type, or `marginalization` names neither choice.

    Example:
    ```python
    >>> from realm_hf import RealmConfig

    >>> RealmConfig().retriever_proj_size
    128
    ```
    """

    model_type = "realm"

    hidden_act: str = "gelu_new"
    use_cache: bool = False
    retriever_proj_size: int = 128
    pooling_mode: Literal["cls", "mean"] = "cls"
    projection: Literal["layer_norm", "linear", "none"] = "layer_norm"
    normalize: bool = False
    query_prompt: str = ""
    document_prompt: str = ""
    query_prompt_ids: list[int] | None = None
    document_prompt_ids: list[int] | None = None
    document_format: Literal["pair", "joined"] = "pair"
    num_candidates: int = 8
    span_hidden_size: int = 256
    max_span_width: int = 10
    reader_layer_norm_eps: float = 1e-3
    reader_beam_size: int = 5
    reader_seq_len: int = MAX_PASSAGE_LENGTH + _READER_QUESTION_LENGTH
    num_block_records: int = 13353718
    searcher_beam_size: int = 5000
    projection_dropout: float | int = 0.0
    score_scale: float | int = 1.0
    marginalization: Literal["token", "span"] = "token"
    share_embedders: bool = True
    embedder_config: dict[str, Any] | PreTrainedConfig | None = None
    encoder_config: dict[str, Any] | PreTrainedConfig | None = None

    # transformers sets attention and dtype of these too.
    sub_configs: ClassVar[dict[str, type]] = {"embedder_config": AutoConfig, "encoder_config": AutoConfig}

    def __post_init__(self, **kwargs: Any) -> None:
        """Read the encoders that are given, and take the fields of BERT from them."""
        given = []
        for name in self.sub_configs:
            encoder = getattr(self, name)
            if encoder is not None:
                given.append(encoder_configuration(encoder))
                setattr(self, name, given[-1])
        super().__post_init__(**kwargs)
        if given:
            for name, value in fields_of_encoder(given[0]).items():
                setattr(self, name, value)
            self.max_position_embeddings = min(positions_of(encoder) for encoder in given)

    @property
    def encoder_hidden_size(self) -> int:
        """Hidden size of the knowledge-augmented encoder and of the reader."""
        encoder = self.encoder_config
        return int(encoder.hidden_size) if isinstance(encoder, PreTrainedConfig) else self.hidden_size

    @property
    def encoder_positions(self) -> int:
        """Most tokens that the knowledge-augmented encoder and the reader take at once, special tokens included."""
        encoder = self.encoder_config
        return positions_of(encoder) if isinstance(encoder, PreTrainedConfig) else self.max_position_embeddings

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; where all is BERT, the file has no entry of another encoder."""
        content: dict[str, Any] = super().to_dict()
        return {name: value for name, value in content.items() if name not in self.sub_configs or value is not None}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """
        As in transformers, after what a file says was compared with what it may say.

        Raises:
            ValueError: If it has a number that no model has, too many labels, or attention from a repository.
        """
        _check_bounds(config_dict)
        return super().from_dict(config_dict, **kwargs)


def _check_bounds(content: Mapping[str, Any]) -> None:
    for name in RealmConfig.sub_configs:
        if isinstance(content.get(name), Mapping):
            _check_bounds(content[name])
    for name, value in content.items():
        if isinstance(value, int | float) and not abs(value) <= _LARGEST_NUMBER:
            raise ValueError(f"The configuration says {name}={value}: no model has that.")
        if name.endswith(("attn_implementation", "attn_implementation_internal", "experts_implementation")):
            for kernel in value.values() if isinstance(value, dict) else [value]:
                if kernel is not None and kernel not in _ATTENTION:
                    raise ValueError(
                        f"The configuration names {name}={str(kernel)[:80]!r}, which would be fetched and run: take "
                        f"it out of the file; {', '.join(_ATTENTION)} may stand there."
                    )
    labels = [content.get("num_labels") or 0, *(len(content.get(name) or ()) for name in ("id2label", "label2id"))]
    if max(labels) > _MOST_LABELS:
        raise ValueError(f"The configuration has {max(labels)} labels; at most {_MOST_LABELS} are read.")


register_classes(RealmConfig)

__all__ = ["MAX_PASSAGE_LENGTH", "MAX_QUERY_LENGTH", "RealmConfig"]
