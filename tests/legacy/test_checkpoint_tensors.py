"""One tensor of a weights file is found without loading it; hostile weights files are refused and never run."""

import io
import json
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from realm_hf.legacy.checkpoint import find_block_embeddings
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.storage.checkpoint_tensors import CheckpointRefusedError, check_archive, find_tensor
from realm_hf.untrusted.checks import HubArtefactError

BLOCKS = torch.arange(60, dtype=torch.float32).reshape(15, 4)


def save(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_tensor_is_mapped_and_streamed_where_it_lies(tmp_path, name, dtype):
    blocks = BLOCKS.to(dtype)
    path = save(tmp_path, name, {"a": torch.ones(7), "block_emb": blocks, "z": torch.zeros(3, 3)})
    found = find_tensor(path, "block_emb")
    assert isinstance(found.map(), np.memmap)
    np.testing.assert_array_equal(found.map(), blocks.numpy())
    pieces = list(found.chunks(rows=4))
    assert [len(piece) for piece in pieces] == [4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(pieces), blocks.numpy())
    assert find_tensor(path, "other") is None


def test_a_view_into_a_larger_storage_is_found(tmp_path):
    path = save(tmp_path, "pytorch_model.bin", {"block_emb": BLOCKS[5:]})
    np.testing.assert_array_equal(find_tensor(path, "block_emb").map(), BLOCKS[5:].numpy())


def test_parts_of_a_checkpoint_are_searched(tmp_path):
    save(tmp_path, "pytorch_model-00001-of-00002.bin", {"a": torch.ones(2)})
    save(tmp_path, "pytorch_model-00002-of-00002.bin", {"block_emb": BLOCKS})
    parts = {"a": "pytorch_model-00001-of-00002.bin", "block_emb": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": parts}))
    np.testing.assert_array_equal(find_block_embeddings(tmp_path).map(), BLOCKS.numpy())


@pytest.mark.parametrize("part", ["../outside.bin", "/etc/passwd", ".hidden.bin"])
def test_a_list_of_parts_cannot_lead_out_of_the_directory(tmp_path, part):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save(tmp_path, "outside.bin", {"block_emb": BLOCKS})
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"block_emb": part}}))
    with pytest.raises(HubArtefactError, match="outside the repository"):
        find_block_embeddings(folder)


def test_a_checkpoint_without_an_index_has_no_embeddings(tmp_path):
    save(tmp_path, "pytorch_model.bin", {"a": torch.ones(2)})
    assert find_block_embeddings(tmp_path) is None
    assert find_block_embeddings(tmp_path / "nothing") is None


def archive(pickled: bytes, *, compress: bool = False, storage: bytes = b"\0" * 64) -> bytes:
    """A `.bin` as `torch.save` lays it out, around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as made:
        made.writestr("model/data.pkl", pickled)
        made.writestr("model/byteorder", b"little")
        made.writestr("model/data/0", storage)
        made.writestr("model/version", b"3\n")
    return file.getvalue()


def tensor_pickle(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """The state `{"block_emb": tensor}` over a storage of 16 numbers, with any shape."""

    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    return (
        b"\x80\x02}X\x09\x00\x00\x00block_embctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
        b"FloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ\x8a\x08"
        + struct.pack("<q", offset)
        + numbers(shape)
        + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def safetensors(header: dict | bytes, data: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def hostile_weights(canary: Path) -> dict[str, tuple[str, bytes]]:
    """What is wrong: the file's name and its content."""
    call = Call(os.system, f"touch {canary}")
    good = archive(tensor_pickle((4, 4), (4, 1)))
    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    binary = {
        "os.system, protocol 2": archive(pickle.dumps({"block_emb": call}, 2)),
        "os.system, protocol 4": archive(pickle.dumps({"block_emb": call}, 4)),
        "os.system in a pickle that is no archive": pickle.dumps(call, 2),
        "INST": archive(b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n."),
        "bytearray of 1 TiB": archive(
            pickle.dumps({"x": 1}, 2)[:-1] + b"cbuiltins\nbytearray\n\x8a\x06" + b"\0" * 5 + b"\x01\x85R."
        ),
        "a dotted storage": archive(b"\x80\x02ctorch\nos.systemStorage\n."),
        "compressed": archive(tensor_pickle((4, 4), (4, 1)) + b" " * 10_000_000, compress=True),
        "a shape larger than the file": archive(tensor_pickle((1 << 40, 4), (4, 1))),
        "a shape repeated by strides of zero": archive(tensor_pickle((1 << 40, 4), (0, 1))),
        "a negative shape": archive(tensor_pickle((-4, 4), (4, 1))),
        "an offset before the storage": archive(tensor_pickle((4, 4), (4, 1), offset=-100_000)),
        "an offset behind the file": archive(tensor_pickle((4, 4), (4, 1), offset=1 << 40)),
        "one dimension": archive(tensor_pickle((16,), (1,))),
        "no rows": archive(tensor_pickle((0, 4), (4, 1))),
        "cut in half": good[: len(good) // 2],
        "its directory cut": good[:-30],
        "nothing": b"",
        "no data.pkl": archive(b"").replace(b"data.pkl", b"data.txt"),
    }
    safe = {
        "truncated safetensors": safetensors({"block_emb": entry}, b"\0" * 32),
        "a header that claims 4 EiB": struct.pack("<Q", 1 << 62) + b"{}",
        "an absurd shape": safetensors({"block_emb": entry | {"shape": [1 << 40, 4]}}),
        "offsets behind the file": safetensors({"block_emb": entry | {"data_offsets": [64, 128]}}),
        "offsets the wrong way round": safetensors({"block_emb": entry | {"data_offsets": [64, 0]}}),
        "a header that is no JSON": safetensors(b"{" * 1000),
        "whole numbers": safetensors({"block_emb": entry | {"dtype": "I32"}}),
    }
    return {name: ("pytorch_model.bin", content) for name, content in binary.items()} | {
        name: ("model.safetensors", content) for name, content in safe.items()
    }


@pytest.mark.parametrize("wrong", hostile_weights(Path("x")))
def test_hostile_weights_are_refused_in_words_and_bounded_memory(tmp_path, wrong):
    canary = tmp_path / "canary"
    name, content = hostile_weights(canary)[wrong]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointRefusedError, match=name):
            find_block_embeddings(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert not canary.exists()


def test_the_archives_made_by_hand_are_read_when_nothing_is_wrong(tmp_path):
    """The refusals above are for what is wrong with them."""
    numbers = np.arange(16, dtype=np.float32)
    (tmp_path / "pytorch_model.bin").write_bytes(archive(tensor_pickle((4, 4), (4, 1)), storage=numbers.tobytes()))
    np.testing.assert_array_equal(find_block_embeddings(tmp_path).map(), numbers.reshape(4, 4))


@pytest.mark.parametrize("wrong", ["os.system, protocol 2", "os.system, protocol 4", "INST"])
def test_models_do_not_run_their_weights_files_either(tmp_path, tiny_config, wrong):
    canary = tmp_path / "canary"
    tiny_config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(hostile_weights(canary)[wrong][1])
    with pytest.raises((OSError, ValueError, pickle.UnpicklingError, RuntimeError)):
        RealmEmbedder.from_pretrained(tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize("opcode", [b"]", b"N", b"("])
def test_a_pickle_of_twenty_million_opcodes_is_not_read_through(tmp_path, monkeypatch, opcode):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(archive(b"\x80\x02" + opcode * 20_000_000 + b"."))
    read = []
    genops = pickletools.genops

    def counted(content):
        for found in genops(content):
            read.append(1)
            yield found

    monkeypatch.setattr(pickletools, "genops", counted)

    with pytest.raises(CheckpointRefusedError, match=r"data\.pkl has more than \d+ opcodes"):
        check_archive(path)
    assert len(read) < 5000


def test_a_checkpoint_of_many_tensors_is_within_bounds(tmp_path):
    """Tensors that share a storage too: tied weights have one entry for two names."""
    shared = torch.zeros(2)
    many = {f"layer.{n}.a.rather.long.name.weight": torch.zeros(1, 1, 1, 1) for n in range(300)}
    torch.save({**many, **{f"tied.{n}": shared for n in range(5)}}, tmp_path / "pytorch_model.bin")

    check_archive(tmp_path / "pytorch_model.bin")
