"""`generation.json`: what a generation is, from what it was built, and the size and SHA-256 of each of its files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from realm_hf.storage.files import json_sha256

__all__ = [
    "EMBEDDINGS_FILE",
    "INDEX_FILE",
    "MANIFEST_FILE",
    "PROTOCOL",
    "CorruptGenerationError",
    "FileRecord",
    "GenerationError",
    "GenerationInfo",
    "GenerationNotFoundError",
    "newest_generation",
]

PROTOCOL = 1
EMBEDDINGS_FILE = "embeddings.npy"
INDEX_FILE = "index.faiss"
MANIFEST_FILE = "generation.json"
NAME_PATTERN = re.compile(r"step-(\d+)-[0-9a-f]{8}")


class GenerationError(RuntimeError):
    """A generation cannot be used as asked; the message says why and what to do."""


class GenerationNotFoundError(GenerationError):
    """There is no such generation (any more)."""


class CorruptGenerationError(GenerationError):
    """A generation's files are not what was written."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a generation.

    Args:
        bytes (`int`): Its size.
        sha256 (`str`): Of its content, in hexadecimal digits.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class GenerationInfo:
    """
    The record of one generation.

    Args:
        name (`str`): `step-<snapshot_step>-<8 hexadecimal digits>`, the directory's name.
        protocol (`int`): Version of this format.
        snapshot_step (`int`): Optimizer step of the embedder's weights.
        epoch (`int`): The trainer's epoch (fences off generations of a trainer that was replaced).
        passages_fingerprint (`str`): Of the passages whose rows the ids are.
        tokenizer_fingerprint (`str`): Of the tokenizer they were encoded with.
        embedder_fingerprint (`str`): [`state_fingerprint`] of the embedder's weights.
        rows (`int`): N.
        dimension (`int`): D.
        dtype (`str`): Of the stored embeddings. float16 rounds entries between 4 and 8 to multiples of 0.004.
        metric (`str`): Always `"inner_product"`.
        factory (`str`): The FAISS factory string.
        builder_host (`str`): The host that built it.
        builder_pid (`int`): The process that built it.
        build_seconds (`float`): Time from reading the snapshot to writing the generation.
        created (`float`): Unix time, in seconds.
        files (`dict[str, FileRecord]`): Each file's size and hash, the manifest apart.
        encode_dtype (`str`): In what the embeddings were computed: `"float32"`, `"tf32"` or `"bfloat16"`. Manifests
            from before there was a choice do not say it.
    """

    name: str
    protocol: int
    snapshot_step: int
    epoch: int
    passages_fingerprint: str
    tokenizer_fingerprint: str
    embedder_fingerprint: str
    rows: int
    dimension: int
    dtype: str
    metric: str
    factory: str
    builder_host: str
    builder_pid: int
    build_seconds: float
    created: float
    files: dict[str, FileRecord]
    encode_dtype: str = "float32"

    @property
    def total_bytes(self) -> int:
        """What the generation's files take on disk."""
        return sum(record.bytes for record in self.files.values())

    @property
    def recency(self) -> tuple[int, int, float]:
        """What says which of two generations is the newer: the trainer's epoch, then the step, then the time."""
        return self.epoch, self.snapshot_step, self.created

    def to_json(self) -> bytes:
        """The manifest; its last entry is the hash of all others, so that a flipped byte in it is found too."""
        content = asdict(self)
        return json.dumps({**content, "sha256": json_sha256(content)}, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, path: Path) -> Self:
        """
        Read a manifest.

        Args:
            text (`bytes`): Its content.
            path (`Path`): Where it was read, for messages and to compare the name.

        Raises:
            CorruptGenerationError: If it is not a whole manifest of that name.
            GenerationError: If it is of a protocol that this version does not know.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            digest = content.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptGenerationError(f"{path} is not a manifest of a generation: rebuild it.") from error
        if content.get("protocol") != PROTOCOL:
            raise GenerationError(
                f"{path} has protocol {content.get('protocol')!r}, this version reads {PROTOCOL}: use the version of "
                "realm_hf that wrote it, or rebuild the generation."
            )
        if digest != json_sha256(content):
            raise CorruptGenerationError(f"{path} does not match its own SHA-256: it was changed; rebuild it.")
        missing = {field.name for field in fields(cls)} ^ {"encode_dtype", *content}
        if missing or content["name"] != path.parent.name:
            raise CorruptGenerationError(
                f"{path} does not describe {path.parent.name} (name {content.get('name')!r}, fields {sorted(missing)} "
                "missing or unknown): was the directory renamed?"
            )
        try:
            content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
        except (TypeError, AttributeError) as error:
            raise CorruptGenerationError(f"{path} does not list its files ({error}): rebuild it.") from error
        return cls(**content)


def newest_generation(
    infos: Iterable[GenerationInfo], *, epoch: int | None = None, factory: str | None = None
) -> GenerationInfo | None:
    """
    The newest of some complete generations: the one rule, wherever a run's "newest" is spoken of.

    Args:
        infos (`Iterable[GenerationInfo]`): As [`GenerationStore.list`] gives them.
        epoch (`int`, *optional*): Only those of this trainer; a trainer passes over what another one left.
        factory (`str`, *optional*): Only those with this FAISS factory.

    Returns:
        [`GenerationInfo`], *optional*: That with the highest [`GenerationInfo.recency`]; `None` if there is none.
    """
    wanted = (
        info
        for info in infos
        if (epoch is None or info.epoch == epoch) and (factory is None or info.factory == factory)
    )
    return max(wanted, key=lambda info: info.recency, default=None)
