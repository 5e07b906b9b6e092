"""The best weights so far, by the figure on the development set, and when to stop waiting for better ones.

    RUN/best/step-400/     model.safetensors, config.json: as `save_pretrained` writes them

What was best is part of every checkpoint, and its weights stay as long as a checkpoint names them: a run that goes
back to an earlier checkpoint finds what was best then.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from realm_hf.storage.directories import StagedDirectory, retire_directory
from realm_hf.storage.errors import explained
from realm_hf.training.checkpoints import list_checkpoints, save_model

logger = logging.getLogger(__name__)


class BestModel:
    """Every rank holds one and tells it the same figures; only the main process writes.

    Args:
        run: The run directory.
        patience: Evaluations in a row without a better figure after which training ends; `None` for no end.
    """

    def __init__(self, run: Path, patience: int | None = None):
        self.run, self.patience = run, patience
        self.step: int | None = None
        self.value = float("-inf")
        self.generation: str | None = None
        #: Evaluations since the best one.
        self.since = 0
        self._last_step: int | None = None

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.since >= self.patience

    @property
    def folder(self) -> Path | None:
        """Where the best weights are; `None` if there are none."""
        path = self._folder(self.step) if self.step is not None else None
        return path if path is not None and path.is_dir() else None

    def consider(self, step: int, value: float, generation: str) -> bool:
        """Note an evaluation; true if it is better than all before. A step that was noted last is not noted again.

        Args:
            step: Optimizer steps done.
            value: The figure; larger is better.
            generation: The index generation that was searched.
        """
        if step == self._last_step:
            return False
        self._last_step = step
        if value > self.value:
            self.step, self.value, self.generation, self.since = step, value, generation, 0
            return True
        self.since += 1
        return False

    def save(self, model: PreTrainedModel) -> None:
        """Keep `model` as the best; weights that no checkpoint names any more are removed. On the main process."""
        assert self.step is not None
        final = self._folder(self.step)
        with explained("keep the best weights in", final):
            with StagedDirectory(final, replace=True) as staged:
                save_model(model, staged.path)
            named = {checkpoint.state.get("best", {}).get("step") for checkpoint in list_checkpoints(self.checkpoints)}
            kept = {self._folder(step) for step in {*named, self.step} if step is not None}
            for folder in final.parent.glob("step-*"):
                if folder not in kept:
                    retire_directory(folder)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "step": self.step,
            "value": self.value if self.step is not None else None,
            "generation": self.generation,
            "since": self.since,
            "last_step": self._last_step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        self.step, self.generation = state["step"], state["generation"]
        self.value = float("-inf") if state["value"] is None else float(state["value"])
        self.since, self._last_step = int(state["since"]), state["last_step"]
        if self.step is not None and self.folder is None:
            logger.warning(
                "%s is gone, which held the best weights so far: the best from here on counts.",
                self._folder(self.step),
            )
            self.step, self.value, self.generation = None, float("-inf"), None

    @property
    def checkpoints(self) -> Path:
        """The run's checkpoints."""
        return self.run / "checkpoints"

    def _folder(self, step: int) -> Path:
        return self.run / "best" / f"step-{step}"
