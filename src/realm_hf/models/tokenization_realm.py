"""BERT's WordPiece tokenizer with the candidate axis of REALM."""

from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

from transformers import AutoTokenizer, BatchEncoding, BertTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from realm_hf.models.places import TOKENIZER_FOLDER, is_run

_BERTS = {name + fast for name in ("RealmTokenizer", "BertTokenizer") for fast in ("", "Fast")}


class RealmTokenizer(BertTokenizer):
    r"""
    Construct a REALM tokenizer: [`~transformers.BertTokenizer`] plus [`~RealmTokenizer.batch_encode_candidates`].

    It loads any BERT vocabulary, and what `RealmTokenizer` or `RealmTokenizerFast` of transformers 4.57.6 saved.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], *inputs: Any, **kwargs: Any) -> Self:
        """As in transformers; of a run directory it is RUN/tokenizer, which made the passages: of the class that it
        names, where the run has another encoder than BERT.
        """
        folder = Path(pretrained_model_name_or_path)
        if not is_run(folder):
            return super().from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)
        place = folder / TOKENIZER_FOLDER
        # `AutoTokenizer` sees a configuration of REALM's in RUN, and comes here whatever the encoder is.
        if get_tokenizer_config(place).get("tokenizer_class", cls.__name__) not in _BERTS:
            return cast(Self, AutoTokenizer.from_pretrained(place, *inputs, **kwargs))
        return super().from_pretrained(place, *inputs, **kwargs)

    def batch_encode_candidates(
        self,
        text: list[list[str]],
        text_pair: list[list[str]] | None = None,
        *,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        r"""
        Encode K texts, or pairs of texts, for each of B queries; the same method as in transformers 4.57.6.

        Every sequence is padded to `max_length`, because B x K sequences are stacked into one array.

        Args:
            text (`list[list[str]]`):
                B lists of K texts each; `[CLS] text [SEP]` when there is no pair.
            text_pair (`list[list[str]]`, *optional*):
                B lists of K second texts; `[CLS] text [SEP] text_pair [SEP]`.
            max_length (`int`, *optional*):
                Length of every row, in wordpieces. Defaults to the tokenizer's `model_max_length`. Longer rows are cut
                only if `truncation=True` is given, as in `__call__`.
            return_tensors (`str`, *optional*):
                `"pt"` or `"np"`; nested lists if not given.
            kwargs (*optional*):
                Anything `__call__` takes, but `padding`, which is always `"max_length"`.

        Returns:
            [`~transformers.BatchEncoding`]: `input_ids`, `attention_mask` and `token_type_ids`, each of shape `(B, K,
            max_length)`.

        Raises:
            `ValueError`: `text_pair` has another number of queries or candidates than `text`, or a tensor is asked for
            while queries have different numbers of candidates.

        Example:
        ```python
        >>> texts = [["Hello world!", "Nice to meet you!"], ["The cute cat.", "The adorable dog."]]
        >>> tokenizer.batch_encode_candidates(texts, max_length=10, return_tensors="pt").input_ids.shape
        torch.Size([2, 2, 10])
        ```
        """
        counts = [len(candidates) for candidates in text]
        if text_pair is not None and counts != [len(candidates) for candidates in text_pair]:
            raise ValueError(
                f"`text_pair` has {[len(candidates) for candidates in text_pair]} candidates per query where `text` "
                f"has {counts}: give one second text for each candidate."
            )
        if return_tensors is not None and len(set(counts)) > 1:
            raise ValueError(
                f"Queries have {counts} candidates, which cannot be stacked into one tensor: give each query the same "
                "number (an empty text stands for the null passage), or leave `return_tensors` out."
            )
        kwargs["padding"] = "max_length"
        columns: dict[str, list[list[list[int]]]] = {}
        for row, candidates in enumerate(text):
            pairs = text_pair[row] if text_pair is not None else None
            encoded = self(candidates, pairs, max_length=max_length, return_tensors=None, **kwargs)
            for name, sequences in encoded.items():
                columns.setdefault(name, []).append(sequences)
        return BatchEncoding(columns, tensor_type=return_tensors)


__all__ = ["RealmTokenizer"]
