"""What strangers may publish: each is refused in words, without running code, reading elsewhere, or crashing."""

import json
import os
import resource
import shutil
import struct
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from realm_hf import RealmRetriever
from realm_hf.hub_files import HubArtefactError, check_name
from realm_hf.index.faiss_index import build_index
from realm_hf.index.hub_export import ExportSettings, hub_features
from realm_hf.index.hub_manifest import DESCRIPTION, HubManifest
from realm_hf.index.hub_retriever import add_retriever
from realm_hf.index.index_file import IndexFileError, open_index
from realm_hf.index.published import PUBLICATION
from realm_hf.storage.files import file_sha256, json_sha256

ROWS, DIMENSION = 48, 16
SHARD, INDEX = "data/train-00000-of-00001.parquet", "index/default.faiss"


class Folder:
    """Takes the files of a publication like a push, into a directory."""

    def __init__(self, root: Path):
        self.root = root

    def add(self, name: str, content: Path | bytes, *, is_temporary: bool = False) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())

    def keep_small_files(self) -> None:
        pass


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype(np.float32)


@pytest.fixture(scope="module")
def honest(tmp_path_factory, tiny_passages, tokenizer, vectors) -> Path:
    from tiny_worlds import tiny_model

    root = tmp_path_factory.mktemp("honest")
    tower = tiny_model(seed=1).embedder
    add_retriever(
        Folder(root), RealmRetriever(tiny_passages, tokenizer, embeddings=vectors, embedder=tower), ExportSettings()
    )
    return root


@pytest.fixture
def folder(honest, tmp_path) -> Path:
    """A copy to do evil to."""
    return Path(shutil.copytree(honest, tmp_path / "published"))


@pytest.fixture
def load(folder, tmp_path):
    def load(**arguments):
        return RealmRetriever.from_pretrained(folder, cache_dir=tmp_path / "cache", **arguments)

    return load


def describe(folder: Path, change) -> None:
    """Change the description and sign it anew: strangers can hash, too."""
    path = folder / DESCRIPTION
    content = json.loads(path.read_text())
    del content["content"]
    change(content)
    path.write_text(json.dumps({**content, "content": json_sha256(content)}))


def put(folder: Path, name: str, content: bytes | None = None) -> None:
    """Replace a file, and let the description say its true size and hash."""
    path = folder / name
    if content is not None:
        path.write_bytes(content)

    def change(description):
        record = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        description["files"][name] = record
        for index in description["indexes"].values():
            if index["parts"] == [name]:
                index.update(record)

    describe(folder, change)


def put_index(folder: Path, index: faiss.Index) -> None:
    put(folder, INDEX, faiss.serialize_index(index).tobytes())


def put_rows(folder: Path, table: pa.Table) -> None:
    pq.write_table(table, folder / SHARD)
    put(folder, SHARD)


def rows(vectors: np.ndarray, count: int = ROWS, dimension: int = DIMENSION) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension)
    schema = hub_features(dimension).arrow_schema
    column = column.cast(schema.field("embeddings").type)
    return pa.table([pa.array(["a"] * count), pa.array(["b"] * count), column], schema=schema)


def test_the_honest_one_loads(load, vectors):
    retriever = load()

    np.testing.assert_array_equal(retriever.embeddings, vectors)
    assert retriever.index.ntotal == ROWS


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "/etc/passwd",
        "a/../../b",
        "a/..",
        "..\\out",
        "C:/x",
        ".git/config",
        "a//b",
        "",
        "a\nb",
        "a\0b",
        "x" * 300,
        7,
    ],
)
def test_names_that_lead_elsewhere(folder, load, name):
    with pytest.raises(HubArtefactError, match="outside the repository"):
        check_name(name)
    if isinstance(name, str):
        describe(folder, lambda content: content["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
        with pytest.raises(HubArtefactError, match="outside the repository"):
            load()


@pytest.mark.parametrize("name", ["shards", "indexes"])
def test_names_in_lists_are_checked_too(folder, load, name):
    def change(content):
        if name == "shards":
            content["shards"][0]["file"] = "../../secret"
        else:
            content["indexes"]["default"]["parts"] = ["../../secret"]

    describe(folder, change)
    with pytest.raises(HubArtefactError, match="outside the repository"):
        load()


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"[" * 100_000, b'"text"', b"\xff\xfe", b'{"format_version": 1}', b'{"format_version": 2}'],
    ids=["cut", "list", "deep", "text", "no text", "empty", "newer"],
)
def test_descriptions_that_are_none(folder, load, content):
    (folder / DESCRIPTION).write_bytes(content)

    with pytest.raises(HubArtefactError, match=DESCRIPTION):
        load()


def test_an_oversized_description_is_not_parsed(folder, load):
    (folder / DESCRIPTION).write_bytes(b'{"a": "' + b"x" * (9 << 20) + b'"}')

    with pytest.raises(HubArtefactError, match=r"has 9\.4 MB; a description has at most"):
        load()


def test_a_description_that_was_changed_without_its_hash(folder, load):
    content = json.loads((folder / DESCRIPTION).read_text())
    content["generation_name"] = "step-1-00000000"
    (folder / DESCRIPTION).write_text(json.dumps(content))

    with pytest.raises(HubArtefactError, match="does not have its own hash"):
        load()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", -1), ("rows", 10**30), ("rows", True), ("rows", 48.0), ("rows", "48"), ("rows", 0), ("rows", 49),
        ("dimension", 10**12), ("dimension", -16), ("dtype", "object"), ("dtype", "O8"), ("shards", []),
        ("shards", {"file": SHARD}), ("indexes", []), ("default_index", "none"), ("fingerprints", [1]), ("store", 5),
        ("files", {}),
    ],
)  # fmt: skip
def test_absurd_numbers_and_shapes(folder, load, field, value):
    describe(folder, lambda content: content.update({field: value}))

    with pytest.raises(HubArtefactError, match=DESCRIPTION):
        load()


def test_a_link_out_of_the_directory(folder, load, tmp_path):
    secret = tmp_path / "secret.parquet"
    shutil.move(folder / SHARD, secret)
    (folder / SHARD).symlink_to(secret)

    with pytest.raises(HubArtefactError, match="is a link out of"):
        load()


def test_a_directory_that_is_a_link_out(folder, load, tmp_path):
    shutil.move(folder / "tokenizer", tmp_path / "elsewhere")
    (folder / "tokenizer").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(HubArtefactError, match="is a link out of"):
        load()


def test_files_that_were_cut_changed_or_removed(folder, load):
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-10])
    with pytest.raises(HubArtefactError, match="it is cut or was changed"):
        load()
    (folder / SHARD).write_bytes(content[:-10] + bytes(10))
    with pytest.raises(HubArtefactError, match="does not have the SHA-256"):
        load()
    (folder / SHARD).unlink()
    with pytest.raises(HubArtefactError, match="it is incomplete"):
        load()


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
def test_parquet_that_is_damaged_but_signed(folder, load, place, tmp_path):
    content = bytearray((folder / SHARD).read_bytes())
    start = min(int(place * len(content)), len(content) - 40)
    content[start : start + 40] = bytes(range(200, 240))
    put(folder, SHARD, bytes(content))

    try:
        retriever = load()
    except HubArtefactError:
        return
    assert len(retriever) == ROWS  # the bytes fell where only numbers are, which any stranger may choose
    assert np.isfinite(retriever.embeddings).all()


def test_parquet_of_noise(folder, load):
    put(folder, SHARD, b"PAR1" + bytes(range(256)) * 40 + b"PAR1")

    with pytest.raises(HubArtefactError, match="Parquet files are damaged"):
        load()


def test_parquet_with_other_columns_dimension_or_rows(folder, load, vectors):
    for table, words in [
        (rows(vectors).drop_columns(["text"]), "has columns"),
        (rows(vectors).append_column("code", pa.array(["x"] * ROWS)), "has columns"),
        (rows(vectors[:, :8].copy(), dimension=8), "has columns"),
        (rows(vectors[:40], 40), "has 40 rows"),
        (rows(np.full_like(vectors, np.nan)), "NaN or infinity"),
    ]:
        put_rows(folder, table)
        with pytest.raises(HubArtefactError, match=words):
            load()


def test_parquet_with_missing_embeddings(folder, load, vectors):
    table = rows(vectors)
    holes = pa.array([None, *table["embeddings"].to_pylist()[1:]], type=table.schema.field("embeddings").type)
    put_rows(folder, pa.table([table["title"], table["text"], holes], schema=table.schema))

    with pytest.raises(HubArtefactError, match="lack embeddings"):
        load()


@pytest.mark.parametrize("kind", ["backwards", "past the end", "negative"])
def test_offsets_that_overlap_or_end_elsewhere(folder, load, kind):
    name = "passages/body_tokens_offsets.bin"
    offsets = np.frombuffer((folder / name).read_bytes(), np.int64).copy()
    if kind == "backwards":
        offsets[3] = offsets[10]
    elif kind == "past the end":
        offsets[-1] += 10_000
    else:
        offsets[5] = -(2**40)
    put(folder, name, offsets.tobytes())

    with pytest.raises(HubArtefactError, match="rows would overlap or end"):
        load()


def test_arrays_of_another_length(folder, load):
    put(folder, "passages/duplicate_group.bin", bytes(4 * (ROWS - 1)))

    with pytest.raises(HubArtefactError, match="must have 192 bytes"):
        load()


@pytest.fixture
def on_disk(vectors, tmp_path):
    """An IVF index whose lists are in another file."""

    def make(victim: Path) -> faiss.Index:
        index = faiss.index_factory(DIMENSION, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        lists = faiss.OnDiskInvertedLists(2, index.code_size, str(victim))
        index.replace_invlists(lists, False)
        index.add(vectors)
        index.keep = lists
        return index

    return make


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_an_index_that_names_another_file_to_map(folder, load, on_disk, tmp_path):
    victim = tmp_path / "victim"
    index = on_disk(victim)
    put_index(folder, index)
    moved = tmp_path / "moved"
    victim.rename(moved)  # the index that was just made maps the old name
    victim.write_bytes(moved.read_bytes())
    before = (victim.stat().st_atime_ns, victim.read_bytes())

    with pytest.raises(HubArtefactError, match="OnDiskInvertedLists"):
        load()
    with pytest.raises(IndexFileError, match="another file"):
        open_index(folder / INDEX)

    assert victim.read_bytes() == before[1]
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(f" {victim}")]


def test_lists_on_disk_behind_lists_in_the_file(folder, load, on_disk, vectors, tmp_path):
    """FAISS's harmless reading ends at the first lists; the second ones are found by their mark."""
    first = build_index(vectors, "IVF2,Flat")
    second = on_disk(tmp_path / "victim")
    nested = faiss.IndexRefine(first, second)
    nested.ntotal = ROWS
    put_index(folder, nested)

    with pytest.raises(HubArtefactError, match="OnDiskInvertedLists"):
        load()


def test_an_index_of_200_bytes_that_claims_4_gib(folder, load, vectors):
    content = faiss.serialize_index(build_index(vectors)).tobytes()
    size = struct.pack("<Q", ROWS * DIMENSION * 4)
    short = content[:200].replace(size, struct.pack("<Q", 1 << 32), 1)
    put(folder, INDEX, short)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(HubArtefactError, match="is refused"):
        load()

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    "kind",
    ["ids past the corpus", "id map", "dimension", "rows", "metric", "untrained", "cut", "noise", "empty", "graph"],
)
def test_indexes_that_do_not_fit(folder, load, vectors, kind):
    index = build_index(vectors)
    content = None
    if kind == "ids past the corpus":
        index = faiss.index_factory(DIMENSION, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add_with_ids(vectors, np.arange(ROWS) + 1000)
    elif kind == "id map":
        index = faiss.IndexIDMap(faiss.IndexFlatIP(DIMENSION))
        index.add_with_ids(vectors, np.arange(ROWS) + 1000)
    elif kind == "dimension":
        index = build_index(np.ascontiguousarray(vectors[:, :8]))
    elif kind == "rows":
        index = build_index(vectors[:40])
    elif kind == "metric":
        index = faiss.IndexFlatL2(DIMENSION)
        index.add(vectors)
    elif kind == "untrained":
        index = faiss.index_factory(DIMENSION, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
        index.ntotal = ROWS
    elif kind == "cut":
        content = faiss.serialize_index(index).tobytes()[:-100]
    elif kind == "noise":
        content = np.random.default_rng(0).bytes(5000)
    elif kind == "empty":
        content = b""
    else:
        graph = build_index(vectors, "HNSW8")
        neighbours = faiss.vector_to_array(graph.hnsw.neighbors)
        content = faiss.serialize_index(graph).tobytes()
        content = content.replace(neighbours.tobytes(), np.full_like(neighbours, 2**30).tobytes(), 1)
    put(folder, INDEX, faiss.serialize_index(index).tobytes() if content is None else content)

    with pytest.raises(HubArtefactError, match="refused"):
        load()


def test_a_tokenizer_that_brings_code(folder, load, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nclass Evil:\n    pass\n"
    put(folder, "tokenizer/evil.py", code.encode())
    path = folder / "tokenizer/tokenizer_config.json"
    content = json.loads(path.read_text())
    content.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    put(folder, "tokenizer/tokenizer_config.json", json.dumps(content).encode())

    with pytest.raises(HubArtefactError):
        load()

    assert not mark.exists()


def test_another_tokenizer_than_the_passages(folder, load):
    path = folder / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    words = [word for word in vocab if word.isalpha()][:2]
    vocab[words[0]], vocab[words[1]] = vocab[words[1]], vocab[words[0]]
    put(folder, "tokenizer/tokenizer.json", json.dumps(content).encode())

    with pytest.raises(HubArtefactError, match=r"tokenizer of .* has fingerprint"):
        load()
    assert len(load(force=True)) == ROWS


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("beside", [True, False])
def test_a_tower_with_pickled_weights(folder, load, tmp_path, beside):
    mark = tmp_path / "ran"
    torch.save({"weight": Bomb(mark)}, folder / "embedder/pytorch_model.bin")
    put(folder, "embedder/pytorch_model.bin")
    if not beside:
        (folder / "embedder/model.safetensors").unlink()
        describe(folder, lambda content: content["files"].pop("embedder/model.safetensors"))

    with pytest.raises(HubArtefactError, match="pickled weights are not loaded"):
        load()

    assert not mark.exists()


@pytest.mark.parametrize("kind", ["cut", "header", "noise"])
def test_a_tower_with_damaged_safetensors(folder, load, kind):
    name = "embedder/model.safetensors"
    content = (folder / name).read_bytes()
    damaged = {
        "cut": content[:-1000],
        "header": struct.pack("<Q", 1 << 62) + content[8:],
        "noise": np.random.default_rng(0).bytes(1000),
    }
    put(folder, name, damaged[kind])

    with pytest.raises(HubArtefactError, match="passage tower"):
        load()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 10**9),
        ("vocab_size", 10**30),
        ("hidden_size", 10**6),
        ("num_hidden_layers", 10**7),
        ("retriever_proj_size", 8),
        ("model_type", "bert"),
        ("intermediate_size", -5),
    ],
)
def test_a_tower_that_claims_another_shape(folder, load, field, value):
    path = folder / "embedder/config.json"
    content = json.loads(path.read_text())
    content[field] = value
    put(folder, "embedder/config.json", json.dumps(content).encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(HubArtefactError, match="passage tower"):
        load()

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_another_tower_than_the_index(folder, load, tmp_path):
    from tiny_worlds import tiny_model

    tiny_model(seed=9).embedder.save_pretrained(tmp_path / "other")
    put(folder, "embedder/model.safetensors", (tmp_path / "other/model.safetensors").read_bytes())

    with pytest.raises(HubArtefactError, match=r"passage tower of .* has fingerprint"):
        load()


@pytest.mark.parametrize(
    "pin",
    [
        {"folder": "../elsewhere", "repo_id": None, "revision": None},
        {"folder": "/etc", "repo_id": None, "revision": None},
        {"folder": None, "repo_id": "../../etc", "revision": "main"},
        {"folder": None, "repo_id": "/etc", "revision": "main"},
        {"folder": None, "repo_id": 7, "revision": "main"},
        {"folder": None, "repo_id": "a/b", "revision": None},
        {},
    ],
)
def test_a_model_that_pins_something_else(folder, tmp_path, pin):
    model = tmp_path / "model"
    model.mkdir()
    content = {"format_version": 1, "retriever": {**pin, "content": "0"}, "fingerprints": {}}
    (model / PUBLICATION).write_text(json.dumps(content))

    with pytest.raises(HubArtefactError):
        RealmRetriever.from_pretrained(model)


def test_a_pinned_retriever_that_is_not_the_one_that_was_published(folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folder, model / "retriever")
    pin = {"folder": "retriever", "repo_id": None, "revision": None, "content": "0" * 64}
    content = {"format_version": 1, "retriever": pin, "fingerprints": {}}
    (model / PUBLICATION).write_text(json.dumps(content))

    with pytest.raises(HubArtefactError, match="was published with"):
        RealmRetriever.from_pretrained(model, cache_dir=tmp_path / "cache")


def test_the_description_reads_back_as_it_was(honest):
    content = json.loads((honest / DESCRIPTION).read_text())

    assert json.loads(HubManifest.from_dict(content, "here").to_json()) == content
