"""Search results and right passages as text files that `trec_eval` and its relatives read.

Written by hand: a line each is less than a dependency that would only format it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from realm_hf.retriever.text_search import SearchResult
from realm_hf.storage.files import replacement

__all__ = ["write_qrels", "write_trec_run"]


def write_trec_run(
    results: Sequence[SearchResult], path: str | Path, *, ids: Sequence[str] | None = None, tag: str = "realm_hf"
) -> Path:
    """
    Writes what was retrieved: `question Q0 passage rank score tag` a line, ranks from 1, passages by their rows.

    Evaluation tools order by score, and may order equal scores otherwise than they are ranked here.

    Args:
        results (sequence of Q [`SearchResult`]): Of [`RealmRetriever.search`].
        path (`str` or `Path`): The file; replaced in one step when it exists.
        ids (sequence of Q `str`, *optional*): Names of the questions; their numbers, from 0, by default.
        tag (`str`, *optional*, defaults to `"realm_hf"`): Name of the run.

    Returns:
        `Path`: The file written.

    Raises:
        ValueError: If a name is empty, has white space or stands for two questions, or their number is not Q.

    Example:
    ```python
    >>> from realm_hf import RealmRetriever, write_trec_run

    >>> retriever = RealmRetriever.from_pretrained("runs/mine")
    >>> write_trec_run(retriever.search(["Who wrote Faust?"], k=100), "mine.run", ids=["q1"])
    ```
    """
    names = _names(ids, len(results))
    _check_name(tag, "tag")
    return _write(
        path,
        (
            f"{name} Q0 {found.row} {rank} {found.score:.9g} {tag}\n"
            for name, result in zip(names, results, strict=True)
            for rank, found in enumerate(result, start=1)
        ),
    )


def write_qrels(gold: Sequence[Iterable[int]], path: str | Path, *, ids: Sequence[str] | None = None) -> Path:
    """
    Writes which passages are right: `question 0 passage 1` a line. A question without any has no line.

    Args:
        gold (sequence of Q iterables of `int`): Rows of the right passages, of [`~realm_hf.data.find_gold_rows`].
        path (`str` or `Path`): The file; replaced in one step when it exists.
        ids (sequence of Q `str`, *optional*): Names of the questions, as in [`write_trec_run`].

    Returns:
        `Path`: The file written.

    Raises:
        ValueError: As [`write_trec_run`]; also if a row is repeated or negative.
    """
    names = _names(ids, len(gold))
    lines = []
    for name, rows in zip(names, gold, strict=True):
        right = [int(row) for row in rows]
        if min(right, default=0) < 0 or len(set(right)) < len(right):
            raise ValueError(f"Question {name!r} has the right passages {right}: give each row once, none below 0.")
        lines += [f"{name} 0 {row} 1\n" for row in right]
    return _write(path, lines)


def _names(ids: Sequence[str] | None, count: int) -> list[str]:
    names = [str(number) for number in range(count)] if ids is None else list(ids)
    if len(names) != count:
        raise ValueError(f"There are {len(names)} ids for {count} questions: give one for each.")
    for name in names:
        _check_name(name, "id")
    if len(set(names)) < count:
        repeated = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"The id {repeated!r} stands for more than one question: each needs its own.")
    return names


def _check_name(name: str, what: str) -> None:
    if not name or name.split() != [name]:
        raise ValueError(f"The {what} {name!r} is empty or has white space, which ends a field in these files.")


def _write(path: str | Path, lines: Iterable[str]) -> Path:
    with replacement(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    return Path(path)
