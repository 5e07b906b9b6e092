"""Texts in, embeddings out: what a tower does for somebody who has strings, as in sentence-transformers.

The formats are the release's: a query is `[CLS] text [SEP]`, a passage `[CLS] title [SEP] text [SEP]` with segments 0
and 1, or `[CLS] title text [SEP]` where the configuration's `document_format` is `"joined"`. Texts are sorted by
length before they are cut into batches, so that little is spent on padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from realm_hf.models.host_facts import RowFacts
from realm_hf.models.prompts import Role, room_beside_prompt
from realm_hf.models.templates import separators_between
from realm_hf.models.transfer import to_device
from realm_hf.progress import progress_bar

__all__ = ["TextEncoder"]

_TEXTS_A_PIECE = 8192


class TextEncoder:
    """The part of a tower that takes texts."""

    tokenizer: PreTrainedTokenizerBase | None = None
    """For texts; by default it is loaded from where the tower came from, when it is first needed."""
    max_text_length: int | None = None
    """Where `encode` cuts texts, of a tower that came from sentence-transformers; it is not saved with the weights."""

    @overload
    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        max_tokens_per_chunk: int | None = None,
        facts: RowFacts | None = None,
    ) -> torch.Tensor: ...

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        titles: str | Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: Literal[True] = True,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        titles: str | Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: Literal[False],
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
    ) -> torch.Tensor: ...

    def encode(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D417 - the overloads name the arguments
        r"""
        Embeddings of texts, without gradient; or of token ids, with it: see `encode_tokens`.

        Args:
            texts (`str` or sequence of `str`): Queries; with `titles`, passages. `[MASK]` in a query is the token.
            titles (`str` or sequence of `str`, *optional*): A title for each text, or one for all: `""` for passages
                that have none.
            batch_size (`int`, *optional*, defaults to 32): Texts that go through the tower at once.
            show_progress_bar (`bool`, *optional*): By default on a terminal, after two seconds.
            convert_to_numpy (`bool`, *optional*, defaults to `True`): `False` for a tensor on the tower's device.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): `tower.tokenizer`, or that of the tower's directory or
                repository, by default.
            max_length (`int`, *optional*): Wordpieces of a row, special tokens and prompt counted; what is longer is
                cut. `tower.max_text_length` or else as many as the tower has positions by default.

        Returns:
            `np.ndarray` or `torch.Tensor`: float32 `[N, D]`; `[D]` for a single `str`.

        Raises:
            TypeError: A text or title is no string.
            ValueError: There are not as many titles as texts, `batch_size` or `max_length` is too small, or there is
                no tokenizer.

        Example:
        ```python
        >>> queries = embedder.encode(["Where is Managua?", "[MASK] is the capital of Nicaragua."])
        >>> passages = embedder.encode(["It is the capital of Nicaragua."], titles=["Managua"])
        >>> queries @ passages.T
        ```
        """
        first = args[0] if args else kwargs.get("input_ids")
        if isinstance(first, torch.Tensor):
            tower: Any = self  # a RealmEmbedder
            return tower.encode_tokens(*args, **kwargs)
        return self._encode_texts(*args, **kwargs)

    def _encode_texts(
        self,
        texts: str | Sequence[str],
        *,
        titles: str | Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
    ) -> Any:
        tower: Any = self  # a RealmEmbedder
        is_single = isinstance(texts, str)
        rows = [texts] if isinstance(texts, str) else list(texts)
        pairs = [titles] * len(rows) if isinstance(titles, str) else None if titles is None else list(titles)
        length = self._longest() if max_length is None else max_length
        _check(rows, pairs, batch_size, length)
        role: Role = "query" if pairs is None else "document"
        room = room_beside_prompt(tower.config, role, length)
        if pairs is not None and tower.config.document_format == "joined":
            rows, pairs = [f"{title} {text}" for title, text in zip(pairs, rows, strict=True)], None
        inputs = _Inputs(tokenizer or self._own_tokenizer(), rows, pairs, room, may_mask=role == "query")
        result = torch.empty(len(rows), tower.config.retriever_proj_size, device=tower.device)
        was_training = tower.training
        tower.eval()
        try:
            with torch.no_grad(), progress_bar(len(rows), "embedding", "texts", show_progress_bar) as bar:
                for numbers in inputs.batches(batch_size):
                    padded = inputs.padded(numbers)
                    facts = RowFacts.of(padded["input_ids"], padded["attention_mask"])
                    sent = to_device({**padded, "numbers": numbers}, tower.device)
                    places = sent.pop("numbers")
                    result[places] = tower.encode_tokens(**sent, facts=facts, role=role).float()
                    bar.update(len(numbers))
        finally:
            tower.train(was_training)
        wanted = result[0] if is_single else result
        return wanted.cpu().numpy() if convert_to_numpy else wanted

    def _longest(self) -> int:
        tower: Any = self
        positions: int = tower.config.max_position_embeddings
        return positions if self.max_text_length is None else min(positions, self.max_text_length)

    def _own_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            tower: Any = self
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(tower.name_or_path, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"Texts must be tokenized, and there is no tokenizer where this tower came from "
                    f"({tower.name_or_path!r}): pass `tokenizer=`, or set `tower.tokenizer`."
                ) from error
        return self.tokenizer


def _check(texts: list[Any], titles: list[Any] | None, batch_size: int, max_length: int) -> None:
    for value in (*texts, *(titles or [])):
        if not isinstance(value, str):
            raise TypeError(
                f"A text is {value!r}, a {type(value).__name__}: `encode` takes strings, or token ids as one tensor."
            )
    if titles is not None and len(titles) != len(texts):
        raise ValueError(f"There are {len(titles)} titles for {len(texts)} texts: give one for each, or one for all.")
    if batch_size < 1 or max_length < 3:
        raise ValueError(f"batch_size is {batch_size} and max_length {max_length}: at least 1 and 3 are needed.")


class _Inputs:
    """Token ids of all rows, and batches of rows of similar length."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: list[str],
        titles: list[str] | None,
        max_length: int,
        *,
        may_mask: bool,
    ):
        self.pad = tokenizer.pad_token_id
        cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        between = sep * (1 if titles is None else separators_between(tokenizer))
        self.rows: list[np.ndarray] = []
        self.starts: list[int] = []  # of segment 1
        for first in range(0, len(texts), _TEXTS_A_PIECE):
            piece = slice(first, first + _TEXTS_A_PIECE)
            # A passage that happens to contain "[SEP]" gets its characters, as in a passage store.
            bodies = _ids(tokenizer, texts[piece], split_special_tokens=not may_mask)
            heads = [[]] * len(bodies) if titles is None else _ids(tokenizer, titles[piece], split_special_tokens=True)
            for title, body in zip(heads, bodies, strict=True):
                # A title may take half of the room at most, as in a passage store.
                room = max_length - 2 - len(between)
                head = cls if titles is None else cls + title[: room // 2] + between
                self.rows.append(np.array(head + body[: max_length - len(head) - 1] + sep, np.int32))
                self.starts.append(0 if titles is None else len(head))
        self.has_segments = titles is not None

    def batches(self, size: int) -> list[np.ndarray]:
        """Row numbers of each batch, longest rows first: what does not fit the memory fails at once."""
        order = np.argsort([-len(row) for row in self.rows], kind="stable")
        return [order[start : start + size] for start in range(0, len(order), size)]

    def padded(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """`input_ids`, `attention_mask` and, for passages, `token_type_ids` `[R, L]` of some rows."""
        ids = np.full((len(numbers), max(len(self.rows[number]) for number in numbers)), self.pad, np.int64)
        mask = np.zeros_like(ids)
        segments = np.zeros_like(ids)
        for place, number in enumerate(numbers):
            end = len(self.rows[number])
            ids[place, :end], mask[place, :end] = self.rows[number], 1
            segments[place, self.starts[number] : end] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            **({"token_type_ids": segments} if self.has_segments else {}),
        }


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, split_special_tokens: bool) -> list[list[int]]:
    # Half of a surrogate pair, as in text that was cut by UTF-16 units, is no character: tokenizers refuse it.
    clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    encoded = tokenizer(
        clean,
        add_special_tokens=False,
        split_special_tokens=split_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=False,
        verbose=False,
    )
    return cast("list[list[int]]", encoded["input_ids"])
