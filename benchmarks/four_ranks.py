"""Four gloo ranks train with search in shards while two builders refresh the index; one rank is killed, two go on.

    python benchmarks/four_ranks.py
    python benchmarks/four_ranks.py --passages 40000 --folder /tmp/four

The corpus is made up, and has more passages than a builder's task holds (16,384), so that both builders work on each
generation; the model is tiny and computes in float64. One process trains before the ranks with the same global batch.
Rank 2 kills itself in the forward pass of step 11; two ranks resume from the checkpoint of step 8. Printed as JSON:
the largest difference of a loss from that of one process, before the kill and after the resume; the seconds until the
other ranks had ended, and what they said; how many tasks of each snapshot its builders embedded.

`tests/distributed/test_four_ranks.py` is the same on 24 passages.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "fixtures")]
from harness.machine import measured_on  # noqa: E402
from launching import Program, finish, start_ranks, start_trainer  # noqa: E402
from tiny_worlds import ANSWERS, VOCAB, write_world  # noqa: E402

from realm_hf.runs.records import read_log  # noqa: E402

LAST_STEPS_SECONDS = 3600.0
KILLED = 2
SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "per_device_train_batch_size": 2,
    "save_steps": 4,
    "index_factory": "exact-sharded",
    "refresh_steps": 3,
    "learning_rate": 1e-3,
    "refresh": "async",
    "builder_device": "cpu,cpu",
    # An index is waited for one step after its snapshot: what is trained on does not depend on the builders' speed.
    "max_staleness": 3,
    "on_stale": "wait",
    "float64": True,
    "distinct": True,
}


def make_world(folder: Path, passages: int) -> None:
    """Passages about places of three words, no two with the same words, and 500 sentences that ask for some."""
    rng = np.random.default_rng(0)
    words = [word for word in VOCAB.read_text(encoding="utf-8").split() if word.isalpha() and len(word) >= 4]
    names: set[tuple[str, ...]] = set()
    while len(names) < passages:
        names.add(tuple(sorted(rng.choice(words, 3, replace=False))))
    places = [" ".join(name) for name in sorted(names)]
    sold = rng.choice(ANSWERS, passages)
    asked = rng.choice(passages, 500, replace=False)
    write_world(
        folder,
        places,
        [f"{place} sells {answer} now." for place, answer in zip(places, sold, strict=True)],
        [f"{places[row]} buys {sold[row]} here." for row in asked],
    )


class Claims:
    """Who embeds which task of which snapshot, read from the claims while there are any."""

    def __init__(self, run: Path):
        self.run = run
        self.seen: dict[str, dict[str, int]] = defaultdict(dict)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            for owner in self.run.glob("index/.builds/[!.]*/embed/claims/*/owner.json"):
                snapshot, claim = owner.parts[-5].rpartition("-e")[0], owner.parts[-2]
                if claim not in self.seen[snapshot]:
                    try:
                        self.seen[snapshot][claim] = int(json.loads(owner.read_text(encoding="utf-8"))["pid"])
                    except (OSError, KeyError, ValueError):
                        continue  # removed, or not written yet: the next look sees it

    def end(self) -> dict[str, list[int]]:
        """For each snapshot the tasks that each of its builders embedded, most first."""
        self._ended.set()
        self._thread.join()
        counts = {}
        for snapshot, claims in self.seen.items():
            owners = list(claims.values())
            counts[snapshot] = sorted((owners.count(pid) for pid in set(owners)), reverse=True)
        return counts


def losses(run: Path) -> list[float]:
    """Of every step."""
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


def killed(ranks: list[Program]) -> tuple[float, list[str]]:
    """Seconds from the death of one rank until all had ended, and what the others said last."""
    assert ranks[KILLED].wait(LAST_STEPS_SECONDS) == -signal.SIGKILL, ranks[KILLED].output
    died = time.monotonic()
    others = [rank for number, rank in enumerate(ranks) if number != KILLED]
    for rank in others:
        assert rank.wait(LAST_STEPS_SECONDS) != 0, rank.output
    seconds = time.monotonic() - died
    return seconds, [rank.output.strip().splitlines()[-1][:160] for rank in others]


def measure(folder: Path, passages: int) -> dict[str, Any]:
    """All of it."""
    world, one, four = folder / "world", folder / "one", folder / "four"
    make_world(world, passages)
    single = start_trainer(world, one, gradient_accumulation_steps=4, **SETTINGS)
    finish([single], LAST_STEPS_SECONDS)
    expected, claims = losses(one), Claims(four)
    seconds, said = killed(start_ranks(world, four, 4, die_in="11.0", die_on=KILLED, **SETTINGS))
    before = losses(four)
    resumed = start_ranks(world, four, 2, gradient_accumulation_steps=2, resume=True, **SETTINGS)
    finish(resumed, LAST_STEPS_SECONDS)
    after = losses(four)
    return {
        "passages": passages,
        "steps before the kill": len(before),
        "largest difference before": max(abs(a - b) for a, b in zip(before, expected, strict=False)),
        "steps of the resumed run": len(after),
        "largest difference after": max(abs(a - b) for a, b in zip(after, expected, strict=True)),
        "seconds until the others ended": round(seconds, 2),
        "the others said": said,
        "tasks by builder": claims.end(),
        "measured_on": measured_on(1, "benchmarks/four_ranks.py", libraries=("torch", "transformers")),
    }


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=20_000, help="rows of the index (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where corpus and runs are left (default: nowhere)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(asked.folder or Path(temporary), asked.passages), indent=2))


if __name__ == "__main__":
    main()
