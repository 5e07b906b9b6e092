"""The passage store: documents cut into passages, tokenized once, then memory-mapped.

    PASSAGES/passages.json                        counts, lengths, special tokens, fingerprints, files with sha256
    PASSAGES/rows/                                `datasets` rows: title, text, document, duplicate_group
    PASSAGES/{title,body}_tokens{,_offsets}.bin   wordpiece ids of each passage
    PASSAGES/sentence_starts{,_offsets}.bin       first wordpiece of each sentence of a body (ICT draws from them)

Row -1 is the null passage everywhere: empty title, empty body, never stored and never in an index.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset, load_from_disk

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.passages.tokens import PassageTokens
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.models.host_facts import NULL_PASSAGE
from realm_hf.storage.files import check_files, read_description

__all__ = ["FORMAT_VERSION", "NULL_PASSAGE", "PassageStore"]

FORMAT_VERSION = 2
"""Of the fingerprint of what was built in several ranges; the files are those of format 1."""


class PassageStore(PassageTokens):
    """
    Passages of one corpus: their text as `datasets` rows, their wordpieces as flat memory-mapped arrays.

    Make one with [`~realm_hf.data.build_passages`] or [`~realm_hf.data.passages_from_rows`], open one with
    [`PassageStore.load`]. It pickles as its path, so that worker processes map the same files.

    Args:
        directory (`str` or `Path`): A directory that one of the two builders wrote.

    Attributes:
        fingerprint (`str`): Name of the content: texts, wordpieces and tokenizer. Equal for equal input, whatever
            the number of processes that built it.
        tokenizer_fingerprint (`str`): See [`~realm_hf.data.vocabulary.tokenizer_fingerprint`].
        max_length (`int`): Most wordpieces of `[CLS] title [SEP] body [SEP]`.
        special_tokens (`SpecialTokens`): Ids of the tokenizer's special tokens.
        statistics (`dict[str, int]`): Counts of the build, skips included.
        rows (`Dataset`): Columns `title`, `text`, `document` (row of the source) and `duplicate_group`.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.info = read_description(
            self.directory / "passages.json",
            FORMAT_VERSION,
            "passage store",
            "build one with `build_passages`",
            oldest=1,
        )
        self.fingerprint: str = self.info["fingerprint"]
        self.tokenizer_fingerprint: str = self.info["tokenizer_fingerprint"]
        self.max_length: int = self.info["max_length"]
        self.statistics: dict[str, int] = self.info["statistics"]
        self.special_tokens = SpecialTokens(**self.info["special_tokens"])
        self.dtype = np.dtype(self.info["dtype"])
        self.title_tokens = RaggedArray(self.directory, "title_tokens", self.dtype)
        self.body_tokens = RaggedArray(self.directory, "body_tokens", self.dtype)
        self._sentence_starts = RaggedArray(self.directory, "sentence_starts", self.dtype)
        if not len(self.title_tokens) == len(self.body_tokens) == len(self._sentence_starts) == self.info["count"]:
            raise ValueError(f"{self.directory}: the arrays do not all have {self.info['count']} rows; build it again")

    @classmethod
    def load(cls, directory: str | Path, verify: bool = False) -> "PassageStore":
        """
        Open a store.

        Args:
            directory (`str` or `Path`): Where it was written.
            verify (`bool`, *optional*, defaults to `False`): Also read all files and compare their sha256; sizes are
                always compared.

        Raises:
            FileNotFoundError: If there is no store.
            ValueError: If files are missing, cut, or (with `verify`) changed.
        """
        store = cls(directory)
        if verify:
            check_files(store.directory, store.info["files"], verify=True)
        return store

    def __reduce__(self) -> tuple[type["PassageStore"], tuple[Path]]:
        return type(self), (self.directory,)

    @cached_property
    def rows(self) -> Dataset:
        """The rows as a memory-mapped `datasets.Dataset`."""
        return load_from_disk(str(self.directory / "rows"))

    @cached_property
    def duplicate_groups(self) -> np.ndarray:
        """Group of each passage, int32 `[N]`: equal for passages whose text is the same up to case and punctuation."""
        return self.rows.data.column("duplicate_group").to_numpy()

    @cached_property
    def documents(self) -> np.ndarray:
        """Row of the source document of each passage, int64 `[N]`."""
        return self.rows.data.column("document").to_numpy()

    def title(self, row: int) -> str:
        """Title of a passage; empty for the null passage."""
        return self._text(row, "title")

    def text(self, row: int) -> str:
        """Body of a passage, the exact slice of its document; empty for the null passage."""
        return self._text(row, "text")

    def _text(self, row: int, column: str) -> str:
        return self.rows[int(row)][column] if self._check_row(row) else ""
