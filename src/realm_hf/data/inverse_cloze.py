"""The inverse cloze task (Lee et al., 2019; the paper's warm start, section 3.4): a sentence asks for its passage.

In 90 % of the cases the sentence is taken out of the passage, so that matching words alone does not solve the task. A
one-sentence passage would be empty then; as released, such a draw is thrown away and another passage is drawn.

Queries of pre-training carry [MASK], which a sentence encoder has never met: all-MiniLM-L6-v2 finds the passage of one
masked statement in five where it finds that of a question in two. `mask_probability` lets it meet masks here.
"""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from realm_hf.data.masking import INVERSE_CLOZE_STREAM, example_rng
from realm_hf.data.passages.store import PassageStore

# A masked run is as long as most salient spans.
LONGEST_MASK = 5


@dataclass(frozen=True)
class InverseClozeExample:
    """
    One sentence and its passage, without special tokens.

    Args:
        query_ids (`np.ndarray` of shape `[Q]`): Wordpieces of the sentence, some of them perhaps masked.
        passage_row (`int`): Row of the passage in the store.
        title_ids (`np.ndarray` of shape `[T]`): Wordpieces of the title.
        body_ids (`np.ndarray` of shape `[S]`): Wordpieces of the body, with or without the sentence.
        kept (`bool`): Whether the sentence was left in the body.
    """

    query_ids: np.ndarray
    passage_row: int
    title_ids: np.ndarray
    body_ids: np.ndarray
    kept: bool


class InverseClozeDataset(Dataset[InverseClozeExample]):
    """
    Map-style dataset with one example a passage and visit, the same for the same (seed, epoch, index).

    `dataset[index]` is the visit of the first epoch; [`visit`] gives those of the others.

    Args:
        passages (`PassageStore`): The corpus.
        keep_probability (`float`, *optional*, defaults to 0.1): How often the sentence stays in the passage.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        rows (`np.ndarray`, *optional*): Restrict to these passage rows; all by default.
        mask_probability (`float`, *optional*, defaults to 0.0): How often a run of 1 to 5 wordpieces of the query is
            masked. Not in the paper, whose towers start from a masked language model.

    Raises:
        ValueError: If there is no passage that could give an example, or a probability is none.
    """

    def __init__(
        self,
        passages: PassageStore,
        keep_probability: float = 0.1,
        seed: int = 0,
        rows: np.ndarray | None = None,
        mask_probability: float = 0.0,
    ) -> None:
        for name, value in (("keep_probability", keep_probability), ("mask_probability", mask_probability)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: it must lie in [0, 1]")
        self.passages = passages
        self.keep_probability = keep_probability
        self.mask_probability = mask_probability
        self.seed = seed
        self.rows = np.arange(len(passages)) if rows is None else np.asarray(rows, np.int64)
        if not len(self.rows):
            raise ValueError("no passage rows to draw from: the corpus or the split is empty")
        if keep_probability == 0 and passages.sentence_counts[self.rows].max() < 2:
            raise ValueError(
                f"all {len(self.rows)} passages have one sentence, and keep_probability is 0: nothing would be left "
                "of a passage; build passages of several sentences, or keep the sentence sometimes"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> InverseClozeExample:
        if not 0 <= index < len(self.rows):
            raise IndexError(f"example {index} is out of range for {len(self.rows)} passages")
        return self.visit(index, epoch=0)

    def visit(self, index: int, epoch: int) -> InverseClozeExample:
        """
        The example of passage `self.rows[index]` in an epoch.

        A one-sentence passage whose sentence would be taken out is replaced by another passage, drawn at random.
        """
        rng = example_rng(self.seed, epoch, index, INVERSE_CLOZE_STREAM)
        while True:
            row = int(self.rows[index])
            kept = bool(rng.random() < self.keep_probability)
            if kept or self.passages.sentence_counts[row] > 1:
                return self._example(row, kept, rng)
            index = int(rng.integers(len(self.rows)))

    def _example(self, row: int, kept: bool, rng: np.random.Generator) -> InverseClozeExample:
        body, starts = self.passages.body_ids(row), self.passages.sentence_starts(row)
        sentence = int(rng.integers(len(starts)))
        start = int(starts[sentence])
        end = int(starts[sentence + 1]) if sentence + 1 < len(starts) else len(body)
        rest = body if kept else np.concatenate([body[:start], body[end:]])
        query = self._masked(body[start:end], rng)
        return InverseClozeExample(query, row, self.passages.title_ids(row), rest, kept)

    def _masked(self, query: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The query, with one random run of wordpieces masked in `mask_probability` of the cases; never all of it."""
        if not self.mask_probability or rng.random() >= self.mask_probability or len(query) < 2:
            return query
        length = int(rng.integers(1, min(LONGEST_MASK, len(query) - 1) + 1))
        start = int(rng.integers(len(query) - length + 1))
        masked = query.copy()
        masked[start : start + length] = self.passages.special_tokens.mask
        return masked
