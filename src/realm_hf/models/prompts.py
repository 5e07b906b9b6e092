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
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from realm_hf.models.host_facts import RowFacts, RowLengths
from realm_hf.models.templates import first_word_differs
from realm_hf.models.transfer import to_device

if TYPE_CHECKING:
    from realm_hf.models.configuration_realm import RealmConfig

__all__ = [
    "Role",
    "add_prompt",
    "check_joined",
    "check_prompts",
    "join_pairs",
    "prompt_ids",
    "room_beside_prompt",
    "tokenize_prompts",
]

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


def check_joined(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Refuse a tokenizer with which stored titles and bodies cannot be joined: `document_format="joined"`.

    Raises:
        ValueError: Words have other tokens behind a space than at the beginning of a text.
    """
    if first_word_differs(tokenizer):
        raise ValueError(
            f"{type(tokenizer).__name__} cuts a word into other tokens behind a space than at the beginning of a "
            "text, so that titles and texts, stored as tokens, cannot be joined: use `document_format='pair'`."
        )


def check_prompts(prompts: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Refuse prompts that sentence-transformers tokenizes otherwise: there prompt and text are one string, here each has
    tokens of its own.

    Args:
        prompts (`Mapping[str, str]`): Prompts, each with a name for the message.
        tokenizer (`PreTrainedTokenizerBase`): Of prompts and texts.

    Raises:
        ValueError: The tokens are others, as with byte-level BPE, whose words have other tokens behind a space.
    """
    for name, prompt in prompts.items():
        one, text, both = (
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, "the", f"{prompt}the")
        )
        if [*one, *text] != both:
            raise ValueError(
                f"The prompt {prompt!r} ({name}) and a text have other tokens joined than each by itself with "
                f"{type(tokenizer).__name__}, so that embeddings would not equal those of sentence-transformers: give "
                "an embedder without prompts, or make the prompts empty (`query_prompt=''`, `document_prompt=''`)."
            )


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


def join_pairs(rows: Mapping[str, torch.Tensor | None]) -> tuple[dict[str, Any], RowFacts]:
    """
    Pairs of title and body as one text, `document_format="joined"`: `[CLS] title body [SEP]`, all of it segment 0.

    Their facts are read back from the device, since only the rows tell how many `[SEP]` stood between the two.

    Args:
        rows (`Mapping[str, torch.Tensor]`): `input_ids`, `attention_mask` and `token_type_ids`, `(N, L)`, padded on
            the right; the last two may be `None`. Of rows `[CLS] title [SEP] body [SEP]`, segment 1 begins with the
            body; rows without it are one text already.

    Returns:
        The rows, as long as the longest of them, and their facts.
    """
    input_ids, segments = cast(torch.Tensor, rows["input_ids"]), rows.get("token_type_ids")
    mask = rows.get("attention_mask")
    made = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids) if mask is None else mask}
    if segments is not None:
        second = segments != 0
        body = second.int().argmax(dim=1, keepdim=True)
        last, before = (input_ids.gather(1, (body - back).clamp(min=0)) for back in (1, 2))
        count = torch.where(second.any(dim=1, keepdim=True), 1 + (last == before).int(), 0)
        columns = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        source = columns + count * (columns >= body - count)
        beyond = source >= input_ids.shape[1]
        made = {name: row.gather(1, source.clamp(max=input_ids.shape[1] - 1)) for name, row in made.items()}
        made["attention_mask"] = made["attention_mask"].masked_fill(beyond, 0)
        made["token_type_ids"] = torch.zeros_like(segments)
    facts = RowFacts.of(made["input_ids"], made["attention_mask"])
    longest = int(facts.lengths.ends.max())
    return {"token_type_ids": None, **{name: row[:, :longest] for name, row in made.items()}}, facts


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
