"""What an index takes, from its factory: operations to build it, bytes while it is built and when it is."""

__all__ = ["DTYPE_BYTES", "bm25_bytes", "built_bm25_bytes", "built_index_bytes", "index_bytes", "index_operations"]

DTYPE_BYTES = {"float16": 2, "float32": 4}
_KMEANS_ITERATIONS = 10  # FAISS's for inverted lists
_LISTS_GROWTH = 1.5  # a list takes twice its room when it is full
# Different words of a passage for each of its wordpieces, stop words left out: 0.430 in 2,000 paragraphs of SQuAD of
# 151 wordpieces, 0.428 in as many passages of Wikipedia of 134.
_WORDS_A_WORDPIECE = 0.43
_POSTING_BYTES = 4 + 4  # row and score
# Term, row and count: as they were found, joined, and sorted, and the order that sorts them.
_BUILT_POSTING_BYTES = 3 * (8 + 4 + 4) + 8


def index_operations(rows: int, dimension: int, factory: str, train_size: int | None) -> float:
    """
    Floating-point operations of k-means and of finding each row's list; copying rows into a flat index counts nothing.

    Args:
        rows (`int`): N.
        dimension (`int`): D.
        factory (`str`): A FAISS factory string, "auto" resolved.
        train_size (`int`, *optional*): Rows that train the lists; as many as FAISS takes by default.

    Returns:
        `float`
    """
    if "IVF" not in factory:
        return 0.0
    lists = int(factory.split("IVF", 1)[1].split(",", 1)[0].split("_", 1)[0])
    trained = min(train_size or 256 * lists, rows, 256 * lists)
    return 2.0 * lists * dimension * (_KMEANS_ITERATIONS * trained + rows)


def index_bytes(rows: int, dimension: int, factory: str) -> float:
    """
    Of an index on disk and mapped: codes, links of a graph, row numbers of lists.

    Args:
        rows (`int`): N.
        dimension (`int`): D.
        factory (`str`): A FAISS factory string, "auto" resolved.

    Returns:
        `float`
    """
    lists = 8 if "IVF" in factory else 0
    if "PQ" in factory:
        return rows * (float(factory.rsplit("PQ", 1)[1].split("x", 1)[0]) + lists)
    code = 2 * dimension if "SQfp16" in factory else dimension if "SQ8" in factory else 4 * dimension
    links = 8 * int("".join(filter(str.isdigit, factory[4:6]))) if factory.startswith("HNSW") else 0
    return float(rows * (code + links + lists))


def built_index_bytes(rows: int, dimension: int, factory: str, train_size: int | None) -> float:
    """
    Of an index in the memory of the process that builds it, with the sample that trains it.

    With embeddings in half precision and libraries 8.5 GiB were measured at 13,353,718 x 128 for lists in half
    precision (9.0 by this and half a gigabyte of libraries), 6.9 without lists (6.9), 7.1 for a graph (6.9).

    Args:
        rows (`int`): N.
        dimension (`int`): D.
        factory (`str`): A FAISS factory string, "auto" resolved.
        train_size (`int`, *optional*): Rows that train it; all by default.

    Returns:
        `float`
    """
    index = index_bytes(rows, dimension, factory)
    if "IVF" not in factory:
        return index
    return _LISTS_GROWTH * index + min(train_size or rows, rows) * dimension * DTYPE_BYTES["float32"]


def bm25_bytes(tokens: float) -> float:
    """
    Of a BM25 index on disk and mapped: its postings; the words themselves are few beside them.

    Args:
        tokens (`float`): Wordpieces of all passages.

    Returns:
        `float`
    """
    return tokens * _WORDS_A_WORDPIECE * _POSTING_BYTES


def built_bm25_bytes(tokens: float) -> float:
    """
    Of a BM25 index in the memory of the process that builds it.

    Args:
        tokens (`float`): Wordpieces of all passages.

    Returns:
        `float`
    """
    return tokens * _WORDS_A_WORDPIECE * _BUILT_POSTING_BYTES
