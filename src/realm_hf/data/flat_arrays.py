"""Ragged integer rows in two flat files, memory-mapped: `<name>.bin` (values) and `<name>_offsets.bin` (int64).

An Arrow list column was rejected: its 32-bit offsets overflow at 13M passages of 288 wordpieces, a row costs a Python
round trip, and a corrupt Arrow file can crash the process that maps it. A flat file costs two offsets a row.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from realm_hf.storage.files import HashingFile

OFFSET_DTYPE = np.dtype(np.int64)


class RaggedWriter:
    """
    Appends rows to the two files of a ragged array in bounded memory, hashing them on the way.

    Args:
        directory (`Path`): An existing directory.
        name (`str`): Stem of the two files.
        dtype (`np.dtype`): Type of the values as stored.
    """

    def __init__(self, directory: Path, name: str, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.rows = 0
        self.values = 0
        # Open until `close`: the rows come over many calls.
        self._rows, self._offsets = (HashingFile(directory / f"{name}{end}.bin") for end in ("", "_offsets"))
        self._offsets.write(np.zeros(1, OFFSET_DTYPE).tobytes())

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """
        Append `len(lengths)` rows.

        Args:
            values (`np.ndarray` of shape `[sum(lengths)]`): The rows' values, one row after the other.
            lengths (`np.ndarray` of shape `[rows]`): How many values each row has.

        Raises:
            ValueError: If the lengths do not add up to the values, or a value does not fit the stored type.
        """
        if int(lengths.sum()) != len(values):
            raise ValueError(f"{self._rows.path.name}: {len(values)} values for rows of {int(lengths.sum())} in all")
        if len(values) and (values.min() < 0 or values.max() > np.iinfo(self.dtype).max):
            raise ValueError(f"{self._rows.path.name}: values {values.min()}..{values.max()} do not fit {self.dtype}")
        self._rows.write(values.astype(self.dtype, copy=False).tobytes())
        self._offsets.write((self.values + np.cumsum(lengths, dtype=OFFSET_DTYPE)).tobytes())
        self.rows += len(lengths)
        self.values += len(values)

    def close(self) -> dict[str, dict[str, int | str]]:
        """Flush to the disk and return `{file name: {"bytes", "sha256"}}`."""
        files = (self._rows, self._offsets)
        for file in files:
            file.close()
        return {file.path.name: {"bytes": file.bytes, "sha256": file.sha256} for file in files}


class RaggedArray:
    """
    Read-only view of the two files that a [`RaggedWriter`] wrote; nothing is read until a row is asked for.

    Args:
        directory (`Path`): Where the files are.
        name (`str`): Stem of the two files.
        dtype (`np.dtype`): Type of the values as stored.

    Attributes:
        values (`np.ndarray` of shape `[total]`): All rows, memory-mapped.
        offsets (`np.ndarray` of shape `[rows + 1]`, int64): Row `i` is `values[offsets[i] : offsets[i + 1]]`.
    """

    def __init__(self, directory: Path, name: str, dtype: np.dtype) -> None:
        self.buffer: bytes | mmap.mmap
        self.values: np.ndarray
        self.offsets: np.ndarray
        self.buffer, self.values = _map_file(directory / f"{name}.bin", dtype)
        _, self.offsets = _map_file(directory / f"{name}_offsets.bin", OFFSET_DTYPE)
        if not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(
                f"{directory / name}_offsets.bin does not describe {name}.bin ({len(self.values)} values): the "
                "files are damaged or belong to different builds; build the store again"
            )

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray], dtype: np.dtype) -> "RaggedArray":
        """
        A few rows in memory instead of in files.

        Args:
            rows (sequence of `np.ndarray`): Values of each row.
            dtype (`np.dtype`): Type of the values.
        """
        values = np.concatenate([np.zeros(0, dtype), *rows]).astype(dtype, copy=False)
        return cls.from_flat(values, np.cumsum([0, *map(len, rows)], dtype=OFFSET_DTYPE))

    @classmethod
    def from_flat(cls, values: np.ndarray, offsets: np.ndarray) -> "RaggedArray":
        """
        Rows in memory that are one array already.

        Args:
            values (`np.ndarray` of shape `[total]`): All rows.
            offsets (`np.ndarray` of shape `[rows + 1]`, int64): Where each begins.
        """
        array = cls.__new__(cls)
        array.values, array.offsets, array.buffer = values, offsets, values.tobytes()
        return array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Row `row` as a read-only view of the map, in the stored type."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """How many values each of `rows` has, int64."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def contains(self, needle: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """
        Which rows hold `needle` as a run of consecutive values.

        The search runs in C over the map's bytes; a hit that is not aligned to a value is passed over.

        Args:
            needle (`np.ndarray` of shape `[n]`): Values to look for, n > 0.
            rows (`np.ndarray` of shape `[R]`): Row numbers.

        Returns:
            `np.ndarray` of shape `[R]`: Booleans.
        """
        width = self.values.itemsize
        if needle.min() < 0 or needle.max() > np.iinfo(self.values.dtype).max:
            return np.zeros(len(rows), bool)
        wanted = needle.astype(self.values.dtype).tobytes()
        bounds = zip((self.offsets[rows] * width).tolist(), (self.offsets[rows + 1] * width).tolist(), strict=True)
        return np.fromiter((find_aligned(self.buffer, wanted, a, b, width) >= 0 for a, b in bounds), bool, len(rows))


def find_aligned(haystack: "bytes | mmap.mmap", needle: bytes, start: int, stop: int, width: int) -> int:
    """Byte position of `needle` in `haystack[start:stop]` at a multiple of `width` from `start`, or -1."""
    position = haystack.find(needle, start, stop)
    while position >= 0 and (position - start) % width:
        position = haystack.find(needle, position + 1, stop)
    return position


def scatter_rows(
    target: np.ndarray, columns: np.ndarray, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> None:
    """
    Copy ragged rows into a padded matrix: `target[n, columns[n] : columns[n] + lengths[n]] = values[starts[n] : ...]`.

    Args:
        target (`np.ndarray` of shape `[N, L]`): Written in place.
        columns (`np.ndarray` of shape `[N]`): First column of each row's copy.
        values (`np.ndarray` of shape `[total]`): Flat source.
        starts (`np.ndarray` of shape `[N]`): First source index of each row.
        lengths (`np.ndarray` of shape `[N]`): How many values each row copies.
    """
    rows = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target[rows, columns[rows] + within] = values[starts[rows] + within]


def map_flat(path: Path, dtype: np.dtype) -> np.ndarray:
    """The numbers of a flat file as a read-only map, shared by all processes that map it."""
    return _map_file(path, dtype)[1]


def _map_file(path: Path, dtype: np.dtype) -> tuple["bytes | mmap.mmap", np.ndarray]:
    """Map a file read-only. An empty file, which cannot be mapped, becomes an empty array."""
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise ValueError(
            f"{path} has {size} bytes, which is not a whole number of {dtype} values: the file is damaged"
        )
    if size == 0:
        return b"", np.zeros(0, dtype)
    with path.open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return buffer, np.frombuffer(buffer, dtype)
