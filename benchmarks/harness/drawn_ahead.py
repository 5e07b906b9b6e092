"""Examples drawn by other processes before a trainer asks for them: a card would wait for one that draws by itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from realm_hf.training.data_order import DataOrder

_AT_ONCE = 64


class Visited(Protocol):
    """A data set whose examples follow from row and epoch."""

    def visit(self, index: int, epoch: int) -> Any:
        """The example of a row in an epoch."""

    def __len__(self) -> int:
        """Rows."""


class DrawnAhead:
    """Stands for the data set of a trainer that takes the stream from its beginning, each position once.

    Args:
        dataset: The trainer's.
        order: The order of its stream.
        count: Positions that will be asked for.
        processes: That draw.
    """

    def __init__(self, dataset: Visited, order: DataOrder, count: int, processes: int):
        self._length = len(dataset)
        batches: DataLoader = DataLoader(
            _Stream(dataset, order, count),
            batch_size=_AT_ONCE,
            num_workers=processes,
            prefetch_factor=4,
            collate_fn=list,
        )
        self._drawn: Iterator[tuple[int, int, Any]] = chain.from_iterable(batches)

    def __len__(self) -> int:
        return self._length

    def visit(self, index: int, epoch: int) -> Any:
        """The next example of the stream.

        Raises:
            RuntimeError: Another one was asked for.
        """
        row, of_epoch, example = next(self._drawn)
        if (row, of_epoch) != (index, epoch):
            raise RuntimeError(
                f"row {index} of epoch {epoch} was asked for, but the stream goes on with row {row} of epoch "
                f"{of_epoch}: let one trainer take it from its beginning"
            )
        return example


class _Stream(Dataset[tuple[int, int, Any]]):
    """Position -> row, epoch and example."""

    def __init__(self, dataset: Visited, order: DataOrder, count: int):
        self.dataset, self.order, self.count = dataset, order, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> tuple[int, int, Any]:
        rows, epochs = self.order(np.array([position]))
        row, epoch = int(rows[0]), int(epochs[0])
        return row, epoch, self.dataset.visit(row, epoch)
