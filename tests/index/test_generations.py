import ctypes
import errno
import json
import os
import resource
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import faiss
import numpy as np
import pytest

from realm_hf.generations.manifest import newest_generation
from realm_hf.generations.store import (
    CorruptGenerationError,
    GenerationError,
    GenerationNotFoundError,
    GenerationStore,
)
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import search
from realm_hf.knowledge.files import link_retriever_files
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.storage.directories import StagedDirectory

FILES = ["embeddings.npy", "index.faiss", "generation.json"]


@pytest.fixture
def store(tmp_path):
    return GenerationStore(tmp_path / "index")


def leftovers(store):
    return sorted(path.name for path in store.root.iterdir() if not path.name.startswith("step-"))


# Writing and reading


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8"])
def test_what_is_read_is_what_was_written(store, write, vectors, dtype, factory):
    embeddings = vectors.astype(dtype)
    written = write(store, 500, embeddings, factory, epoch=3, build_seconds=1.5)
    with store.open(written.name, verify="sha256") as generation:
        np.testing.assert_array_equal(generation.embeddings, embeddings)
        np.testing.assert_array_equal(
            search(generation.index, vectors[:9], 5)[1], search(build_index(embeddings, factory), vectors[:9], 5)[1]
        )
        info = generation.info
    assert (info.snapshot_step, info.epoch, info.rows, info.dimension) == (500, 3, 300, 16)
    assert (info.dtype, info.metric, info.factory) == (np.dtype(dtype).name, "inner_product", factory)
    assert info.builder_pid == os.getpid() and info.build_seconds == 1.5 and info.embedder_fingerprint == "embedder"
    assert {name: (store.root / info.name / name).stat().st_size for name in info.files} == {
        name: record.bytes for name, record in info.files.items()
    }
    assert leftovers(store) == []


def test_embeddings_are_a_plain_npy_file(store, write, vectors):
    generation = write(store)
    np.testing.assert_array_equal(np.load(generation.path / "embeddings.npy"), vectors)


def test_opening_maps_and_does_not_read(store, write):
    generation = write(store, embeddings=np.ones((200_000, 16), np.float32))
    assert isinstance(generation.embeddings, np.memmap) and not generation.embeddings.flags.writeable
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert all(str(generation.path / name) in mapped for name in ("embeddings.npy", "index.faiss"))


def test_a_generation_without_an_index_file_is_searched_exactly_and_serves_a_saved_retriever(
    store, vectors, passages, tmp_path
):
    stored = vectors[: len(passages)].astype(np.float16)
    fields = dict.fromkeys(("passages_fingerprint", "tokenizer_fingerprint", "embedder_fingerprint"), "x")
    with store.write(stored, None, snapshot_step=3, factory="exact-sharded", **fields) as generation:
        assert list(generation.info.files) == ["embeddings.npy"]
        assert not (generation.path / "index.faiss").exists()
        found = generation.index.search(vectors[:4], 5)
        link_retriever_files(tmp_path / "saved", passages, generation, None)
    np.testing.assert_array_equal(found.rows, search(build_index(stored), vectors[:4], 5)[1])
    loaded = RealmRetriever.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.retrieve(vectors[:4], 3, null_passage=False).rows[:, 0], found.rows[:, 0])


def test_newest_is_by_epoch_then_by_step_then_by_time(store, write):
    early = write(store, 900, epoch=1).info
    earlier = write(store, 100, epoch=2).info
    newest = write(store, 100, factory="SQ8", epoch=2).info
    in_any_order = [newest, early, earlier]

    assert newest_generation(in_any_order) == newest == store.list()[-1]
    assert newest_generation(in_any_order, epoch=1) == early
    assert newest_generation(in_any_order, factory="Flat") == earlier
    assert newest_generation(in_any_order, epoch=3) is None


def test_generations_are_listed_by_snapshot_and_epoch(store, write):
    names = [write(store, step, epoch=epoch).name for step, epoch in [(500, 0), (1000, 0), (20, 1), (500, 1)]]
    assert [info.name for info in GenerationStore(store.root).list()] == names
    assert GenerationStore(store.root / "nothing here").list() == []


def test_two_generations_of_one_snapshot_do_not_collide(store, write):
    assert write(store).name != write(store).name
    assert len(store.list()) == 2


# Bad input


def test_nan_in_an_embedding_is_named_by_row_and_nothing_stays(store, write, vectors):
    index, broken = build_index(vectors), vectors.copy()
    broken[123] = np.inf
    fields = dict.fromkeys(["passages_fingerprint", "tokenizer_fingerprint", "embedder_fingerprint", "factory"], "x")
    with pytest.raises(ValueError, match="passage row 123 holds NaN or infinity"):
        store.write(broken, index, snapshot_step=1, **fields)
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((299, 16), np.float32), r"holds 300 rows of dimension 16, the embeddings are \[299, 16\]"),
        (np.zeros((300, 8), np.float32), r"the embeddings are \[300, 8\]"),
        (np.zeros((300, 16), np.float64), "float32 or float16 matrix"),
    ],
)
def test_embeddings_that_do_not_fit_the_index_are_refused(store, vectors, embeddings, message):
    fields = dict.fromkeys(["passages_fingerprint", "tokenizer_fingerprint", "embedder_fingerprint", "factory"], "x")
    with pytest.raises(ValueError, match=message):
        store.write(embeddings, build_index(vectors), snapshot_step=1, **fields)


def test_an_index_of_another_metric_is_refused(store, vectors):
    index = faiss.IndexFlatL2(16)
    index.add(vectors)
    fields = dict.fromkeys(["passages_fingerprint", "tokenizer_fingerprint", "embedder_fingerprint", "factory"], "x")
    with pytest.raises(ValueError, match="metric 1, not inner product"):
        store.write(vectors, index, snapshot_step=1, **fields)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("where", [0.0, 0.01, 0.5, 0.99])
def test_a_flipped_byte_is_refused_in_words(store, write, file, where):
    generation = write(store)
    path = generation.path / file
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(GenerationError, match=r"SHA-256|not a manifest|does not describe|protocol|not a whole"):
        store.open(generation.name, verify="sha256")


@pytest.mark.parametrize("file", ["embeddings.npy", "index.faiss"])
@pytest.mark.parametrize("verify", ["sizes", "sha256"])
def test_a_truncated_or_missing_file_is_refused_and_does_not_kill_the_reader(store, write, file, verify):
    generation = write(store)
    path = generation.path / file
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(
        CorruptGenerationError, match=f"{file} is {size - 1} bytes long, its manifest says {size} bytes"
    ):
        store.open(generation.name, verify=verify)
    path.unlink()
    with pytest.raises(CorruptGenerationError, match=f"{file} is missing"):
        store.open(generation.name, verify=verify)


def test_a_generation_whose_sizes_appear_late_is_not_called_corrupt(store, write):
    generation = write(store)
    path = generation.path / "index.faiss"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    late = threading.Timer(0.05, path.write_bytes, [content])
    late.start()
    store.open(generation.name, verify="sha256").close()
    late.join()


def test_files_of_another_generation_are_refused(store, write, vectors):
    one, other = write(store), write(store, embeddings=vectors[::-1].copy())
    shutil.copy(other.path / "index.faiss", one.path / "index.faiss")
    with pytest.raises(CorruptGenerationError, match=r"index\.faiss was changed after it was written"):
        store.open(one.name, verify="sha256")


def test_headers_are_compared_with_the_manifest_even_without_hashes(store, write, vectors):
    generation = write(store)
    path = generation.path / "embeddings.npy"
    size = path.stat().st_size
    np.save(path, vectors.reshape(150, 32))
    assert path.stat().st_size == size
    with pytest.raises(CorruptGenerationError, match=r"float32 \[150, 32\], its manifest says float32 \[300, 16\]"):
        store.open(generation.name)


def test_a_renamed_directory_is_refused(store, write):
    generation = write(store)
    generation.path.rename(store.root / "step-7-00000000")
    with pytest.raises(CorruptGenerationError, match="does not describe step-7-00000000"):
        store.open("step-7-00000000")


def test_a_later_protocol_is_refused_in_words(store, write):
    path = write(store).path / "generation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "protocol": 99}))
    with pytest.raises(GenerationError, match="protocol 99, this version reads 1"):
        store.open(path.parent.name)


def test_an_unknown_generation_is_told_with_what_there_is(store, write):
    name = write(store).name
    with pytest.raises(GenerationNotFoundError, match=f"step-9-00000000 is not in .*{name}"):
        store.open("step-9-00000000")
    with pytest.raises(ValueError, match=r"'\.\./x' is not a generation's name"):
        store.open("../x")
    with pytest.raises(ValueError, match="verify is 'md5'"):
        store.open(name, verify="md5")


# The disk


def drop_root_override():
    """Make permission bits count for root too: drop CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~0b110
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


def words_of(function):
    try:
        function()
    except OSError as error:
        return f"{error.errno} {error}"
    return "no error"


def test_a_read_only_directory_is_a_clear_error_and_loses_nothing(store, write, in_child):
    name = write(store).name
    store.root.chmod(0o555)
    try:

        def attempt():
            drop_root_override()
            return words_of(lambda: write(store))

        words = in_child(attempt)
    finally:
        store.root.chmod(0o755)
    assert words.startswith(str(errno.EACCES))
    assert "could not write generation step-5-" in words and "permission is denied: choose a directory" in words
    assert [info.name for info in store.list()] == [name]
    store.open(name, verify="sha256").close()


def test_a_root_that_is_a_file_is_a_clear_error(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="a part of the path is a file"):
        write(GenerationStore(tmp_path / "file" / "index"))


def test_a_full_disk_is_told_before_anything_is_written(store, write, monkeypatch):
    name = write(store).name
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5 << 20))
    with pytest.raises(OSError, match=r"needs 0.0 MiB and 16 MiB to spare, but only 5.0 MiB are free") as caught:
        write(store)
    assert caught.value.errno == errno.ENOSPC
    assert [info.name for info in store.list()] == [name] and leftovers(store) == []


def test_space_can_be_asked_for_before_the_root_exists(store):
    store.require_space(1)
    with pytest.raises(OSError, match=r"only .* MiB are free"):
        store.require_space(1 << 60)


@pytest.mark.parametrize("limit", [100, 19_000, 19_240])  # header, embeddings, index
def test_a_file_that_cannot_grow_is_a_clear_error_and_leaves_nothing(store, write, in_child, limit):
    name = write(store).name

    def attempt():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return words_of(lambda: write(store))

    words = in_child(attempt)
    assert words.startswith(str(errno.EFBIG)) and "could not write generation" in words
    assert [info.name for info in store.list()] == [name] and leftovers(store) == []
    store.open(name, verify="sha256").close()


def test_a_disk_that_fills_at_any_write_or_sync_leaves_nothing_half(store, write, monkeypatch):
    name = write(store).name
    calls = failing = 0
    real = {call: getattr(os, call) for call in ("write", "fsync", "mkdir", "rename")}

    def wrap(call):
        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real[call](*args, **kwargs)

        return counted

    for call in real:
        monkeypatch.setattr(os, call, wrap(call))
    kept = {name}
    for failing in range(1, 100):
        calls = 0
        try:
            kept.add(write(store).name)
        except OSError as error:
            assert error.errno == errno.ENOSPC and "the file system is full: free space" in str(error)
        assert leftovers(store) == []
        if calls < failing:
            break
    assert failing > 10  # every write, fsync, mkdir and rename was made to fail once
    found = [info.name for info in store.list()]
    # One more than was returned: where the parent's fsync failed, the rename had been done.
    assert kept <= set(found) and len(found) <= len(kept) + 1
    for each in found:
        store.open(each, verify="sha256").close()


# Leases, collection, quarantine


def test_collection_keeps_what_is_named_leased_or_newest(store, write):
    generations = [write(store, step) for step in (1, 2, 3, 4)]
    for generation in generations[1:]:
        generation.close()
    assert store.collect(keep=[generations[1].name]) == [generations[2].name]
    generations[0].close()
    assert store.collect(keep_newest=2) == [generations[0].name]
    assert store.collect(keep_newest=0) == [generations[1].name, generations[3].name]
    assert store.list() == [] and leftovers(store) == []


def test_a_lease_of_another_process_keeps_a_generation(store, write, vectors):
    old, new = write(store, 1), write(store, 2)
    old.close(), new.close()
    to_child, from_child = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        generation = store.open(old.name)
        os.write(from_child[1], b"open")
        os.read(to_child[0], 1)
        os._exit(0 if np.array_equal(generation.embeddings, vectors) else 1)
    os.read(from_child[0], 4)
    assert store.collect() == []
    os.write(to_child[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.collect() == [old.name]  # its death gave the lease back


def test_an_open_generation_that_is_dropped_gives_its_lease_back(store, write):
    old = write(store, 1).name
    write(store, 2)
    assert store.collect() == [old]


def test_maps_stay_valid_after_close_and_removal(store, write, vectors):
    generation = write(store, 1)
    write(store, 2)
    generation.close()
    assert store.collect() == [generation.name] and not generation.path.exists()
    np.testing.assert_array_equal(generation.embeddings, vectors)
    expected = search(build_index(vectors), vectors, 1)
    np.testing.assert_array_equal(search(generation.index, vectors, 1)[1], expected[1])


def test_quarantine_takes_a_generation_out_with_its_reason(store, write):
    bad, good = write(store, 1), write(store, 2)
    store.quarantine(bad.name, "rank 1: flipped byte")
    assert [info.name for info in store.list()] == [good.name]
    assert store.quarantined() == {bad.name: "rank 1: flipped byte"}
    with pytest.raises(GenerationNotFoundError, match=r"was quarantined \(rank 1: flipped byte\)"):
        store.open(bad.name)
    store.quarantine(bad.name, "again")  # by another rank: nothing to do
    assert store.quarantined() == {bad.name: "rank 1: flipped byte"}


def test_only_the_newest_quarantined_generation_keeps_its_files(store, write):
    names = [write(store, step).name for step in (1, 2)]
    for hour, name in enumerate(names):
        store.quarantine(name, "bad")
        os.utime(store.root / "quarantine" / name, (hour, hour))
    store.collect()
    assert sorted(path.name for path in (store.root / "quarantine").glob("step-*/")) == [names[1]]
    assert set(store.quarantined()) == set(names)


def test_a_damaged_manifest_does_not_hide_the_others(store, write):
    bad, good = write(store, 1), write(store, 2)
    (bad.path / "generation.json").write_text("{")
    assert [info.name for info in store.list()] == [good.name]


def test_a_live_writer_is_not_collected(store, write):
    write(store)
    with StagedDirectory(store.root / "step-9-0badcafe") as staged:
        with staged.file("a") as file:
            file.write(b"x")
        store.collect()
        assert (staged.path / "a").read_bytes() == b"x"
    assert (store.root / "step-9-0badcafe" / "a").exists()


def test_directories_of_dead_writers_are_collected(store, write, in_child):
    def die_half_way():
        StagedDirectory(store.root / "step-9-0badcafe").__enter__().file("a").write(b"x")
        os._exit(1)

    write(store)
    with pytest.raises(AssertionError, match="the child failed"):
        in_child(die_half_way)
    (store.root / ".tmp-without-a-lock").mkdir()
    assert len(leftovers(store)) == 3
    store.collect()
    assert leftovers(store) == []
