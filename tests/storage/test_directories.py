"""What is particular to other writers than the generation store, whose kill tests are in `tests/index`."""

import os
from pathlib import Path

import pytest

from realm_hf.storage.directories import StagedDirectory, remove_stale_staging


def write(final, name="a"):
    with StagedDirectory(final) as staged:
        (staged.path / name).write_text(name)


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "p").mkdir()
    write(tmp_path / "p")
    assert [path.name for path in tmp_path.rglob("*")] == ["p", "a"]


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_there_is_never_overwritten(tmp_path, kind, when):
    final = tmp_path / "p"

    def occupy():
        if kind == "directory":
            write(final, "first")
        else:
            final.write_text("first")

    if when == "before":
        occupy()
    with pytest.raises(FileExistsError, match="nothing is overwritten"), StagedDirectory(final) as staged:
        (staged.path / "second").write_text("second")
        occupy()
    assert list(tmp_path.iterdir()) == [final]
    assert (final / "first" if kind == "directory" else final).read_text() == "first"


def test_a_replacement_leaves_the_earlier_one_whole_until_it_is_complete(tmp_path):
    final = tmp_path / "p"
    write(final, "first")
    with pytest.raises(RuntimeError, match="half-way"), StagedDirectory(final, replace=True) as staged:
        (staged.path / "second").write_text("second")
        raise RuntimeError("half-way")
    assert [path.name for path in tmp_path.rglob("*")] == ["p", "first"]
    with StagedDirectory(final, replace=True) as staged:
        (staged.path / "second").write_text("second")
        assert (final / "first").is_file()
    assert [path.name for path in tmp_path.rglob("*")] == ["p", "second"]


def test_a_replacement_does_not_take_the_place_of_a_file(tmp_path):
    (tmp_path / "p").write_text("mine")
    with pytest.raises(FileExistsError, match="nothing is overwritten"), StagedDirectory(tmp_path / "p", replace=True):
        pass
    assert (tmp_path / "p").read_text() == "mine"


def test_files_that_a_library_wrote_are_synced_before_the_rename(tmp_path, monkeypatch):
    trace = []
    opened, synced, renamed = os.open, os.fsync, Path.rename
    names = {}

    def noting_open(path, *args, **kwargs):
        descriptor = opened(path, *args, **kwargs)
        names[descriptor] = Path(path).name
        return descriptor

    def noting_fsync(descriptor):
        trace.append(names[descriptor])
        synced(descriptor)

    def noting_rename(path, target):
        trace.append("rename")
        return renamed(path, target)

    with StagedDirectory(tmp_path / "p") as staged:
        (staged.path / "model").mkdir()
        (staged.path / "model" / "weights").write_text("w")
        monkeypatch.setattr(os, "open", noting_open)
        monkeypatch.setattr(os, "fsync", noting_fsync)
        monkeypatch.setattr(Path, "rename", noting_rename)
        with staged.file("own") as file:
            file.write(b"o")
    assert trace == ["own", staged.path.name, "weights", "model", "rename", tmp_path.name]


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    for name in (".tmp-p-mine", ".tmp-q-01234567"):
        (tmp_path / name).mkdir()
    child = os.fork()
    if child == 0:
        try:
            (StagedDirectory(tmp_path / "p").__enter__().path / "a").write_text("a")
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 4
    with StagedDirectory(tmp_path / "p"):
        assert remove_stale_staging(tmp_path, "p") == []  # this one's writer lives
        assert len(list(tmp_path.glob(".tmp-p-*"))) == 3  # its directory, its lock, and somebody's own
    assert {path.name for path in tmp_path.iterdir()} == {"p", ".tmp-p-mine", ".tmp-q-01234567"}
