import errno
import hashlib
import json
import os

import numpy as np
import pytest

from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import (
    HashingFile,
    check_files,
    describe_files,
    file_sha256,
    json_sha256,
    read_json,
    replacement,
    write_json,
)


@pytest.mark.parametrize("size", [0, 5, 300_000, 9_000_000])
def test_hashes_are_sha256_of_the_content(tmp_path, size):
    content = np.random.default_rng(0).bytes(size)
    with HashingFile(tmp_path / "f") as file:
        file.write(content[:3])
        file.write(content[3:])
    assert (tmp_path / "f").read_bytes() == content
    assert (file.bytes, file.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert file_sha256(tmp_path / "f") == file.sha256


def test_an_existing_file_is_not_hashed_over(tmp_path):
    (tmp_path / "f").write_text("before")
    with pytest.raises(FileExistsError):
        HashingFile(tmp_path / "f")
    assert (tmp_path / "f").read_text() == "before"


def test_json_comes_back_and_replaces_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with path.open() as earlier:
        write_json(path, {"name": "Zürich", "rows": [1, 2]}, durable=False)
        assert json.load(earlier) == {"old": 1}
    assert read_json(path) == {"name": "Zürich", "rows": [1, 2]}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("text", "words"), [('{"a"', "not valid JSON"), ("[1]", "a list where a JSON object")])
def test_damaged_json_is_told_as_the_caller_asks(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    for kind in (ValueError, LookupError):
        with pytest.raises(kind, match=words):
            read_json(tmp_path / "a.json", kind)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_replacement_that_fails_leaves_the_earlier_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    path.write_text("before")

    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full_disk)
    with (
        pytest.raises(OSError, match=r"could not write.*the file system is full"),
        explain_os_errors("write", path),
        replacement(path) as temporary,
    ):
        temporary.write_text("after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_key_order_does_not_change_a_hash():
    assert json_sha256({"a": 1, "b": [2]}) == json_sha256({"b": [2], "a": 1}) != json_sha256({"a": 1, "b": [3]})


def test_described_files_are_checked_by_size_and_on_demand_by_hash(tmp_path):
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "a"
    file.write_bytes(b"abc")
    files = describe_files(tmp_path / "rows", tmp_path)
    assert files == {"rows/a": {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}}
    check_files(tmp_path, files, verify=True)
    file.write_bytes(b"abd")
    check_files(tmp_path, files, verify=False)
    with pytest.raises(ValueError, match="does not have its recorded sha256"):
        check_files(tmp_path, files, verify=True)
    file.write_bytes(b"ab")
    with pytest.raises(ValueError, match="has 2 bytes instead of 3"):
        check_files(tmp_path, files, verify=False)
    file.unlink()
    with pytest.raises(ValueError, match="is missing"):
        check_files(tmp_path, files, verify=False)
