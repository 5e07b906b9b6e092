"""A source of candidates as it is saved: a few settings as JSON, and the BM25 index beside the passages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from realm_hf.knowledge.bm25 import BM25Index

__all__ = ["KINDS", "PARTS", "SavedSource", "checked_settings", "in_words"]

KINDS: dict[str, dict[str, Any]] = {
    "bm25": {},
    "mixed": {"parts": list, "counts": list},
    "fused": {"parts": list, "constant": int, "depth": int},
    "weighted": {"weight": float, "depth": int},
}
"""What each kind of source has beside its name, and of which type."""

PARTS = ("bm25", "dense")
_PART_NAMES = {"bm25": "BM25", "dense": "the index"}
_MOST = 1_000_000


@dataclass(frozen=True)
class SavedSource:
    """
    Args:
        settings (`Mapping[str, Any]`): `kind`, and what [`KINDS`] says of it.
        bm25 ([`BM25Index`]): Of the passages.
    """

    settings: Mapping[str, Any]
    bm25: BM25Index


def in_words(settings: Mapping[str, Any] | None) -> str:
    """What finds candidates, as a card says it; `None` is the index alone."""
    if settings is None:
        return "the index"
    kind, names = settings["kind"], [_PART_NAMES[part] for part in settings.get("parts", [])]
    if kind == "mixed":
        return f"{' and '.join(names)} in turn, {' to '.join(map(str, settings['counts']))}"
    if kind == "fused":
        return f"{' and '.join(names)}, fused by reciprocal ranks (constant {settings['constant']})"
    if kind == "weighted":
        return f"the index and BM25, by inner product + {settings['weight']:.3g} x BM25's score"
    return _PART_NAMES[kind]


def checked_settings(settings: object) -> dict[str, Any]:
    """
    Settings that were read from a file.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(settings, dict) or settings.get("kind") not in KINDS:
        raise ValueError(f"the candidate source is {str(settings)[:80]!r}: its kind must be one of {', '.join(KINDS)}")
    expected = KINDS[settings["kind"]]
    if settings.keys() != {"kind", *expected}:
        raise ValueError(f"the candidate source {settings['kind']!r} has {sorted(map(str, settings))[:8]}")
    for name, kind in expected.items():
        value: Any = settings[name]
        least = 1 if kind is int else 0
        if type(value) is not kind or (kind is not list and not least <= value <= _MOST):
            raise ValueError(f"{name} of the candidate source is {str(value)[:80]!r}")
    parts, counts = settings.get("parts", []), settings.get("counts", [])
    if "parts" in settings and (
        len(parts) > len(PARTS) or "bm25" not in parts or any(part not in PARTS for part in parts)
    ):
        raise ValueError(f"the candidate source has the parts {str(parts)[:80]}: they must be bm25, or it and dense")
    if "counts" in settings and (
        len(counts) != len(parts) or not all(type(count) is int and 0 < count <= _MOST for count in counts)
    ):
        raise ValueError(f"the candidate source has the counts {str(counts)[:80]}: one for each part is needed")
    return settings
