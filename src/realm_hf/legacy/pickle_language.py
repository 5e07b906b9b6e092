"""The part of the pickle language that NumPy's pickles of an object array of texts are written in, as tables."""

import pickletools
from enum import Enum, auto

BYTES = {ord("C"): 1, ord("B"): 4, 0x8E: 8, ord("U"): 1, ord("T"): 4}  # opcode: bytes of its length field
STRINGS = {0x8C: 1, ord("X"): 4, 0x8D: 8}
MEMOS = {0x94: 0, ord("q"): 1, ord("r"): 4}
GETS = {ord("h"): 1, ord("j"): 4}
TUPLES = {ord(")"): 0, 0x85: 1, 0x86: 2, 0x87: 3}
CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False}
INTEGERS = {ord("K"): 1, ord("M"): 2, ord("J"): 4}
OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class Symbol(Enum):
    """What the stack holds beside numbers, tuples and texts."""

    RECONSTRUCT = auto()
    NDARRAY = auto()
    DTYPE_CLASS = auto()
    ENCODE = auto()
    BYTES_CLASS = auto()
    MARK = auto()
    DTYPE = auto()
    ARRAY = auto()
    LIST = auto()
    FILLED_ARRAY = auto()


GLOBALS = {
    (b"numpy.core.multiarray", b"_reconstruct"): Symbol.RECONSTRUCT,
    (b"numpy._core.multiarray", b"_reconstruct"): Symbol.RECONSTRUCT,
    (b"numpy", b"ndarray"): Symbol.NDARRAY,
    (b"numpy", b"dtype"): Symbol.DTYPE_CLASS,
    # Protocol 2 has no bytes: Python 3 writes them as `_codecs.encode(text, "latin1")`, and empty ones as `bytes()`.
    (b"_codecs", b"encode"): Symbol.ENCODE,
    (b"__builtin__", b"bytes"): Symbol.BYTES_CLASS,
}
