"""The retriever as its users have it: searched, edited, swapped, saved, loaded and published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from transformers import PreTrainedModel

from realm_hf.data.passages.build import NULL_PASSAGE
from realm_hf.hub.commit import HubCommit
from realm_hf.hub.retriever import check_model, push_retriever
from realm_hf.index.base import ABSENT, Collective
from realm_hf.knowledge.compaction import CompactedFiles
from realm_hf.knowledge.edited_corpus import EditedCorpus
from realm_hf.knowledge.files import RetrieverFiles, save_retriever_files
from realm_hf.knowledge.knowledge import Knowledge
from realm_hf.retriever.edits import (
    EDITING,
    EditCounts,
    NewPassages,
    add_passages,
    edit_counts,
    embed_new_passages,
    live_passages,
    remove_passages,
    replace_passages,
)
from realm_hf.retriever.loading import find_retriever
from realm_hf.retriever.saved_sources import saved_source
from realm_hf.retriever.searcher import PassageSearcher
from realm_hf.retriever.selection import RetrievalBatch, SearchStats
from realm_hf.retriever.text_search import SearchResult

__all__ = ["ABSENT", "NULL_PASSAGE", "RealmRetriever", "RetrievalBatch", "SearchResult", "SearchStats"]


class RealmRetriever(PassageSearcher):
    """
    Retrieves passages by inner product.

    Args:
        passages ([`PassageStore`] or `datasets.Dataset`): N passages. A dataset needs a column `text`; a column
            `embeddings` serves as `embeddings`. They stay as they are when knowledge is edited.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed by `__call__`, and to read a dataset's passages.
        index ([`SearchIndex`] or `faiss.Index`, *optional*): Inner product, row `i` is passage `i`. Built ("Flat") if
            there are embeddings.
        embeddings (`np.ndarray` of shape `[N, D]`, *optional*): For [`recall_against_exact`] and `save_pretrained`.
        generation_name (`str`, *optional*): Name of the generation, handed on with every batch.
        threads (`int`, *optional*): Threads of a search; FAISS's setting by default. With a builder on the same
            cores one thread is up to 20 times faster than two.
        embedder ([`RealmEmbedder`], *optional*): The passage tower that the embeddings come from (or the directory
            that it was saved in, from which it is loaded when it is first needed), for the null passage's and those of
            passages that are added.
        query_embedder ([`RealmEmbedder`], *optional*): The query tower, for [`search`]; given as `embedder` is.
        candidate_source ([`CandidateSource`], *optional*): Finds candidates instead of the index. Needs `embeddings`,
            which give a reader its p(z|x). [`BM25Source`] and what is made of it and the index are saved with the
            retriever; one of your own is not.

    Attributes:
        search_stats ([`SearchStats`]): Running totals.
        fingerprints (`dict[str, str]`): Of a published retriever: what belongs together, see [`check_model`].

    Example:
    ```python
    >>> retriever = RealmRetriever.from_pretrained("runs/mine")
    >>> for passage in retriever.search("[MASK] is the capital of Nicaragua.", k=5):
    ...     print(f"{passage.score:6.2f}  {passage.title}: {passage.text}")
    >>> retriever.retrieve(query_embeddings, k=8, exclude=sentences).rows.shape
    (12, 8)
    ```
    """

    @property
    def knowledge(self) -> Knowledge:
        """What is searched now, as a [`CandidateSource`] gets it; a `ValueError` without an index."""
        return self._searched()

    def alone(self) -> Self:
        """
        This retriever as it is now, for searches of one rank's own, in any thread: an index that all ranks of a
        training search together is searched without the others, which takes longer.
        """
        copied, knowledge = self.snapshot(), self._knowledge
        if knowledge is not None and isinstance(knowledge.index, Collective):
            copied._knowledge = replace(knowledge, index=knowledge.index.alone())
        return copied

    # Edits

    @property
    def edits(self) -> EditCounts:
        """What was added, replaced and removed since the retriever was made or loaded."""
        return edit_counts(self._corpus)

    def add_passages(self, texts: str | Sequence[str], titles: str | Sequence[str] | None = None) -> np.ndarray:
        """
        Add passages; they are found by the next search.

        Args:
            texts (`str` or sequence of `str`): Bodies. One that does not fit the passages' length with its title is
                cut, with a warning.
            titles (`str` or sequence of `str`, *optional*): Titles; empty by default.

        Returns:
            `np.ndarray`: int64, the rows that they have from now on: the next free ones.

        Raises:
            ValueError: If there is no index, passage tower (`embedder`) or tokenizer, the tower or the tokenizer is
                not the one that made the index, or a text is empty.
        """
        texts, titles = _strings(texts), None if titles is None else _strings(titles)
        new = self._embed(texts, [""] * len(texts) if titles is None else titles)
        with EDITING:
            knowledge, rows = add_passages(self._searched(), new)
            self._serve_edited(knowledge, new)
        return rows

    def replace_passages(
        self,
        rows: int | Sequence[int] | np.ndarray,
        texts: str | Sequence[str],
        titles: str | Sequence[str] | None = None,
    ) -> None:
        """
        Give passages another text. Their rows stay what they were.

        Args:
            rows (`int` or sequence of `int`): The passages.
            texts (`str` or sequence of `str`): A body for each.
            titles (`str` or sequence of `str`, *optional*): A title for each; they keep theirs by default.

        Raises:
            IndexError: If a row is no passage, or was removed.
            ValueError: As for [`add_passages`], if there are not as many texts as rows, or a row comes twice.
        """
        rows, texts = live_passages(self._searched().corpus, rows), _strings(texts)
        if len(texts) != len(rows):
            raise ValueError(f"There are {len(texts)} texts for {len(rows)} rows: give one for each.")
        new = self._embed(texts, self._corpus.titles(rows) if titles is None else _strings(titles))
        with EDITING:
            # Looked at again: another thread may have removed one of the rows.
            self._serve_edited(replace_passages(self._searched(), rows, new), new)

    def remove_passages(self, rows: int | Sequence[int] | np.ndarray) -> None:
        """
        Remove passages: no search returns them any more, and their rows are not given out again.

        Their texts can still be read by row, for whoever has retrieved them before.

        Args:
            rows (`int` or sequence of `int`): The passages.

        Raises:
            IndexError: If a row is no passage, or was removed.
            ValueError: If a row comes twice, no passage would be left, or there is no index.
        """
        with EDITING:
            self._serve(remove_passages(self._searched(), rows))

    def _embed(self, texts: Sequence[str], titles: Sequence[str]) -> NewPassages:
        return embed_new_passages(self._searched(), texts, titles, embedder=self.embedder, tokenizer=self.tokenizer)

    def _serve_edited(self, knowledge: Knowledge, new: NewPassages) -> None:
        if new.embedder is not self.embedder:
            raise ValueError("The passage tower was replaced while passages were embedded: edit them again.")
        self._serve(knowledge)

    # Files

    def files(self) -> RetrieverFiles:
        """What is published of the retriever; a `ValueError` without an index, or with edits."""
        knowledge = self._searched()
        if isinstance(knowledge.corpus, EditedCorpus):
            raise ValueError(
                f"The knowledge was edited ({self.edits}): save the retriever with `save_pretrained`, load the copy "
                "and publish that; its rows are numbered anew."
            )
        return RetrieverFiles(
            knowledge.corpus.passages,
            knowledge.index,
            knowledge.embeddings,
            knowledge.name,
            source=saved_source(self.candidate_source),
        )

    def save_pretrained(self, save_directory: str | Path) -> None:
        """
        Write passages, embeddings, index, tokenizer, towers and BM25 index into a directory, which may hold a model
        beside them: a query tower that is the model's is not written again.

        Edits are worked in: the passages are numbered anew in the order of their rows, without the removed ones
        ([`live_rows`]). This retriever keeps its rows, also where the directory is its own.

        Args:
            save_directory (`str` or `Path`): Made if need be. An earlier retriever in it is replaced; searches that
                have it mapped are not disturbed.

        Raises:
            ValueError: If there is no index, or there are edits and no embeddings.
            OSError: If the disk is full or read-only.
        """
        folder, knowledge = Path(save_directory), self._searched()
        if isinstance(knowledge.corpus, EditedCorpus):
            source = saved_source(self.candidate_source)
            content: RetrieverFiles | CompactedFiles = CompactedFiles.of(knowledge.corpus, knowledge.name, source)
        else:
            content = self.files()
        save_retriever_files(folder, content, self.embedder, self.query_embedder, self.tokenizer)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        index: bool | str = True,
        mmap: bool = True,
        verify: Literal["sizes", "sha256"] = "sizes",
        threads: int | None = None,
        **hub: Any,
    ) -> Self:
        """
        Load the retriever of a run, what [`save_pretrained`] wrote, or what was published: equal to the original bit
        for bit. Towers are loaded when they are first needed.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): A run directory (the retriever that it left beside its
                model; until then its newest generation), one generation of it (`RUN/index/step-...`), a directory
                with a saved retriever, such as the `model` folder of a run, or the name of a model's or a dataset's
                repository on the Hub. Checkpoints of transformers 4 (`google/realm-orqa-nq-openqa`) load as they are.
            revision (`str`, *optional*): A branch, tag or commit of the repository.
            index (`bool` or `str`, *optional*, defaults to `True`): Of a publication: its default index, the name of
                a variant, `"exact"` for a "Flat" one that is built here, or `False` for none. The others are not
                downloaded.
            mmap (`bool`, *optional*, defaults to `True`): Map index and embeddings: opening takes milliseconds, and
                processes share the memory. `False` reads them.
            verify (`str`, *optional*, defaults to `"sizes"`): `"sha256"` also hashes every file of a saved retriever;
                those of a publication are always hashed when they come.
            threads (`int`, *optional*): See [`RealmRetriever`].
            hub (*optional*): `token`, `cache_dir`, `local_files_only`, `embedder` and `force`, see
                [`~realm_hf.hub.load.load_published`].

        Raises:
            FileNotFoundError: If there is no retriever.
            ValueError: If a file is missing or cut, or the parts do not fit.
            HubArtefactError: If a publication is damaged, is not what it says, or its parts do not belong together.
            CorruptGenerationError: If a file was changed (found with `"sha256"` only).
            IndexFileError: If the index file is none that may be loaded.
        """
        parts = find_retriever(
            pretrained_model_name_or_path, revision=revision, index=index, mmap=mmap, verify=verify, **hub
        )
        arguments = {name: part for name, part in vars(parts).items() if name != "fingerprints"}
        retriever = cls(**arguments, threads=threads)
        retriever.fingerprints = parts.fingerprints
        return retriever

    # The Hub

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "500MB",
        tags: list[str] | None = None,
    ) -> str:
        """
        Publish passages, embeddings, index, tokenizer and towers as a dataset repository, in one commit.

        [`~realm_hf.hub.publish`] also sends the model, and writes cards from a run.

        Args:
            repo_id (`str`): `"owner/name"`.
            commit_message (`str`, *optional*, defaults to `"Upload retriever"`): The commit's first line.
            commit_description (`str`, *optional*): The rest of it.
            private (`bool`, *optional*): Visibility of a repository that is made.
            token (`bool` or `str`, *optional*): As for `huggingface_hub`.
            revision (`str`, *optional*): The branch; made if need be.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
            max_shard_size (`int` or `str`, *optional*, defaults to `"500MB"`): Of a Parquet file.
            tags (`list[str]`, *optional*): For the card that is written if the repository has none.

        Returns:
            `str`: The commit's address.

        Raises:
            ValueError: If there is no index, or no embeddings; or somebody else pushed meanwhile.
        """
        return push_retriever(
            self,
            HubCommit(repo_id, "dataset", private=private, branch=revision, token=token, create_pr=create_pr),
            message=commit_message or "Upload retriever",
            description=commit_description,
            max_shard_size=max_shard_size or "500MB",
            tags=tags,
        )

    def check_model(self, model: PreTrainedModel, *, force: bool = False) -> None:
        """
        Refuse a model whose query tower is not the one that was published with this retriever.

        A retriever that was not loaded from a publication, and a model whose weights were cast to another type, cannot
        be checked; dimensions always are.

        Args:
            model (`PreTrainedModel`): With an `embedder`, as [`RealmForOpenQA`] and [`RealmForPreTraining`].
            force (`bool`, *optional*, defaults to `False`): Warn only.

        Raises:
            ValueError: If they do not belong together.
        """
        check_model(model, dimension=self.index.dimension, fingerprints=self.fingerprints, force=force)


def _strings(values: str | Sequence[str]) -> Sequence[str]:
    return [values] if isinstance(values, str) else list(values)
