"""How much a stranger's Parquet file would become when it is read, found without decoding any of it.

A page of 40 bytes may say that it is 2 GB of zeros, a dictionary of one long text may be pointed to by every row, and
the file's footer, which sums it all up, may say something else. So the header of every page is read here, as Arrow
would read it (about 20 microseconds each; published files have one or two pages a column for 1,000 rows), and what
they say must add up to what the footer and the description say.

Thrift's compact encoding is read by hand: a page header has eight fields, and a library's reader would allocate what
a header claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, NoReturn

import pyarrow.parquet as pq

from realm_hf.untrusted.checks import HubArtefactError, human_bytes

__all__ = ["FREE_BYTES", "LARGEST_GROUP", "MOST_TIMES_THE_FILE", "ColumnPages", "decoded_limit", "read_pages"]

FREE_BYTES = 64 << 20
"""What any file may become when it is decoded: a small publication whose rows resemble one another."""
MOST_TIMES_THE_FILE = 64
"""And what each of its bytes may become beside that: text with zstd becomes three to ten times as large, numbers
twice; a file that was made to explode, a million times."""
LARGEST_GROUP = 1 << 30
"""The pages of one row group, which Arrow may hold at once; publishing writes groups of 1,000 rows, a few MB."""

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # kinds of pages; an index page is in no file that Arrow wrote
_PLAIN, _DICTIONARY_PLACES = (0,), (2, 8)
_BYTE_STREAM_SPLIT = 9
_ENCODINGS = (*_PLAIN, *_DICTIONARY_PLACES, _BYTE_STREAM_SPLIT)
"""Where a value is written as it is or as a place in the dictionary. The DELTA ones are not read: one of them gives
each text as the length of what it shares with the text before."""

_WINDOW, _LONGEST_HEADER = 4 << 10, 1 << 20  # bytes; statistics in a header may hold whole texts
_DEEPEST = 4
_TRUE, _FALSE, _BYTE, _LARGEST_INTEGER, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 6, 7, 8, 12  # thrift's types


@dataclass(frozen=True)
class ColumnPages:
    """
    What the pages of a column say, of one row group.

    Args:
        values (`int`): Numbers or texts, missing ones counted.
        bytes (`int`): Of all pages after decompression.
        has_dictionary (`bool`): Whether values may be places in a dictionary.
    """

    values: int
    bytes: int
    has_dictionary: bool


def decoded_limit(file_bytes: int) -> int:
    """The most bytes that the rows of a file of that size may have."""
    return FREE_BYTES + MOST_TIMES_THE_FILE * file_bytes


def read_pages(file: BinaryIO, size: int, column: pq.ColumnChunkMetaData, where: str) -> ColumnPages:
    """
    Read the page headers of one column of one row group.

    Args:
        file (`BinaryIO`): The Parquet file.
        size (`int`): Its bytes.
        column (`pq.ColumnChunkMetaData`): What the footer says of the column; it is not believed.
        where (`str`): The file's name, for messages.

    Raises:
        HubArtefactError: If a header is damaged, lies outside, has an encoding that publishing does not write, or says
            another number of values than the footer.
    """
    position: int = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < position:
        position = column.dictionary_page_offset
    end = position + column.total_compressed_size
    name = f"column {column.path_in_schema} of {where}"
    if column.file_path or not 0 < position <= end <= size:
        raise HubArtefactError(f"{name} lies at bytes {position} to {end} of a file of {size}: it is damaged.")
    values = decoded = 0
    has_dictionary = False
    first = True
    while position < end:
        header, length = _read_header(file, position, end, name)
        uncompressed, compressed = _number(header, 2, name), _number(header, 3, name)
        position += length + compressed
        if position > end:
            raise HubArtefactError(f"a page of {name} has {compressed} bytes, more than the column: it is damaged.")
        decoded += uncompressed
        kind = _number(header, 1, name)
        if kind == _DICTIONARY and first:
            has_dictionary = True
        elif kind in (_DATA, _DATA_V2):
            page = header.get(5 if kind == _DATA else 8)
            encoding = page.get(2 if kind == _DATA else 4) if isinstance(page, dict) else None
            if not isinstance(page, dict) or encoding not in _ENCODINGS:
                raise HubArtefactError(
                    f"a page of {name} has encoding {encoding}, which is not read from strangers: publish again."
                )
            values += _number(page, 1, name)
        else:
            raise HubArtefactError(f"a page of {name} is of kind {kind}, which belongs to no column: it is damaged.")
        first = False
    if values != column.num_values:
        raise HubArtefactError(f"the pages of {name} hold {values} values, its footer says {column.num_values}.")
    return ColumnPages(values, decoded, has_dictionary)


Fields = dict[int, "int | Fields"]


def _number(fields: Fields, number: int, name: str) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise HubArtefactError(f"a page header of {name} has {value!r} as field {number}: it is damaged.")
    return value


def _read_header(file: BinaryIO, position: int, end: int, name: str) -> tuple[Fields, int]:
    """The fields of the header at `position`, and its length."""
    window = _WINDOW
    while True:
        file.seek(position)
        reader = _Compact(file.read(min(window, end - position)))
        try:
            return reader.struct(), reader.at
        except IndexError:
            if window >= min(_LONGEST_HEADER, end - position):
                raise HubArtefactError(f"a page header of {name} at byte {position} is cut or too long.") from None
            window = _LONGEST_HEADER
        except _CompactError as error:
            raise HubArtefactError(f"a page header of {name} at byte {position} is damaged: {error}.") from None


class _CompactError(ValueError):
    """Bytes that a page header does not have."""


class _Compact:
    """Thrift's compact encoding, as far as page headers go: integers, truth values, byte strings (passed over) and
    structures. Fields must ascend, so that there is one way to read what is there.
    """

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def struct(self, depth: int = 0) -> Fields:
        """The fields by number; an `IndexError` if the bytes end before."""
        if depth > _DEEPEST:
            self._refuse("it is nested")
        fields: Fields = {}
        last = 0
        while (head := self._byte()) != 0:
            delta, kind = head >> 4, head & 15
            number = last + delta if delta else self._integer()
            if number <= last:
                self._refuse("its fields do not ascend")
            last = number
            if kind in (_TRUE, _FALSE):
                fields[number] = int(kind == _TRUE)
            elif kind == _BYTE:
                fields[number] = self._byte()
            elif _BYTE < kind <= _LARGEST_INTEGER:
                fields[number] = self._integer()
            elif kind in (_DOUBLE, _BINARY):
                self._skip(8 if kind == _DOUBLE else self._varint())
            elif kind == _STRUCT:
                fields[number] = self.struct(depth + 1)
            else:
                self._refuse(f"it has a field of type {kind}")
        return fields

    def _byte(self) -> int:
        value = self.content[self.at]
        self.at += 1
        return value

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.content):
            raise IndexError

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise _CompactError("it has a number without end")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _refuse(self, why: str) -> NoReturn:
        raise _CompactError(why)


def refuse_explosion(decoded: int, file_bytes: int, where: str) -> None:
    """Raise a `HubArtefactError` if a file's rows are larger than [`decoded_limit`]."""
    limit = decoded_limit(file_bytes)
    if decoded > limit:
        raise HubArtefactError(
            f"{where} of {human_bytes(file_bytes)} would become more than {human_bytes(limit)} when it is read: it "
            "was made to take memory, and is refused."
        )
