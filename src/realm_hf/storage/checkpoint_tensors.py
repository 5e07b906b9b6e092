"""Finds one tensor in a checkpoint without reading the others: an old index of 6.8 GB lies in a model's weights file.

Both formats keep a tensor's numbers in one piece. What is needed is where that piece lies, and that the file's own
words about it are true: a shape that is larger than the file, a compressed or packed archive, or a pickle that names
anything but tensors is refused before `torch` sees it.
"""

from __future__ import annotations

import json
import math
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["CheckpointRefusedError", "StoredTensor", "check_archive", "find_tensor"]

_LARGEST_PICKLE = 64 << 20
_MOST_ENTRIES = 1 << 17
_FREE_OPCODES, _MOST_OPCODES_A_TENSOR, _MOST_OPCODES = 1000, 200, 1 << 21
"""Of a pickle: torch writes about 40 for a tensor, each tensor has an entry of its own in the archive, and 2 million
are read in four seconds."""
_ROWS_A_CHUNK = 65_536
_SAFETENSORS_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_TORCH_TYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
_TENSOR_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
_NAMING_OPCODES = {"INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ", "NEWOBJ_EX", "OBJ", "PERSID"}


class CheckpointRefusedError(ValueError):
    """A weights file is damaged, or holds what no weights file needs. Nothing of it was executed."""


@dataclass(frozen=True)
class StoredTensor:
    """
    A matrix within a file.

    Args:
        path (`Path`): The file.
        offset (`int`): Its first byte there.
        shape (`tuple[int, ...]`): Its shape; the rows lie one after the other.
        dtype (`np.dtype`): The type of its numbers.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def map(self) -> np.memmap:
        """The whole, memory-mapped and read-only."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)

    def chunks(self, rows: int = _ROWS_A_CHUNK) -> Iterator[np.ndarray]:
        """The matrix some rows at a time. The file is read and not mapped: memory holds one piece."""
        width = math.prod(self.shape[1:])
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, self.shape[0], rows):
                taken = min(rows, self.shape[0] - start)
                piece = np.fromfile(file, self.dtype, taken * width)
                if len(piece) != taken * width:
                    raise CheckpointRefusedError(f"{self.path} became shorter while it was read: get it again.")
                yield piece.reshape(taken, *self.shape[1:])


def find_tensor(path: Path, name: str) -> StoredTensor | None:
    """
    Where a tensor lies in a weights file.

    Args:
        path (`Path`): A `.safetensors` file, or a `.bin` that `torch.save` wrote as a zip archive (since torch 1.6).
        name (`str`): The tensor's name.

    Returns:
        [`StoredTensor`], or `None` if there is none of that name.

    Raises:
        CheckpointRefusedError: If the file is damaged, or its pickle is not that of plain tensors.
    """
    found = _in_safetensors(path, name) if path.suffix == ".safetensors" else _in_archive(path, name)
    if found is None:
        return None
    size, needed = path.stat().st_size, math.prod(found.shape) * found.dtype.itemsize
    if min(found.shape, default=0) < 0 or found.offset < 0 or found.offset + needed > size:
        raise CheckpointRefusedError(
            f"{path}: {name} of shape {list(found.shape)} would take {needed} bytes from byte {found.offset} on, but "
            f"the file has {size}: it is cut or damaged."
        )
    return found


def check_archive(path: Path) -> None:
    """
    Refuse a `.bin` that is more than tensors: `torch.load(weights_only=True)` runs no code either, but unpacks what
    is compressed and allocates what a pickle asks for.

    Raises:
        CheckpointRefusedError: Says what the archive holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed or len(entries) > _MOST_ENTRIES:
                raise CheckpointRefusedError(f"{path} holds {len(entries)} entries, {len(packed)} of them compressed.")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointRefusedError(f"{path}: its entries overlap or claim more than the file has.")
            pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _LARGEST_PICKLE:
                raise CheckpointRefusedError(f"{path} is no archive of `torch.save`: {len(pickles)} entries data.pkl.")
            most = min(_MOST_OPCODES, _FREE_OPCODES + _MOST_OPCODES_A_TENSOR * len(entries))
            _check_pickle(archive.read(pickles[0]), path, most)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        raise CheckpointRefusedError(
            f"{path} is no readable archive of `torch.save` ({error}): files from before torch 1.6 must be saved "
            "again, a damaged one downloaded again."
        ) from error


def _check_pickle(content: bytes, path: Path, most: int) -> None:
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(content)):
            if number >= most:
                raise CheckpointRefusedError(
                    f"{path}: data.pkl has more than {most} opcodes, which the tensors in the archive do not need: "
                    "the file is refused, and nothing in it executed."
                )
            named = opcode.name == "GLOBAL" and argument not in _TENSOR_GLOBALS and not _is_storage(str(argument))
            if named or opcode.name in _NAMING_OPCODES:
                raise CheckpointRefusedError(
                    f"{path}: opcode {opcode.name} at byte {position} of data.pkl names {str(argument)[:80]!r}, which "
                    "no tensor needs: the file is refused, and nothing in it executed."
                )
    except (ValueError, IndexError, UnicodeError) as error:
        if isinstance(error, CheckpointRefusedError):
            raise
        raise CheckpointRefusedError(f"{path}: data.pkl is damaged ({error}).") from error


def _is_storage(name: str) -> bool:
    return name.startswith("torch ") and name.endswith("Storage") and name.count(" ") == 1 and "." not in name


def _in_archive(path: Path, name: str) -> StoredTensor | None:
    check_archive(path)
    try:
        with FakeTensorMode():  # no numbers are read, but each storage knows where it lies
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointRefusedError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    tensor = state.get(name) if isinstance(state, dict) else None
    if not isinstance(tensor, torch.Tensor):
        return None
    if tensor.dtype not in _TORCH_TYPES or not tensor.is_contiguous():
        raise CheckpointRefusedError(f"{path}: {name} is a {tensor.dtype} of strides {tensor.stride()}, not a matrix.")
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None:
        raise CheckpointRefusedError(f"{path}: torch does not say where {name} lies.")
    offset = start + tensor.storage_offset() * tensor.element_size()
    return StoredTensor(path, offset, tuple(tensor.shape), np.dtype(_TORCH_TYPES[tensor.dtype]))


def _in_safetensors(path: Path, name: str) -> StoredTensor | None:
    try:
        with safe_open(path, "np") as tensors:  # checks all that the header says
            if name not in tensors.keys():  # noqa: SIM118 - it is no mapping
                return None
    except (SafetensorError, OSError) as error:
        raise CheckpointRefusedError(f"{path} is no readable safetensors file ({error}): get it again.") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    if entry["dtype"] not in _SAFETENSORS_TYPES:
        raise CheckpointRefusedError(
            f"{path}: {name} has type {entry['dtype']}, not one of {set(_SAFETENSORS_TYPES)}."
        )
    offset = 8 + length + entry["data_offsets"][0]
    return StoredTensor(path, offset, tuple(entry["shape"]), np.dtype(_SAFETENSORS_TYPES[entry["dtype"]]))
