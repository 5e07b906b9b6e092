"""Parquet files that would become far more than they are: refused before the memory is taken."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_folder import DIMENSION, ROWS, SHARD, put, rows

from realm_hf.hub import parquet_pages, parquet_rows
from realm_hf.hub.manifest import ShardRecord
from realm_hf.hub.parquet_rows import LONGEST_TEXT
from realm_hf.hub.parquet_rows import published_rows as read_rows
from realm_hf.untrusted.checks import HubArtefactError


def put_texts(folder, vectors, texts: list[str], **options) -> None:
    """The honest rows with other texts, written as a stranger might."""
    table = rows(vectors)
    table = table.set_column(1, "text", pa.array(texts))
    pq.write_table(table, folder / SHARD, compression="zstd", compression_level=19, **options)
    put(folder, SHARD)


@pytest.fixture
def load_in(load):
    """Load, with the most bytes that Arrow held at once beside what it holds already."""

    def load_in(words: str) -> int:
        pool = pa.default_memory_pool()
        held = max(pool.max_memory(), pool.bytes_allocated())
        with pytest.raises(HubArtefactError, match=words):
            load()
        return pool.max_memory() - held

    return load_in


@pytest.mark.parametrize("use_dictionary", [True, False], ids=["one text that all rows point to", "pages of zeros"])
def test_a_small_file_that_becomes_large(folder, load_in, vectors, use_dictionary):
    put_texts(folder, vectors, ["x" * 2_000_000] * ROWS, use_dictionary=use_dictionary)
    assert (folder / SHARD).stat().st_size < 30_000

    assert load_in("was made to take memory") < 8_000_000


def test_many_groups_that_each_become_little(folder, load_in, vectors):
    put_texts(folder, vectors, ["x" * 2_000_000] * ROWS, row_group_size=1)

    assert load_in("was made to take memory") < 8_000_000


def test_a_text_that_is_no_passage(folder, load_in, vectors):
    put_texts(folder, vectors, ["x" * (LONGEST_TEXT + 1), *["b"] * (ROWS - 1)])

    assert load_in(r"has a text of 16\.8 MB; at most 16\.8 MB are read") < 40_000_000


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_encodings_that_publishing_does_not_write(folder, load_in, vectors, encoding):
    put_texts(folder, vectors, ["b"] * ROWS, use_dictionary=["title"], column_encoding={"text": encoding})

    load_in("which is not read from strangers")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_honest_pages_are_counted_as_they_are(tmp_path, vectors, version):
    path = tmp_path / "honest.parquet"
    pq.write_table(rows(vectors), path, data_page_version=version, row_group_size=20, compression="none")
    with pq.ParquetFile(path) as file, path.open("rb") as content:
        for group in (file.metadata.row_group(number) for number in range(file.num_row_groups)):
            for place, width in ((0, 1), (1, 1), (2, DIMENSION)):
                column = group.column(place)
                found = parquet_pages.read_pages(content, path.stat().st_size, column, "it")
                assert found.values == group.num_rows * width
                # The footer also counts the headers.
                assert 0 < column.total_uncompressed_size - found.bytes < 400


def test_rows_come_in_pieces_and_are_the_rows(tmp_path, vectors, monkeypatch):
    path = tmp_path / "honest.parquet"
    table = rows(vectors).set_column(1, "text", pa.array([("long " if n % 7 else "") * n for n in range(ROWS)]))
    pq.write_table(table, path, row_group_size=30)
    monkeypatch.setattr(parquet_rows, "_PIECE", 1000)

    pieces = list(read_rows(ShardRecord("it", ROWS), path, DIMENSION))

    found = pa.concat_tables(pieces)
    assert len(pieces) > 5
    assert all(len(piece) == 1 or piece["text"].nbytes < 1600 for piece in pieces)  # 8 bytes of offset for each
    assert found["text"].to_pylist() == table["text"].to_pylist()
    assert found["embeddings"].to_pylist() == table["embeddings"].to_pylist()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"\x15\x00\x05\x02", "do not ascend"),
        (b"\x1c" * 8, "nested"),
        (b"\x15" + b"\xff" * 12, "without end"),
        (b"\x19\x00", "type 9"),
    ],
    ids=["a field again", "nested", "endless number", "a list"],
)
def test_page_headers_that_are_none(header, words):
    with pytest.raises(ValueError, match=words):
        parquet_pages._Compact(header + bytes(20)).struct()
