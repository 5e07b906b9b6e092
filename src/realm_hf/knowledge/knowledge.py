"""What a retriever searches, as one object: passages, the index over them, embeddings, and their generation's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realm_hf.index.base import Embeddings, SearchIndex
    from realm_hf.knowledge.corpus import Corpus

__all__ = ["Knowledge"]


@dataclass(frozen=True)
class Knowledge:
    """
    What is searched; replaced as a whole, so that a search in another thread sees one generation and its passages.

    Args:
        corpus ([`Corpus`]): The passages.
        index ([`SearchIndex`]): Over them; an [`EditedIndex`] after edits.
        embeddings (array of shape `[N, D]`, *optional*): What the index was built from; perhaps [`EditedEmbeddings`].
        name (`str`, *optional*): The generation.
    """

    corpus: Corpus
    index: SearchIndex
    embeddings: Embeddings | None
    name: str | None

    def check(self) -> None:
        """Raise a `ValueError` if index, embeddings and the number of passages do not belong together."""
        passages, dimension = len(self.corpus), self.index.dimension
        if len(self.index) != passages:
            raise ValueError(f"The index has {len(self.index)} rows for {passages} passages: it belongs to others.")
        if self.embeddings is not None and self.embeddings.shape != (passages, dimension):
            raise ValueError(
                f"The embeddings are {list(self.embeddings.shape)}, the index is over {passages} rows of dimension "
                f"{dimension}: they do not belong together."
            )
