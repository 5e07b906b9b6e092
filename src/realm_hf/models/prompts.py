"""Prompts: a few words before a query or a passage that say which it is, as "query: " and "passage: " of E5.

Texts are tokenized once, when a model is made; from then on a configuration has their token ids, and the tower itself
puts them behind [CLS] of whatever it embeds. That all who make batches put them there was rejected: there are nine
such places, and one that forgets embeds something else without a word. The reader's joint input has no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from transformers import AutoTokenizer

from realm_hf.models.host_facts import RowFacts, RowLengths
from realm_hf.models.transfer import to_device

if TYPE_CHECKING:
    from realm_hf.models.configuration_realm import RealmConfig

__all__ = ["Role", "add_prompt", "prompt_ids", "room_beside_prompt", "tokenize_prompts"]

Role = Literal["query", "document"]
ROLES: tuple[Role, Role] = ("query", "document")


def tokenize_prompts(name_or_path: str | PathLike[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """
    Fields of a configuration, with the token ids of the prompts among them.

    Args:
        name_or_path (`str` or `PathLike`): Where the tokenizer is; it is loaded if there is a prompt.
        fields (`Mapping[str, Any]`): May have `query_prompt` and `document_prompt`.

    Returns:
        `dict[str, Any]`: Also `query_prompt_ids` and `document_prompt_ids`, where there is such a prompt.
    """
    texts = {f"{role}_prompt_ids": fields.get(f"{role}_prompt") for role in ROLES}
    if not any(texts.values()):
        return dict(fields)
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    ids = {name: tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in texts.items() if text}
    return {**fields, **ids}


def prompt_ids(config: RealmConfig, role: Role) -> list[int]:
    """
    The token ids of a prompt; empty where there is none.

    Raises:
        ValueError: There is a text without token ids or token ids without a text, an id is none of the vocabulary's,
            or nothing but the prompt would fit.
    """
    text, ids = getattr(config, f"{role}_prompt"), list(getattr(config, f"{role}_prompt_ids") or [])
    if bool(text) != bool(ids):
        raise ValueError(
            f"{role}_prompt is {text!r}, and {role}_prompt_ids are {ids}: give both or neither, or start by "
            "`from_bert`, which tokenizes a prompt."
        )
    wrong = [number for number in ids if not 0 <= number < config.vocab_size]
    if wrong or len(ids) + 4 > config.max_position_embeddings:
        raise ValueError(
            f"{role}_prompt_ids are {len(ids)} token ids, {wrong[:3]} among them beyond a vocabulary of "
            f"{config.vocab_size}; a tower of {config.max_position_embeddings} positions must have room for more."
        )
    return ids


def room_beside_prompt(config: RealmConfig, role: Role, max_length: int) -> int:
    """
    What a prompt leaves of a length, in wordpieces: lengths are cut to this before the prompt is put in.

    Raises:
        ValueError: Nothing but the prompt and the special tokens fits.
    """
    ids = prompt_ids(config, role)
    room = max_length - len(ids)
    if ids and room < 4:
        raise ValueError(
            f"{max_length} wordpieces have no room beside {role}_prompt {getattr(config, f'{role}_prompt')!r}: give "
            f"at least {max_length - room + 4}."
        )
    return room


def add_prompt(
    ids: list[int], longest: int, rows: Mapping[str, torch.Tensor | None], facts: RowFacts
) -> tuple[dict[str, Any], RowFacts]:
    """
    Put a prompt behind the first token of each row. A row that grows beyond `longest` loses its end, but not its last
    token, which is [SEP].

    Args:
        ids (`list[int]`): The prompt's token ids; empty for none.
        longest (`int`): Positions of the tower.
        rows (`Mapping[str, torch.Tensor]`): `input_ids` and, unless they are `None`, `attention_mask` and
            `token_type_ids`, `(N, L)`, padded on the right.
        facts ([`RowFacts`]): Of these rows.

    Returns:
        The rows with the prompt, and their facts.
    """
    if not ids:
        return dict(rows), facts
    input_ids = cast(torch.Tensor, rows["input_ids"])
    prompt = to_device({"prompt": np.array(ids)}, input_ids.device)["prompt"]
    between: dict[str, torch.Tensor | int] = {"input_ids": prompt, "attention_mask": 1, "token_type_ids": 0}
    made: dict[str, Any] = {
        name: None if row is None else _inserted(row, between[name], len(prompt)) for name, row in rows.items()
    }
    ends = facts.lengths.ends + len(prompt)
    cut = np.maximum(ends - longest, 0)
    if cut.any():
        places = np.flatnonzero(cut)
        sent = to_device({"places": places, "last": facts.lengths.ends[places] - 1}, input_ids.device)
        made["input_ids"][sent["places"], longest - 1] = input_ids[sent["places"], sent["last"]]
    lengths = RowLengths(ends - cut, facts.lengths.tokens + len(prompt) - cut)
    words = np.union1d(facts.words, ids)
    return {name: None if row is None else row[:, :longest] for name, row in made.items()}, RowFacts(lengths, words)


def _inserted(row: torch.Tensor, value: torch.Tensor | int, count: int) -> torch.Tensor:
    middle = row.new_empty(len(row), count)
    middle[:] = value
    return torch.cat([row[:, :1], middle, row[:, 1:]], dim=1)
