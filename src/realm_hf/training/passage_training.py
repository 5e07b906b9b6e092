"""What the warm starts share: their examples follow from passages and cursor alone, with no index and no thread."""

from __future__ import annotations

import numpy as np

from realm_hf.data.passages.store import PassageStore
from realm_hf.training.checkpoints import Checkpoint
from realm_hf.training.data_order import DataOrder, step_positions
from realm_hf.training.loop import TrainingLoop


class PassageTraining(TrainingLoop):
    """A training on the passages themselves; a subclass sets `passages` and `order`."""

    passages: PassageStore
    order: DataOrder

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Nothing to prepare: the examples follow from the cursor alone."""

    def close(self) -> None:
        """Nothing to end: no thread, no child process."""

    @property
    def examples_per_epoch(self) -> int:
        """Passages in one pass over the data."""
        return self.order.size

    def positions(self) -> np.ndarray:
        """Positions in the stream of this rank's coming step, int64 `[accumulation, batch]`."""
        args = self.args
        return step_positions(
            self.cursor,
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            self.rank,
            self.world_size,
        )

    def verify_data(self) -> None:
        """The files of the passages."""
        PassageStore.load(self.passages.directory, verify=True)
