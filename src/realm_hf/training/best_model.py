"""The best weights so far, by the figure on the development set, and when to stop waiting for better ones.

    RUN/best/step-400/     model.safetensors, config.json: as `save_pretrained` writes them

What was best is part of every checkpoint, and its weights stay as long as a checkpoint names them, be it one that was
set aside: a run that goes back to an earlier checkpoint finds what was best then. So a later branch of the training
does not replace what an earlier one found best at the same step: it has a folder of its own, `step-400-term-3`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from realm_hf.runs.term import Term
from realm_hf.storage.directories import StagedDirectory, retire_directory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.training.aside import all_states
from realm_hf.training.checkpoints import save_model

logger = logging.getLogger(__name__)


class BestModel:
    """Every rank holds one and gives it the same figures; only the main process writes.

    Args:
        run (`pathlib.Path`): The run directory.
        patience (`int`, *optional*): Evaluations in a row without a better figure after which training ends; `None`
            for no end.
    """

    def __init__(self, run: Path, patience: int | None = None):
        self.run, self.patience = run, patience
        self.step: int | None = None
        self.folder_name: str | None = None
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
        path = None if self.folder_name is None else self.run / "best" / self.folder_name
        return path if path is not None and path.is_dir() else None

    def consider(self, step: int, value: float, generation: str) -> bool:
        """Note an evaluation; true if it is better than all before. A step that was noted last is not noted again.

        Args:
            step (`int`): Optimizer steps done.
            value (`float`): The figure; larger is better.
            generation (`str`): The index generation that was searched.
        """
        if step == self._last_step:
            return False
        self._last_step = step
        if value > self.value:
            self.step, self.value, self.generation, self.since = step, value, generation, 0
            return True
        self.since += 1
        return False

    def save(self, model: PreTrainedModel, term: Term | None = None) -> None:
        """Keep `model` as the best; weights that no checkpoint names any more are removed. On the main process.

        Args:
            model ([`~transformers.PreTrainedModel`]): The model.
            term ([`Term`], *optional*): The trainer's term.
        """
        assert self.step is not None
        place = None if term is None else term.place
        self.folder_name = f"step-{self.step}"
        if term is not None and (self.run / "best" / self.folder_name).exists():
            self.folder_name += f"-term-{term.number}"
        final = self.run / "best" / self.folder_name
        with explain_os_errors("keep the best weights in", final):
            with StagedDirectory(final, replace=True, place=place) as staged:
                save_model(model, staged.path)
            found, complete = all_states(self.run / "checkpoints")
            if not complete:
                return  # one of them may name any of the others
            named = {self.folder_name, *(_folder_of(state.get("best")) for state in found)}
            for folder in final.parent.glob("step-*"):
                if folder.name not in named:
                    retire_directory(folder, place)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "step": self.step,
            "folder": self.folder_name,
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
        self.folder_name = _folder_of(state)
        if self.step is not None and self.folder is None:
            logger.warning(
                "%s is gone, which held the best weights so far: the best from here on counts.",
                self.run / "best" / str(self.folder_name),
            )
            self.step, self.folder_name, self.value, self.generation = None, None, float("-inf"), None


def _folder_of(state: object) -> str | None:
    """The folder that a checkpoint's "best" names; earlier versions wrote the step alone."""
    if not isinstance(state, dict) or state.get("step") is None:
        return None
    return str(state.get("folder") or f"step-{state['step']}")
