"""`block_records.npy`: the passages of the former transformers port, an object array of `bytes` that NumPy pickled.

`np.load(allow_pickle=True)` would run whatever the file says. Here the header is matched against the one form that
NumPy writes for such an array, and the pickle behind it is read by [`read_texts`], which calls nothing.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa

from realm_hf.legacy.restricted_pickle import PickleRefusedError, read_texts

__all__ = ["BLOCK_RECORDS_FILE", "BlockRecords", "BlockRecordsError"]

BLOCK_RECORDS_FILE = "block_records.npy"
MAX_RECORDS = 1 << 26
"""Most records that are read, five times the published corpus: each costs up to 24 bytes of memory."""

_MAGIC = b"\x93NUMPY\x01\x00"  # later versions of the format have headers that no such array needs
_HEADER = re.compile(rb"\{'descr': '\|O', 'fortran_order': (?:False|True), 'shape': \((\d{1,18}),\), \} *\n")
_LONGEST_HEADER = 1024


class BlockRecordsError(ValueError):
    """The file is no array of texts, or is damaged. Nothing in it was executed."""


class BlockRecords:
    """
    The records of a `block_records.npy`, read without unpickling.

    Opening reads the header. [`batches`] streams through the file, in memory that grows by 8 bytes a record.

    Args:
        path (`str` or `Path`): The file.

    Attributes:
        path (`Path`): The file.
        count (`int`): How many records its header promises.

    Raises:
        OSError: If it cannot be read.
        BlockRecordsError: If it is no regular file, or its header is not that of a one-dimensional object array.

    Example:
    ```python
    >>> records = BlockRecords("old/block_records.npy")
    >>> for texts in records.batches():
    ...     print(len(texts), texts[0][:40])
    ```
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        status = self.path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, without end
            raise BlockRecordsError(f"{self.path} is no regular file: block records are read from one.")
        with self.path.open("rb") as file:
            self.count, self._start = self._read_header(file.read(len(_MAGIC) + 2 + _LONGEST_HEADER))
        if self.count > min(MAX_RECORDS, status.st_size):
            raise BlockRecordsError(
                f"{self.path} claims {self.count} records in {status.st_size} bytes; at most {MAX_RECORDS} are read, "
                "and none takes less than a byte: the file is damaged."
            )

    def __len__(self) -> int:
        return self.count

    def batches(self) -> Iterator[list[bytes]]:
        """
        The records in order, some thousand at once.

        Yields:
            `list[bytes]`: Records as stored; an array of `str` gives UTF-8.

        Raises:
            BlockRecordsError: If the file is damaged or holds anything but texts. What is behind the last record is
                checked after that record was yielded: throw away what came before an error.
        """
        with self.path.open("rb") as file:
            file.seek(self._start)
            try:
                yield from read_texts(file, self.count)
            except PickleRefusedError as error:
                raise BlockRecordsError(
                    f"{self.path} was refused, and nothing in it executed: {error}. Get the file again from where it "
                    "was published; as an array of Python bytes, `np.save` writes it rightly."
                ) from error

    def columns(self, errors: Literal["strict", "replace"] = "strict") -> Iterator[pa.Array]:
        """
        The records as Arrow columns, some thousand rows each, all checked to be UTF-8.

        Args:
            errors (`str`, *optional*, defaults to `"strict"`): `"replace"` puts U+FFFD where bytes are no UTF-8.

        Yields:
            `pa.Array`: Of type `large_string`.

        Raises:
            BlockRecordsError: As for [`batches`]; or names the first record that is no UTF-8.
        """
        row = 0
        for texts in self.batches():
            try:
                yield pa.array(texts, pa.large_binary()).cast(pa.large_string())
            except pa.ArrowInvalid as error:
                if errors == "strict":
                    wrong = next(place for place, text in enumerate(texts) if not _is_utf8(text))
                    raise BlockRecordsError(
                        f"Record {row + wrong} of {self.path} is no UTF-8 ({texts[wrong][:40]!r}): read it with "
                        "errors='replace' (`--errors replace`), which puts U+FFFD there."
                    ) from error
                yield pa.array([text.decode(errors="replace") for text in texts], pa.large_string())
            row += len(texts)

    def _read_header(self, head: bytes) -> tuple[int, int]:
        start = len(_MAGIC) + 2
        length = int.from_bytes(head[len(_MAGIC) : start], "little")
        found = _HEADER.fullmatch(head, start, start + length) if len(head) >= start + length else None
        if not head.startswith(_MAGIC) or found is None:
            raise BlockRecordsError(
                f"{self.path} does not begin like an object array of one dimension ({head[:64]!r}): it is no "
                f"{BLOCK_RECORDS_FILE} as `np.save` writes it."
            )
        return int(found[1]), start + length


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
