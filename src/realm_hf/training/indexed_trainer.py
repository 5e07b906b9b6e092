"""What pre-training and fine-tuning share: a run directory with its passages, and an index that is served."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from realm_hf.data.passages.store import PassageStore
from realm_hf.index.default_index import SearchDevices
from realm_hf.runs.directory import RunDirectory
from realm_hf.training.adopted_index import adopt_newest_generation
from realm_hf.training.checkpoints import save_model
from realm_hf.training.loop import TrainingLoop
from realm_hf.training.retrieval_evaluation import RetrievalQuestions
from realm_hf.training.run_retriever import name_model, save_run_retriever, staged_model

if TYPE_CHECKING:
    from accelerate import Accelerator

    from realm_hf.models.modeling_realm import RealmEmbedder
    from realm_hf.runs.lock import TrainerLock
    from realm_hf.training.arguments import RefreshArguments
    from realm_hf.training.checkpoints import Checkpoint
    from realm_hf.training.index_service import IndexService


def search_devices(accelerator: Accelerator, dimension: int) -> SearchDevices | None:
    """The accelerators of a training that could search an index together; `None` on the CPU.

    Args:
        accelerator (`accelerate.Accelerator`): The training's.
        dimension (`int`): D, of an embedding.
    """
    if accelerator.device.type != "cuda":
        return None
    memory = torch.cuda.get_device_properties(accelerator.device).total_memory
    return SearchDevices(accelerator.num_processes, memory, dimension)


class IndexedTrainer(TrainingLoop):
    """A loop over an index; a subclass sets `run`, `passages` and `index` when it is constructed."""

    args: RefreshArguments
    run: RunDirectory
    passages: PassageStore
    index: IndexService
    #: Questions whose retrieval is measured at each swap and evaluation.
    retrieval: RetrievalQuestions | None = None
    _retrieved: tuple[tuple[int, str], dict[str, float]] | None = None

    def acquire_lock(self) -> TrainerLock:
        """The run's own lock, which begins a new term."""
        return self.run.lock()

    def open_run(self, root: Path, passages: PassageStore) -> RunDirectory:
        """Open the run directory, or make it on the main process.

        Args:
            root (`Path`): Where it is.
            passages ([`PassageStore`]): The corpus.

        Raises:
            RunDirectoryError: It belongs to another corpus or was made with other settings.
            OSError: It cannot be written to.
        """
        create = {
            "passages": passages,
            "tokenizer": self.processing_class,
            "devices": search_devices(self.accelerator, self.model.config.retriever_proj_size),
            **self.args.index_settings,
        }
        self.on_main(lambda: RunDirectory.open_or_create(root, **create).root, "prepare the run directory")
        return RunDirectory.open(root)

    def serve(
        self,
        checkpoint: Checkpoint | None,
        tower: RealmEmbedder,
        *,
        ended: bool,
        adopt_from: str | Path | None = None,
    ) -> None:
        """Serve the first generation: the checkpoint's, that of another run, or one built now.

        Args:
            checkpoint ([`Checkpoint`], *optional*): Where training goes on.
            tower ([`RealmEmbedder`]): The passage tower as it is now, with whole weights.
            ended (`bool`): No step is left; see [`IndexService.resumed`].
            adopt_from (`str`, *optional*): A run directory whose newest generation serves if it fits.
        """
        self.on_main(lambda: name_model(self.run, self.weights.outline, self.place), "name the model")
        resumed = name = None
        if checkpoint is not None:
            served = checkpoint.state["generation"]
            resumed = self.on_main(lambda: self.index.resumed(served, self.step, tower, ended), "look for the index")
        if resumed is None and adopt_from is not None:
            name = self.on_main(lambda: adopt_newest_generation(self.run, adopt_from, tower), "take the index over")
        if resumed is None and name is None:
            self._say(f"Building the first index of {len(self.passages)} passages.")
        started = time.perf_counter()
        event = self.index.start(self.step, tower, resumed or name)
        if resumed is None:
            self._note({"events": [event], "index_seconds": time.perf_counter() - started})
        if checkpoint is not None and checkpoint.state.get("pending_snapshot") is not None:
            self.index.submit(self.step, tower)

    def write_model(self, generation: str | None, weights: Path | None = None) -> None:
        """Write RUN/model: weights, tokenizer and, with a generation, all that they search; on every rank.

        Args:
            generation (`str`, *optional*): Its retriever is put beside the weights.
            weights (`Path`, *optional*): A folder that `save_pretrained` wrote; by default the model as it is now.
        """
        model = self.weights.on_main() if weights is None else None

        def write() -> None:
            with staged_model(self) as folder:
                if generation is not None:
                    save_run_retriever(self.run, generation, folder)
                if model is not None:
                    save_model(model, folder)
                elif weights is not None:
                    shutil.copytree(weights, folder, dirs_exist_ok=True)
                self.processing_class.save_pretrained(folder)

        self.on_main(write, "write the model")

    def evaluate_retrieval(self, tower: RealmEmbedder) -> dict[str, float]:
        """Recall and nDCG of `retrieval` over the index that is served, once for a step and an index; on every rank.

        Args:
            tower ([`RealmEmbedder`]): Embeds the questions: the query tower as it is now.

        Returns:
            `eval_recall_at_1`, `_5` and `_20` and `eval_ndcg_at_10`, between 0 and 1; empty without questions.
        """
        questions = self.retrieval
        if questions is None or not len(questions):
            return {}
        now = (self.step, self.index.generation)
        if self._retrieved is None or self._retrieved[0] != now:
            own = range(self.rank, len(questions), self.world_size)

            def measure() -> list[float]:
                with self.index.reading() as served:
                    return questions.sums(tower, served.retriever, numbers=own, bf16=self.bf16)

            sums = self.sum_over_ranks(self.together("evaluate the retrieval", measure))
            self._retrieved = now, questions.averages(sums)
        return dict(self._retrieved[1])

    def retrieval_after_swap(self, tower: RealmEmbedder) -> dict[str, Any]:
        """What a swap adds to the record of its step: [`evaluate_retrieval`] and the seconds it took."""
        started = time.perf_counter()
        figures = self.evaluate_retrieval(tower)
        if not figures:
            return {}
        words = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._say(f"step {self.step}  {self.index.generation} is served: {words}")
        return {**figures, "eval_seconds": time.perf_counter() - started}
