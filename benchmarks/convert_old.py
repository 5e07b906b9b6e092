"""How fast, and in how much memory, `realm-hf convert` turns an old checkpoint with an index into the new form.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/convert_old.py --records 2000000

The checkpoint is synthetic: records of English-like text of about 640 bytes, as the published ones have, in the pickle
that `np.save` writes, and random embeddings of 128 numbers in a `pytorch_model.bin`. Making it is not measured; the
conversion runs in a process of its own, whose peak memory the kernel reports (mapped files count in it).
"""

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from realm_hf import RealmConfig
from realm_hf.models.modeling_realm_qa import RealmForOpenQA

PUBLISHED = 13_353_718
ROWS = 10_000
CONVERT = """
import resource, sys, json, time
from realm_hf.legacy.conversion import convert
started = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF)
parts = convert(sys.argv[1], sys.argv[2], factory=sys.argv[3])
usage = resource.getrusage(resource.RUSAGE_SELF)
# `ru_maxrss` would begin at what the parent had, which made the checkpoint.
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"parts": [[p.what, p.rows, p.bytes, p.seconds] for p in parts], "cpu": cpu,
                  "peak": peak, "seconds": time.perf_counter() - started,
                  "words": [p.words for p in parts]}))
"""


def write_records(path: Path, count: int) -> None:
    """The file that `np.save` writes for an object array of `bytes`, without holding the array."""
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, size)).decode() for size in rng.integers(2, 12, 5000)]
    text = " ".join(words[number] for number in rng.integers(0, len(words), 400_000)).encode()
    starts, lengths = rng.integers(0, len(text) - 2000, count), rng.integers(400, 880, count)
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': ({count},), }}".ljust(117) + "\n"
    one = pickle.dumps(np.array([b"x" * 300], dtype=object), protocol=4)
    before, after = one[: one.index(b"B\x2c\x01\0\0")], b"t\x94b."
    before = before.replace(one[2:11], b"").replace(
        b"K\x01\x85\x94h", b"J" + count.to_bytes(4, "little") + b"\x85\x94h"
    )
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + before)
        for first in range(0, count, 1000):
            texts = [
                text[a : a + n]
                for a, n in zip(starts[first : first + 1000], lengths[first : first + 1000], strict=True)
            ]
            file.write(b"(" + b"".join(b"B" + len(one).to_bytes(4, "little") + one + b"\x94" for one in texts) + b"e")
        file.write(after)


def write_weights(folder: Path, count: int, dimension: int) -> None:
    """A tiny model with a large `block_emb`."""
    config = RealmConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        retriever_proj_size=dimension, num_block_records=count, architectures=["RealmForOpenQA"],
    )  # fmt: skip
    config.save_pretrained(folder)
    scratch = folder / "scratch"
    blocks = np.memmap(scratch, np.float32, "w+", shape=(count, dimension))
    rng = np.random.default_rng(1)
    for first in range(0, count, ROWS):
        blocks[first : first + ROWS] = rng.standard_normal((min(ROWS, count - first), dimension), np.float32)
    state = RealmForOpenQA(config).state_dict() | {"block_emb": torch.from_numpy(blocks)}
    torch.save(state, folder / "pytorch_model.bin")
    scratch.unlink()


def measure(old: Path, new: Path, records: int, factory: str) -> None:
    """Convert in a process of its own, and print rates, CPU time and peak memory."""
    arguments = [sys.executable, "-c", CONVERT, str(old), str(new), factory]
    report = json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout)
    written = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
    print("\n".join(report["words"]))
    print(f"all: {report['seconds']:.1f} s, {report['cpu']:.1f} s of CPU, {written / 1e9:.2f} GB written")
    print(f"peak memory: {report['peak'] / 1e9:.2f} GB")
    for name in ("seconds", "cpu"):
        minutes = report[name] * PUBLISHED / records / 60
        print(f"extrapolated for {PUBLISHED:,} records, by {name}: {minutes:.1f} min")
    print(f"load: {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Make the checkpoint, convert it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--factory", default="Flat")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary directory)")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="convert-", dir=options.folder))
    try:
        old = root / "old"
        old.mkdir()
        write_records(old / "block_records.npy", options.records)
        write_weights(old, options.records, options.dimension)
        made = sum(file.stat().st_size for file in old.iterdir())
        print(
            f"old checkpoint: {options.records:,} records, {made / 1e9:.2f} GB; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        measure(old, root / "new", options.records, options.factory)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
