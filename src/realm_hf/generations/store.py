"""The store of index generations: immutable directories that appear complete or never.

    root/step-500-1a2b3c4d/   embeddings.npy [N, D], index.faiss, generation.json; without index.faiss the embeddings
                              are searched exactly
    root/quarantine/          generations that some rank could not open, each with the reason
    root/.tmp-*               being written; a collector removes those whose writer is gone

Readers hold a lease (a shared lock on `generation.json`) and map the files; [`GenerationStore.collect`] leaves leased
generations alone. A truncated file under a map kills the process, so sizes are checked before anything is mapped.
"""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from transformers.utils import logging

from realm_hf.generations.files import check_hash, check_pair, check_sizes, map_files, write_array
from realm_hf.generations.manifest import (
    EMBEDDINGS_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    NAME_PATTERN,
    PROTOCOL,
    CorruptGenerationError,
    FileRecord,
    GenerationError,
    GenerationInfo,
    GenerationNotFoundError,
)
from realm_hf.index.base import saveable
from realm_hf.index.faiss_search import IndexLike, as_search_index
from realm_hf.index.file import index_file_bytes
from realm_hf.storage.directories import FileLock, StagedDirectory, move_into, remove_stale_staging, retire_directory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import file_sha256, fsync_path, read_json, write_json
from realm_hf.storage.leases import take_lease

if TYPE_CHECKING:
    import numpy as np

    from realm_hf.index.base import SearchIndex

__all__ = [
    "CorruptGenerationError",
    "Generation",
    "GenerationError",
    "GenerationInfo",
    "GenerationNotFoundError",
    "GenerationStore",
]
logger = logging.get_logger(__name__)
_QUARANTINE = "quarantine"
_SPARE_BYTES = 16 << 20


class Generation:
    """
    An open generation: memory-mapped, and leased until [`close`], garbage collection or the end of the process.

    Attributes:
        info (`GenerationInfo`): Its record.
        path (`Path`): Its directory.
        embeddings (`np.ndarray` of shape `[N, D]`): Read-only map.
        index ([`SearchIndex`]): FAISS's, a read-only map; changing it aborts the process. An [`ExactIndex`] over the
            embeddings where there is no index file.
    """

    def __init__(
        self, info: GenerationInfo, path: Path, embeddings: np.ndarray, index: SearchIndex, lease: FileLock | None
    ):
        self.info = info
        self.path = path
        self.embeddings = embeddings
        self.index = index
        self._lease = lease

    @property
    def name(self) -> str:
        """The directory's name, `step-<snapshot_step>-<8 hexadecimal digits>`."""
        return self.info.name

    def close(self) -> None:
        """Give the lease back. The maps stay valid for whoever still holds them, even if the files are removed."""
        if self._lease is not None:
            self._lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GenerationStore:
    """
    A directory of generations.

    Args:
        root (`str` or `Path`): The directory; made at the first write.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def write(
        self,
        embeddings: np.ndarray,
        index: IndexLike | None,
        *,
        snapshot_step: int,
        passages_fingerprint: str,
        tokenizer_fingerprint: str,
        embedder_fingerprint: str,
        factory: str,
        epoch: int = 0,
        build_seconds: float = 0.0,
        encode_dtype: str = "float32",
        place: Path | None = None,
    ) -> Generation:
        """
        Commit a generation: temporary directory, fsync of files and directory, one rename, fsync of the parent.

        Args:
            embeddings (`np.ndarray` of shape `[N, D]`, float32 or float16): Stored as they are; may be memory-mapped.
            index ([`SearchIndex`] or `faiss.Index`, *optional*): Built from them; `None` if the embeddings themselves
                are what is searched.
            snapshot_step (`int`): Optimizer step of the embedder's weights.
            passages_fingerprint (`str`): Of the passages whose rows the ids are.
            tokenizer_fingerprint (`str`): Of the tokenizer.
            embedder_fingerprint (`str`): Of the embedder's weights.
            factory (`str`): The factory string of `index`.
            epoch (`int`, *optional*, defaults to 0): The trainer's epoch.
            build_seconds (`float`, *optional*, defaults to 0.0): Time the build took.
            encode_dtype (`str`, *optional*, defaults to `"float32"`): In what the embeddings were computed.
            place (`Path`, *optional*): The directory of the trainer that builds; see [`StagedDirectory`].

        Returns:
            [`Generation`]: The committed generation, open.

        Raises:
            ValueError: If embeddings and index do not fit each other, the index cannot be saved, or an embedding
                holds NaN.
            OSError: If the disk is full or read-only. What was written of it is removed, all else is untouched.
        """
        stored = None if index is None else saveable(as_search_index(index))
        check_pair(embeddings, stored)
        name = f"step-{snapshot_step}-{uuid.uuid4().hex[:8]}"
        self.require_space(embeddings.nbytes + (0 if stored is None else index_file_bytes(stored)))
        with (
            explain_os_errors(f"write generation {name}", self.root),
            StagedDirectory(self.root / name, place=place) as staged,
        ):
            with staged.file(EMBEDDINGS_FILE) as embeddings_file:
                write_array(embeddings, embeddings_file.write)
            written = [embeddings_file]
            if stored is not None:
                with staged.file(INDEX_FILE) as index_file:
                    stored.write(index_file.write)
                written.append(index_file)
            info = GenerationInfo(
                name=name,
                protocol=PROTOCOL,
                snapshot_step=snapshot_step,
                epoch=epoch,
                passages_fingerprint=passages_fingerprint,
                tokenizer_fingerprint=tokenizer_fingerprint,
                embedder_fingerprint=embedder_fingerprint,
                rows=len(embeddings),
                dimension=embeddings.shape[1],
                dtype=embeddings.dtype.name,
                metric="inner_product",
                factory=factory,
                builder_host=socket.gethostname(),
                builder_pid=os.getpid(),
                build_seconds=build_seconds,
                created=time.time(),
                files={file.path.name: FileRecord(file.bytes, file.sha256) for file in written},
                encode_dtype=encode_dtype,
            )
            with staged.file(MANIFEST_FILE) as manifest:
                manifest.write(info.to_json())
        return self.open(name)

    def require_space(self, needed: int) -> None:
        """
        Refuse a write that would fill the file system; a builder asks before it starts to embed.

        Args:
            needed (`int`): Bytes that will be written.

        Raises:
            OSError: With `errno.ENOSPC`, saying what is needed and what is free.
        """
        existing = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed + _SPARE_BYTES:
            raise OSError(
                errno.ENOSPC,
                f"a generation needs {needed / 2**20:.1f} MiB and {_SPARE_BYTES >> 20} MiB to spare, but only "
                f"{free / 2**20:.1f} MiB are free: collect old generations or move the run directory",
                str(self.root),
            )

    def list(self) -> list[GenerationInfo]:
        """The complete generations, oldest snapshot first; an unreadable manifest is left out with a warning."""
        found = []
        for path in self.root.glob("step-*"):
            if NAME_PATTERN.fullmatch(path.name):
                try:
                    found.append(self._read_info(path.name))
                except GenerationNotFoundError:
                    continue  # collected between the two lines
                except GenerationError as error:
                    logger.warning("Left out of the list: %s", error)
        return sorted(found, key=lambda info: info.recency)

    def open(self, name: str, verify: Literal["sizes", "sha256"] = "sizes") -> Generation:
        """
        Lease, check and map a generation. Safe in a background thread. Another process's lock is waited for up to
        30 s; after that the generation is read without a lease, with a warning.

        Args:
            name (`str`): The generation's name.
            verify (`str`, *optional*, defaults to `"sizes"`): `"sizes"` compares sizes and headers and takes
                milliseconds; `"sha256"` also reads and hashes every byte (about 1.2 GB/s).

        Returns:
            [`Generation`]

        Raises:
            GenerationNotFoundError: If there is no such generation, or it was collected meanwhile.
            CorruptGenerationError: If a file is missing, truncated, changed (found with `"sha256"` only), or does not
                fit the manifest.
        """
        if verify not in ("sizes", "sha256"):
            raise ValueError(f"verify is {verify!r}: 'sizes' or 'sha256' was expected.")
        path = self._path(name)
        try:
            lease = take_lease(path / MANIFEST_FILE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._not_found(name) from error
        try:
            info = self._read_info(name)
            check_sizes(path, info)
            if verify == "sha256":
                for file, record in info.files.items():
                    check_hash(path / file, file_sha256(path / file), record)
            embeddings, index = map_files(path, info)
        except BaseException:
            if lease is not None:
                lease.release()
            raise
        return Generation(info, path, embeddings, index, lease)

    def collect(
        self, keep: Iterable[str] = (), *, keep_newest: int = 1, place: Path | None = None
    ) -> builtins.list[str]:
        """
        Remove generations that nobody needs, and temporary directories of dead writers.

        Kept are: those named in `keep`, those with a lease, and the newest `keep_newest`, which may have been proposed
        but not opened yet. Of quarantined ones only the newest keeps its files.

        Args:
            keep (`Iterable[str]`, *optional*): Names: what is served, and what kept checkpoints refer to.
            keep_newest (`int`, *optional*, defaults to 1): How many of the newest stay in any case.
            place (`Path`, *optional*): The collecting trainer's own directory, through which it removes; see
                [`StagedDirectory`].

        Returns:
            `list[str]`: The names of the removed generations.
        """
        infos = self.list()
        kept = {*keep, *(info.name for info in infos[max(0, len(infos) - keep_newest) :])}
        removed = []
        with explain_os_errors("collect generations", self.root):
            for info in infos:
                if info.name in kept:
                    continue
                path = self._path(info.name)
                try:
                    with FileLock(path / MANIFEST_FILE, exclusive=True, wait=False):
                        retire_directory(path, place)
                except (BlockingIOError, FileNotFoundError):
                    continue  # leased, or another collector was faster
                removed.append(info.name)
            remove_stale_staging(self.root)
            quarantined = sorted((self.root / _QUARANTINE).glob("step-*/"), key=lambda path: path.stat().st_mtime)
            for path in quarantined[:-1]:
                with suppress(FileNotFoundError):
                    retire_directory(path, place)
        return removed

    def quarantine(self, name: str, why: str, place: Path | None = None) -> None:
        """
        Take a generation out of the list, with the reason beside it. Processes that mapped it are not disturbed.

        Args:
            name (`str`): The generation; one that is gone already is left at that.
            why (`str`): The reason, written to `quarantine/<name>.json`.
            place (`Path`, *optional*): The trainer's own directory, through which it goes; see [`StagedDirectory`].
        """
        source, folder = self._path(name), self.root / _QUARANTINE
        if not source.exists():
            return
        with explain_os_errors(f"quarantine generation {name}", folder):
            folder.mkdir(exist_ok=True)
            note = {"name": name, "why": why, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
            write_json(folder / f"{name}.json", note, place=place)
            if place is not None:
                source = move_into(place, source, name)
            source.rename(folder / name)
            os.utime(folder / name)
            fsync_path(folder)
            fsync_path(self.root)
        logger.warning("Generation %s is quarantined in %s: %s", name, folder, why)

    def quarantined(self) -> dict[str, str]:
        """Name -> reason of the generations that were quarantined."""
        notes = map(read_json, (self.root / _QUARANTINE).glob("step-*.json"))
        return {note["name"]: note["why"] for note in notes}

    def _path(self, name: str) -> Path:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} is not a generation's name (step-<step>-<8 hexadecimal digits>).")
        return self.root / name

    def _not_found(self, name: str) -> GenerationNotFoundError:
        why = self.quarantined().get(name)
        detail = f"it was quarantined ({why})" if why else f"it has {[info.name for info in self.list()]}"
        return GenerationNotFoundError(f"Generation {name} is not in {self.root}: {detail}.")

    def _read_info(self, name: str) -> GenerationInfo:
        path = self._path(name) / MANIFEST_FILE
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise GenerationNotFoundError(f"{path} is not there: was the generation collected?") from error
        return GenerationInfo.from_json(content, path)
