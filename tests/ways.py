"""How many files and packages three ways through the code enter, and where calls turn back: `python tests/ways.py`.

Calls are watched while the ways are walked on a tiny corpus: one step of pre-training, steps with a refresh of the
index, a question. A call turns back where its file imports nothing of the called one, directly or by others: a
function or an object was handed down. Those are the places at which a reader must know who calls.
"""

import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import grimp
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "fixtures")]

from three_trainers import trainer_of  # noqa: E402
from tiny_worlds import fact_world  # noqa: E402

from realm_hf import QuestionAnswerer, RealmForOpenQA, RealmRetriever  # noqa: E402

SOURCE = f"{ROOT / 'src'}/"


class Walk:
    """Files that are entered, and calls between them, while it is on."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.calls: set[tuple[str, str]] = set()
        self.on = False
        threading.setprofile(self._watch)
        sys.setprofile(self._watch)

    def _watch(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.on or event != "call" or not frame.f_code.co_filename.startswith(SOURCE):
            return
        entered = frame.f_code.co_filename
        self.files.add(entered)
        caller = frame.f_back
        calling = entered if caller is None else caller.f_code.co_filename
        if calling != entered and calling.startswith(SOURCE):
            self.calls.add((calling, entered))

    def report(self, name: str, graph: grimp.ImportGraph) -> None:
        """Print what was seen since the last report."""
        packages = {module_of(path).split(".")[1] for path in self.files}
        back = sorted(
            (module_of(caller), module_of(called))
            for caller, called in self.calls
            if not graph.chain_exists(module_of(caller), module_of(called))
        )
        print(f"{name}: {len(self.files)} files of {len(packages)} packages, {len(self.calls)} ways between files")
        print(f"  turns back: {len(back)}")
        for caller, called in back:
            print(f"    {caller.removeprefix('realm_hf.')} -> {called.removeprefix('realm_hf.')}")
        self.files, self.calls = set(), set()


def module_of(path: str) -> str:
    return path.removeprefix(SOURCE).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@contextmanager
def watching_steps(walk: Walk, first: int, last: int):
    """On from the end of optimizer step `first` to that of `last`, which is where gradients are set to nothing."""
    original: Callable[..., None] = torch.optim.Optimizer.zero_grad
    done = 0

    def zero_grad(self: torch.optim.Optimizer, set_to_none: bool = True) -> None:
        nonlocal done
        original(self, set_to_none)
        done += 1
        walk.on = first <= done < last

    torch.optim.Optimizer.zero_grad = zero_grad
    try:
        yield
    finally:
        torch.optim.Optimizer.zero_grad = original
        walk.on = False


def main() -> None:
    graph = grimp.build_graph("realm_hf", cache_dir=None)
    walk = Walk()
    with tempfile.TemporaryDirectory() as work:
        world, runs = Path(work, "world"), Path(work, "runs")
        fact_world(world)
        with watching_steps(walk, 2, 3):
            trainer_of("pre-training", world, runs / "a", refresh_steps=100, max_steps=5).train()
        walk.report("query text to loss, one step", graph)
        with watching_steps(walk, 2, 4):
            trainer_of("pre-training", world, runs / "b", refresh_steps=3, max_steps=5).train()
        walk.report("snapshot to swap, two steps with a refresh between them", graph)
        trainer_of("fine-tuning", world, runs / "c").train()
        answerer = QuestionAnswerer(
            RealmForOpenQA.from_pretrained(runs / "c"), RealmRetriever.from_pretrained(runs / "c")
        )
        walk.on = True
        answerer("what does it sell?")
        walk.on = False
        walk.report("question to answer", graph)


if __name__ == "__main__":
    main()
