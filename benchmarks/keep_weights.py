"""Keep the small model of a masked-LM run: its weights in float16, with configuration, tokenizer and what it has read.

    python benchmarks/keep_weights.py runs/masked-lm-small benchmarks/weights/masked-lm-small

The weights are rounded once, and load in float32. A model of more than `--megabytes` is refused.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from realm_hf import RealmTokenizer
from realm_hf.runs.records import read_run
from realm_hf.storage.files import write_json

_LOG = "log.jsonl"


def keep(run: Path, folder: Path, megabytes: float) -> None:
    """Write the folder; an earlier one is replaced."""
    model = AutoModelForMaskedLM.from_pretrained(run / "model", dtype=torch.float32)
    size = 2 * sum(weight.numel() for weight in model.parameters()) / 1e6
    if size > megabytes:
        raise SystemExit(f"{run}/model takes {size:.1f} MB in float16, more than --megabytes {megabytes:g}.")
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    # Whoever loads it computes in float32.
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    RealmTokenizer.from_pretrained(run / "model").save_pretrained(folder)
    record = read_run(run)
    tokens = sum(step["tokens"] for step in record.steps)
    last = record.evaluations[-1]
    facts = {name: last[name] for name in sorted(last) if name.startswith("eval_") or name == "step"}
    write_json(folder / "trained.json", {"tokens": tokens, "steps": record.steps[-1]["step"], **facts})
    print(f"{folder}: {size:.1f} MB, {tokens / 1e6:.1f} million tokens")


def main() -> None:
    """Keep one run's model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=12.0)
    args = parser.parse_args()
    keep(args.run, args.folder, args.megabytes)


if __name__ == "__main__":
    main()
