"""`block_records.npy` without unpickling: what NumPy writes is read, everything else is refused and never run."""

import io
import os
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_hf.legacy import restricted_pickle
from realm_hf.legacy.block_records import MAX_RECORDS, BlockRecords, BlockRecordsError

REPEATED = b"a passage that comes more than once"


def object_array(items: list) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def npy(pickled: bytes, shape: str) -> bytes:
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled


def write(path: Path, items: list, protocol: int, optimized: bool = False) -> Path:
    pickled = pickle.dumps(object_array(items), protocol)
    path.write_bytes(npy(pickletools.optimize(pickled) if optimized else pickled, f"({len(items)},)"))
    return path


def read(path: Path) -> list[bytes]:
    return [text for batch in BlockRecords(path).batches() for text in batch]


def passages(count: int) -> list[bytes]:
    """Empty, short, long and repeated ones."""
    made = [f"Passage {row} ".encode() * (row % 60) for row in range(count)]
    made[::7] = [REPEATED] * len(made[::7])
    made[::11] = [b""] * len(made[::11])
    return made


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 2500])
def test_reads_what_pickle_writes(tmp_path, count, protocol, optimized):
    """Runs of a thousand end in other opcodes than the rest; 300 entries of the memo take longer numbers."""
    expected = passages(count)
    assert read(write(tmp_path / "records.npy", expected, protocol, optimized)) == expected


def test_reads_what_numpy_saves(tmp_path):
    expected = passages(1500)
    np.save(tmp_path / "records.npy", object_array(expected))
    assert read(tmp_path / "records.npy") == expected


@pytest.mark.parametrize("protocol", [2, 4])
def test_text_becomes_utf8(tmp_path, protocol):
    assert read(write(tmp_path / "r.npy", ["Zürich", "", "日本"], protocol)) == [
        "Zürich".encode(),
        b"",
        "日本".encode(),
    ]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_records_larger_than_the_window_are_read(tmp_path, protocol):
    """Pickle puts a frame between a large text and its memo opcode."""
    expected = [b"x" * (9 << 20), b"short", b"y" * (70 << 10), b"x" * (9 << 20)] * 2
    assert read(write(tmp_path / "r.npy", expected, protocol)) == expected


def test_python_2_files_are_read(tmp_path):
    """NumPy 1 on Python 2: `bytes` are its strings, the module has no underscore."""
    pickled = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87Rq\x02(K\x01K\x02"
        b"\x85cnumpy\ndtype\nq\x03U\x02O8K\x00K\x01\x87Rq\x04(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89"
        b"]q\x05(U\x03oneq\x06T\x03\x00\x00\x00twoq\x07etb."
    )
    (tmp_path / "r.npy").write_bytes(npy(pickled, "(2,)"))
    assert read(tmp_path / "r.npy") == [b"one", b"two"]


def test_memory_does_not_grow_with_the_texts(tmp_path):
    path = write(tmp_path / "r.npy", [b"%06d" % row * 200 for row in range(60_000)], 4)  # 72 MB
    tracemalloc.start()
    try:
        count = sum(len(batch) for batch in BlockRecords(path).batches())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 60_000
    assert peak < 48 << 20


def test_columns_are_checked_text(tmp_path):
    path = write(tmp_path / "r.npy", ["é".encode(), b"plain"], 4)
    assert [text for column in BlockRecords(path).columns() for text in column.to_pylist()] == ["é", "plain"]


def test_records_that_are_no_utf8_are_named_or_replaced(tmp_path):
    path = write(tmp_path / "r.npy", [b"fine", b"\xff\xfe broken"], 4)
    with pytest.raises(BlockRecordsError, match=r"Record 1 of .* no UTF-8 .*--errors replace"):
        list(BlockRecords(path).columns())
    (column,) = BlockRecords(path).columns(errors="replace")
    assert column.to_pylist() == ["fine", "\ufffd\ufffd broken"]


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


GOOD = pickle.dumps(object_array([b"one", b"two", b"three"]), 4)
IN_LIST = GOOD.index(b"C\x03one")  # where the first text's opcode stands
GOOD_2 = pickle.dumps(object_array([b"one", b"two", b"three"]), 2)


def inserted(opcodes: bytes) -> bytes:
    """Three good texts with something before the first."""
    return GOOD[:IN_LIST] + opcodes + GOOD[IN_LIST:]


def hostile_files(canary: Path) -> dict[str, bytes]:
    """Each name says what is wrong; those that could run something would make `canary`."""
    command = f"touch {canary}"
    call = Call(os.system, command)

    def array_of(*items, protocol=4):
        return npy(pickle.dumps(object_array(list(items)), protocol), f"({len(items)},)")

    old_call = b"cos\nsystem\n(S'" + command.encode() + b"'\ntR."
    return {
        "os.system instead of the array, protocol 0": npy(old_call, "(3,)"),
        "os.system instead of the array, protocol 4": npy(pickle.dumps(call, 4), "(3,)"),
        "os.system among the texts, protocol 2": array_of(b"one", call, b"two", protocol=2),
        "os.system among the texts, protocol 4": array_of(b"one", call, b"two"),
        "os.system behind a thousand texts": array_of(*passages(1200), call),
        "eval among the texts": array_of(Call(eval, f"__import__('os').system({command!r})"), b"two"),
        "codecs.encode with another codec": npy(GOOD_2.replace(b"latin1", b"rot_13"), "(3,)"),
        "getattr named in the memo": npy(inserted(b"cbuiltins\ngetattr\n\x94"), "(3,)"),
        "INST": npy(inserted(b"(S'" + command.encode() + b"'\nios\nsystem\n"), "(3,)"),
        "OBJ": npy(inserted(b"(cnumpy\nndarray\no"), "(3,)"),
        "NEWOBJ": npy(inserted(b"cnumpy\nndarray\n)\x81"), "(3,)"),
        "a second array": npy(inserted(b"h\x05K\x00\x85C\x01b\x87R"), "(3,)"),
        "an extension code": npy(inserted(b"\x82\x01"), "(3,)"),
        "a persistent id": npy(inserted(b"Pid\n"), "(3,)"),
        "an out-of-band buffer": npy(inserted(b"\x97"), "(3,)"),
        "a dictionary": npy(inserted(b"}"), "(3,)"),
        "POP": npy(inserted(b"0"), "(3,)"),
        "STOP within the list": npy(inserted(b"."), "(3,)"),
        "an opcode that does not exist": npy(inserted(b"\xff"), "(3,)"),
        "numbers": array_of(1, 2),
        "None": array_of(None, None),
        "an array in the array": array_of(object_array([b"one"]), b"two"),
        "a text that claims 4 EiB": npy(inserted(b"\x8e" + struct.pack("<Q", 1 << 62)), "(3,)"),
        "a text that claims 4 GiB": npy(inserted(b"B\xff\xff\xff\xff"), "(3,)"),
        "a text longer than the file": npy(inserted(b"B\x00\x00\x10\x00"), "(3,)"),
        "a memo number out of order": npy(inserted(b"C\x01xr\xff\xff\xff\x7f"), "(4,)"),
        "a million memo entries for one text": npy(inserted(b"C\x01x" + b"\x94" * 1_000_000), "(4,)"),
        "tuples a million deep": npy(inserted(b")" + b"\x85" * 1_000_000), "(3,)"),
        "tuples doubled a hundred times": npy(
            b"\x80\x04)\x94" + b"".join(b"h%c\x86\x94" % n for n in range(100)), "(3,)"
        ),
        "a stack of a million": npy(inserted(b"N" * 1_000_000), "(3,)"),
        "a million empty runs": npy(inserted(b"e(" * 1_000_000), "(3,)"),
        "pointing back to nothing": npy(inserted(b"j\xff\xff\xff\xff"), "(4,)"),
        "pointing back to a class": npy(inserted(b"h\x05"), "(4,)"),
        "one text repeated to gigabytes": npy(
            GOOD[:IN_LIST] + b"B\x00\x00\x80\x00" + b"x" * (8 << 20) + b"\x94" + b"h\x13" * 40 + b"etb.", "(41,)"
        ),
        "fewer texts than the header says": npy(GOOD, "(4,)"),
        "more texts than the header says": npy(GOOD, "(2,)"),
        "a header that claims 10^15 records": npy(GOOD, "(1000000000000000,)"),
        "a header with two dimensions": npy(GOOD, "(3, 1)"),
        "a header with an expression": npy(GOOD, "(3,) if __import__('os').getpid() else 0"),
        "a header of numbers": npy(GOOD, "(3,)").replace(b"'|O'", b"'<i'"),
        "a header of another version": npy(GOOD, "(3,)").replace(b"NUMPY\x01", b"NUMPY\x02"),
        "a header longer than the file": npy(b"", "(3,)")[:8] + b"\xff\xff{",
        "nothing": b"",
        "only zeros": bytes(4096),
    }


@pytest.mark.parametrize("wrong", hostile_files(Path("x")))
def test_hostile_files_are_refused_in_words_and_bounded_memory(tmp_path, wrong):
    canary = tmp_path / "canary"
    path = tmp_path / "block_records.npy"
    path.write_bytes(hostile_files(canary)[wrong])
    tracemalloc.start()
    try:
        with pytest.raises(BlockRecordsError, match=r"block_records\.npy"):
            for _ in BlockRecords(path).batches():
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (24 << 20) + 12 * path.stat().st_size
    assert not canary.exists()


def test_the_hostile_files_would_run_if_they_were_unpickled(tmp_path):
    """The test above proves nothing if its payloads are duds."""
    canary = tmp_path / "canary"
    with pytest.raises(ValueError, match="reshape"):
        np.load(io.BytesIO(hostile_files(canary)["os.system behind a thousand texts"]), allow_pickle=True).reshape(
            -1, 7
        )
    assert canary.exists()


def test_refusal_names_opcode_and_position(tmp_path):
    path = tmp_path / "r.npy"
    path.write_bytes(npy(inserted(b"}"), "(3,)"))
    position = path.read_bytes().index(b"}C\x03one")
    with pytest.raises(BlockRecordsError, match=rf"opcode EMPTY_DICT at byte {position}: "):
        read(path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_cut_is_noticed(tmp_path, protocol):
    whole = write(tmp_path / "r.npy", [b"one", b"two", b"one " * 100], protocol).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        with pytest.raises(BlockRecordsError):
            read(tmp_path / "cut.npy")


@settings(max_examples=400, deadline=None)
@given(data=st.data(), protocol=st.sampled_from([2, 3, 4]))
def test_damaged_files_give_texts_or_a_refusal(tmp_path_factory, data, protocol):
    path = write(
        tmp_path_factory.getbasetemp() / f"damaged{protocol}.npy", [b"one", b"two", b"one", b"", b"x" * 300], protocol
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        texts = read(path)
    except BlockRecordsError:
        return
    assert all(type(text) is bytes for text in texts)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "r.npy")
    with pytest.raises(BlockRecordsError, match="no regular file"):
        BlockRecords(tmp_path / "r.npy")


def test_limits_leave_room_for_the_published_corpus():
    assert MAX_RECORDS > 4 * 13_353_718
    assert restricted_pickle.MAX_TEXT_BYTES > 1000 * 1500
