"""`realm_retriever.json`: what a published retriever consists of, and what belongs together.

It is read as a stranger's: every field has its type, every name stays inside the repository, and the sizes of what it
lists follow from the number of rows, so that nothing absurd is allocated or downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from realm_hf.generations.manifest import FileRecord
from realm_hf.knowledge.bm25 import BM25_FILE, BM25_FOLDER
from realm_hf.knowledge.saved_source import checked_settings
from realm_hf.models.places import DESCRIPTION
from realm_hf.storage.files import json_sha256
from realm_hf.untrusted.checks import HubArtefactError, check_name

__all__ = ["ARRAYS", "FORMAT_VERSION", "HubManifest", "IndexRecord", "ShardRecord"]

FORMAT_VERSION = 1
ARRAYS = ("title_tokens", "body_tokens", "sentence_starts")
"""The ragged arrays of a [`PassageStore`], each with its `_offsets`."""

COLUMNS = {"document": "int64", "duplicate_group": "int32"}
"""Numbers of each passage that a [`PassageStore`] keeps beside its text."""

_LARGEST_DIMENSION = 1 << 16
_MOST_ROWS = 1 << 40
_LONGEST_PASSAGE, _LARGEST_TOKEN = 1 << 20, (1 << 32) - 1  # wordpieces, and the largest id that an array can hold
_LARGEST_BM25_FILE = 1 << 16
_INDEX_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardRecord:
    """
    One Parquet file.

    Args:
        file (`str`): Its name.
        rows (`int`): How many passages it holds.
    """

    file: str
    rows: int


@dataclass(frozen=True)
class IndexRecord:
    """
    One variant of the index, in one file or in parts that are joined.

    Args:
        parts (`tuple[str, ...]`): Names of the files, in order.
        bytes (`int`): Size of the whole.
        sha256 (`str`): Of the whole.
        kind (`str`): FAISS class, for people.
    """

    parts: tuple[str, ...]
    bytes: int
    sha256: str
    kind: str


@dataclass(frozen=True)
class HubManifest:
    """
    The description of a published retriever.

    Args:
        rows (`int`): N.
        dimension (`int`): D.
        dtype (`str`): Of the embeddings as they were: `"float16"` or `"float32"`. In Parquet they are float32.
        generation_name (`str`, *optional*): The generation that was published.
        fingerprints (`dict[str, str]`): `passages`, `tokenizer`, and `passage_tower` where they are known.
        store (`dict`, *optional*): `passages.json` of a [`PassageStore`], its files left out; `None` for a dataset.
        shards (`tuple[ShardRecord, ...]`): The rows.
        indexes (`dict[str, IndexRecord]`): Variants by name.
        default_index (`str`, *optional*): The one that is loaded.
        files (`dict[str, FileRecord]`): Size and hash of every file.
        candidate_source (`dict`, *optional*): What finds candidates instead of the index, see [`SavedSource`].
    """

    rows: int
    dimension: int
    dtype: str
    generation_name: str | None
    fingerprints: dict[str, str]
    store: dict[str, Any] | None
    shards: tuple[ShardRecord, ...]
    indexes: dict[str, IndexRecord]
    default_index: str | None
    files: dict[str, FileRecord]
    candidate_source: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `content` is the hash of all the rest, and names what was published wherever it lies."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        if self.candidate_source is None:
            del content["candidate_source"]  # as it was before there was any: its hash names what was published then
        return {**content, "content": json_sha256(content)}

    def to_json(self) -> bytes:
        """The description file."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False).encode() + b"\n"

    @property
    def content(self) -> str:
        """Hash of the description, and by the hashes in it of every file."""
        return str(self.to_dict()["content"])

    def below(self, folder: str) -> list[str]:
        """Names of the files in a folder."""
        return [name for name in self.files if name.startswith(f"{folder}/")]

    def sizes(self) -> dict[str, int]:
        """The size of every file."""
        return {name: record.bytes for name, record in self.files.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> Self:
        """
        Read a description.

        Args:
            content (`Mapping`): The JSON object.
            where (`str`): The source, for messages.

        Raises:
            HubArtefactError: If anything in it is not as it must be; the message names it.
        """
        if content.get("format_version") != FORMAT_VERSION:
            raise HubArtefactError(
                f"{DESCRIPTION} of {where} has format_version {content.get('format_version')!r}, this version reads "
                f"{FORMAT_VERSION}: use a newer realm_hf, or publish again."
            )
        try:
            manifest = cls._parse(content)
        except HubArtefactError as error:
            raise HubArtefactError(f"{DESCRIPTION} of {where} is refused: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise HubArtefactError(
                f"{DESCRIPTION} of {where} is damaged ({type(error).__name__}: {error}): publish again."
            ) from error
        if content.get("content") != manifest.content:
            raise HubArtefactError(f"{DESCRIPTION} of {where} does not have its own hash: it was changed.")
        return manifest

    @classmethod
    def _parse(cls, content: Mapping[str, Any]) -> Self:
        files = {
            check_name(name): FileRecord(_count(record["bytes"], _MOST_ROWS), _sha256(record["sha256"]))
            for name, record in content["files"].items()
        }
        shards = tuple(ShardRecord(check_name(one["file"]), _count(one["rows"])) for one in content["shards"])
        indexes = {
            _matching(_INDEX_NAME, name): IndexRecord(
                tuple(check_name(part) for part in one["parts"]),
                _count(one["bytes"]),
                _sha256(one["sha256"]),
                _text(one["kind"]),
            )
            for name, one in content["indexes"].items()
        }
        manifest = cls(
            rows=_count(content["rows"]),
            dimension=_count(content["dimension"], _LARGEST_DIMENSION),
            dtype=_matching(re.compile("float16|float32"), content["dtype"]),
            generation_name=None if content["generation_name"] is None else _text(content["generation_name"]),
            fingerprints={_text(name): _text(value) for name, value in content["fingerprints"].items()},
            store=None if content["store"] is None else dict(content["store"]),
            shards=shards,
            indexes=indexes,
            default_index=None if content["default_index"] is None else _text(content["default_index"]),
            files=files,
            candidate_source=checked_settings(content["candidate_source"]) if "candidate_source" in content else None,
        )
        manifest._check_sums()
        return manifest

    def _check_sums(self) -> None:
        """What the numbers say of one another."""
        if self.rows < 1 or sum(shard.rows for shard in self.shards) != self.rows:
            raise HubArtefactError(f"its shards do not have the {self.rows} rows that it claims")
        named = [shard.file for shard in self.shards] + [part for one in self.indexes.values() for part in one.parts]
        if missing := [name for name in named if name not in self.files]:
            raise HubArtefactError(f"it lists no size and hash of {missing[0]}")
        for name, index in self.indexes.items():
            if index.bytes != sum(self.files[part].bytes for part in index.parts):
                raise HubArtefactError(f"the parts of index {name!r} do not add up to its {index.bytes} bytes")
        if self.default_index is not None and self.default_index not in self.indexes:
            raise HubArtefactError(f"its default index {self.default_index!r} is not among its indexes")
        if self.candidate_source is not None:
            described = self.files.get(f"{BM25_FOLDER}/{BM25_FILE}")
            if described is None or described.bytes > _LARGEST_BM25_FILE:
                raise HubArtefactError(f"its candidate source needs {BM25_FOLDER}/{BM25_FILE}, a small file")
        if self.store is not None:
            self._check_store(self.store)

    def _check_store(self, store: dict[str, Any]) -> None:
        if store["count"] != self.rows or store["fingerprint"] != self.fingerprints.get("passages"):
            raise HubArtefactError("the passages are not those that the fingerprints name")
        _count(store["max_length"], _LONGEST_PASSAGE)
        _check_special_tokens(dict(store["special_tokens"]))
        for name, number in store["statistics"].items():
            _text(name), _count(number)
        if store["dtype"] not in ("uint16", "uint32"):
            raise HubArtefactError(f"wordpieces of type {store['dtype']!r}")
        expected = {f"passages/{name}_offsets.bin": 8 * (self.rows + 1) for name in ARRAYS}
        expected |= {f"passages/{name}.bin": self.rows * int(dtype[3:]) // 8 for name, dtype in COLUMNS.items()}
        for name, size in expected.items():
            if name not in self.files or self.files[name].bytes != size:
                raise HubArtefactError(f"{name} must have {size} bytes for {self.rows} rows")
        for name in ARRAYS:
            if f"passages/{name}.bin" not in self.files:
                raise HubArtefactError(f"passages/{name}.bin is missing")


def _check_special_tokens(tokens: dict[str, Any]) -> None:
    """Four ids, and what of a template is not BERT's."""
    separators, differs = tokens.pop("separators", 1), tokens.pop("first_word_differs", False)
    if set(tokens) != {"pad", "cls", "sep", "mask"}:
        raise HubArtefactError(f"its special tokens are {sorted(tokens)[:8]}")
    for number in tokens.values():
        _count(number, _LARGEST_TOKEN)
    if separators not in (1, 2) or type(separators) is not int or type(differs) is not bool:
        raise HubArtefactError(f"its template has {separators!r} separators and first_word_differs {differs!r}")


def _count(value: object, most: int = _MOST_ROWS) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise HubArtefactError(f"{value!r} is no number between 0 and {most}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise HubArtefactError(f"{str(value)[:80]!r} is no short text")
    return value


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise HubArtefactError(f"{str(value)[:80]!r} is not of the form {pattern.pattern}")
    return value


def _sha256(value: object) -> str:
    return _matching(_SHA256, value)
