"""The checkpoints of a training that runs: resumed from, written, pruned."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from realm_hf.training.checkpoints import (
    Checkpoint,
    find_checkpoint,
    optimizer_moments,
    prune_checkpoints,
    save_checkpoint,
    set_later_aside,
)
from realm_hf.training.finite import require_finite_weights
from realm_hf.training.ranks import Ranks
from realm_hf.training.resumed_arguments import check_resumed, recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from realm_hf.training.task import TrainingTask

logger = logging.getLogger(__name__)


class RunCheckpoints:
    """Every rank holds one and makes the same calls; the main process reads and writes the directory.

    Args:
        ranks ([`Ranks`]): Those of the training.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        #: Step and directory of the newest one, written or resumed from.
        self.step: int | None = None
        self.path: Path | None = None

    def resume(self, trainer: TrainingTask, wanted: bool | str | Path | None) -> Checkpoint | None:
        """Put weights, optimizer and cursor of a checkpoint into the trainer, and set later ones aside.

        Args:
            trainer ([`TrainingLoop`]): It holds the directory's lock.
            wanted (`bool` or `str`, *optional*): As `train` takes it.

        Returns:
            The checkpoint; `None` at the beginning of a training.

        Raises:
            RunDirectoryError: See [`find_checkpoint`] and [`check_resumed`].
        """
        root = trainer.checkpoints
        checkpoint = self._ranks.on_main(partial(find_checkpoint, root, wanted), "look for a checkpoint")
        if checkpoint is not None:
            self._restore(trainer, checkpoint)
        later = partial(set_later_aside, root, checkpoint, trainer.place)
        self._ranks.on_main(later, "set later checkpoints aside")
        return checkpoint

    def write(self, trainer: TrainingTask) -> Path:
        """Write a checkpoint of the step that is done, and remove those beyond `save_total_limit`."""
        state, tensors = trainer.loop_state()
        state |= {"step": trainer.step, "cursor": trainer.cursor}
        state |= {"world_size": trainer.world_size, "seed": trainer.args.seed}
        state |= {"term": trainer.term_number, "skipped_steps": trainer.skipped_steps.total}
        state |= recorded(trainer.args, trainer.trained_on())
        everything = {
            f"rank{rank}.{name}": t for rank, own in enumerate(self._ranks.gather(tensors)) for name, t in own.items()
        }

        model = trainer.weights.on_main()
        moments = optimizer_moments(
            trainer.model, trainer.optimizer.optimizer, keep=trainer.accelerator.is_main_process
        )

        def write() -> Path:
            path = save_checkpoint(
                trainer.checkpoints,
                model,
                moments,
                state=state,
                tensors=everything,
                place=trainer.place,
            )
            prune_checkpoints(trainer.checkpoints, trainer.args.save_total_limit, trainer.place)
            return path

        path = self._ranks.on_main(write, "write the checkpoint")
        self.step, self.path = trainer.step, path
        return path

    def _restore(self, trainer: TrainingTask, checkpoint: Checkpoint) -> None:
        check_resumed(checkpoint.path, checkpoint.state, trainer.args, trainer.trained_on(), trainer.world_size)
        self._ranks.on_main(trainer.verify_data, "compare the corpus with its hashes")

        def load(model: PreTrainedModel) -> None:
            checkpoint.load_model(model)
            require_finite_weights(model, f"resumed from {checkpoint.path}")

        trainer.weights.fill(load)
        before = checkpoint.state.get("arguments", {}).get("optim", "adamw_torch_fused")
        if (before == "adafactor") == (trainer.args.optim == "adafactor"):
            checkpoint.load_optimizer(trainer.optimizer.optimizer, trainer.model)
        else:
            logger.warning("optim %s then, %s now: its moments begin anew", before, trainer.args.optim)
        trainer.step, trainer.cursor = checkpoint.step, int(checkpoint.state["cursor"])
        trainer.skipped_steps.total = int(checkpoint.state.get("skipped_steps", 0))
        if checkpoint.path.parent.resolve() == trainer.checkpoints.resolve():
            self.step, self.path = checkpoint.step, checkpoint.path
        logger.info("resuming from %s", checkpoint.path)
