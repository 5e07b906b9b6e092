"""A window that moves over a file from front to back: what is parsed is in memory, the rest is not."""

from __future__ import annotations

import os
from typing import BinaryIO

__all__ = ["ByteWindow", "CutFileError"]

_BYTES = 4 << 20


class CutFileError(ValueError):
    """The file ends within what was begun."""


class ByteWindow:
    """
    The bytes of a file from its present position on.

    Args:
        file (`BinaryIO`): A regular file.

    Attributes:
        size (`int`): Bytes of the file.
        buffer (`bytes`): The window.
        at (`int`): The next byte, in the window.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._base = file.tell()
        self.size = os.fstat(file.fileno()).st_size
        self.buffer = b""
        self.at = 0

    @property
    def position(self) -> int:
        """The next byte, in the file."""
        return self._base + self.at

    def fill(self, count: int) -> None:
        """Have `count` bytes in the window, or all that are left of the file."""
        if len(self.buffer) - self.at < count:
            self._base += self.at
            self.buffer = self.buffer[self.at :] + self._file.read(max(_BYTES, count))
            self.at = 0

    def take(self, count: int) -> bytes:
        """
        The next `count` bytes.

        Raises:
            CutFileError: If the file has fewer.
        """
        start = self.position
        if start + count > self.size:
            raise CutFileError(f"the file ends at byte {self.size}, within {count} bytes from {start} on: it is cut")
        self.fill(count)
        taken = self.buffer[self.at : self.at + count]
        self.at += count
        return taken

    def line(self, longest: int) -> bytes | None:
        """The bytes up to the next line feed, which is passed over; `None` if there is none within `longest`."""
        self.fill(longest)
        end = self.buffer.find(b"\n", self.at, self.at + longest)
        return None if end < 0 else self.take(end + 1 - self.at)[:-1]

    def peek(self, position: int, count: int) -> bytes:
        """`count` bytes from another position of the file, fewer at its end; the window stays where it is."""
        return os.pread(self._file.fileno(), count, position)
