"""`candidate_mix` as it is written: how many candidates of an example come from which source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["SOURCES", "parse_mix", "written_mix"]

SOURCES = ("bm25", "dense")


def parse_mix(mix: str | Mapping[str, int]) -> dict[str, int]:
    """
    The numbers of a mix by source.

    Args:
        mix (`str` or `Mapping[str, int]`): `"bm25=2,dense=2"`, the same as JSON (as a YAML file gives it), or a
            mapping. A source that is left out, or has 0, gives none.

    Raises:
        ValueError: A source is unknown or comes twice, or a number is none.
    """
    pairs: list[tuple[str, Any]]
    if isinstance(mix, str):
        pairs = list(json.loads(mix).items()) if mix.lstrip().startswith("{") else _pairs(mix)
    else:
        pairs = list(mix.items())
    counts: dict[str, int] = {}
    for name, count in pairs:
        if name not in SOURCES or name in counts or type(count) is not int or count < 0:
            raise ValueError(
                f"candidate_mix is {mix!r}: give each of {', '.join(SOURCES)} once with a number, as in "
                "'bm25=2,dense=2'."
            )
        counts[name] = count
    return {name: count for name, count in counts.items() if count}


def written_mix(mix: str | Mapping[str, int], passages: int, where: str) -> str:
    """
    A mix as it is recorded, written in one way only.

    Args:
        mix (`str` or `Mapping[str, int]`): See [`parse_mix`].
        passages (`int`): What its numbers must add up to.
        where (`str`): What says so, for the error: "reader_beam_size is 5".

    Raises:
        ValueError: It is no mix, or its sum is another.
    """
    counts = parse_mix(mix)
    if not counts or sum(counts.values()) != passages:
        raise ValueError(
            f"candidate_mix is {mix!r}, {sum(counts.values())} passages in all, but {where}: make them equal."
        )
    return ",".join(f"{name}={count}" for name, count in counts.items())


def _pairs(text: str) -> list[tuple[str, Any]]:
    split = [part.partition("=") for part in text.split(",")]
    return [(name.strip(), int(count) if count.strip().isdigit() else count) for name, _, count in split]
