"""The numeric tests under other kernels: `make portable`.

Which kernels torch, oneDNN and MKL take hangs on the processor; each is told here to be an older one. What may change
with them is bits of scores, never an answer: see `fixtures/promises.py`. A variant combines several settings, so that
four of them, one after the other, take about five minutes on two cores.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TWO_RANKS = "test_two_ranks_with_accumulation_equal_one_process_with_the_same_global_batch"

# What computes with a model and compares.
NUMERIC = [
    "tests/qa/test_answering.py",
    "tests/models/test_bert_initialization.py",
    "tests/models/test_ragged_encoding.py",
    "tests/models/test_losses.py",
    "tests/models/test_modeling_embedder.py",
    "tests/models/test_modeling_reader.py",
    "tests/models/test_modeling_realm.py",
    "tests/models/test_modeling_realm_qa.py",
    "tests/qa/test_pipelines.py",
    "tests/test_portability.py",
    "tests/retriever/test_retriever.py",
    "tests/index/test_embedding.py",
    "tests/parity",
    "tests/training/test_inverse_cloze.py",
    "tests/training/test_loop.py",
    "tests/training/test_open_qa.py",
]

# Of what starts processes, the tests that compare what two of them compute: with one thread each, whatever is set
# here, so that the variants of one thread are enough.
PROCESSES = [
    f"tests/distributed/test_two_processes.py::{TWO_RANKS}",
    "tests/hub/test_publish.py::test_another_process_answers_the_same_by_name_tag_and_commit",
]

# In those files, of checkpoints and files and not of numbers: no kernel changes what they find.
BOOKKEEPING = [
    *("going_back", "went_back", "damaged_newest", "first_protocol", "missing_generation", "gives_the_run_back"),
    *("error_of_the_search", "hooks_are_called", "goes_on_when", "another_batch", "patience", "best_weights"),
    *("taken_over", "lost_index", "refused", "epochs_become", "last_weights_are_the_model"),
]

# The settings of torch's own kernels, of oneDNN (fused layers, bfloat16) and of MKL (matrix products).
VARIANTS = {
    "oldest kernels, MKL compatible everywhere, 1 thread": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OMP_NUM_THREADS": "1",
    },
    "oldest kernels, MKL with SSE 4.2, 2 threads": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OMP_NUM_THREADS": "2",
    },
    "AVX2, weights at odd addresses and products that heed it, 1 thread": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OMP_NUM_THREADS": "1",
        "REALM_TEST_WEIGHTS_AT": "12",
    },
    "AVX2, MKL reproducible, 2 threads": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "OMP_NUM_THREADS": "2",
    },
}


def processor() -> str:
    """The processor's name, as Linux tells it, and the best kernels that torch has for it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")
    return f"{name}, {os.cpu_count()} cores, torch's kernels: {torch.backends.cpu.get_cpu_capability()}"


def run(name: str, settings: dict[str, str], arguments: list[str]) -> bool:
    """Run the numeric tests under a variant; print its name, pytest's closing line, and all of pytest if one fails."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    tests = [*NUMERIC, *(PROCESSES if settings["OMP_NUM_THREADS"] == "1" else [])]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", *tests]
    command += ["-k", f"not ({' or '.join(BOOKKEEPING)})", *arguments]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **settings}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{name}\n  {' '.join(f'{key}={value}' for key, value in settings.items())}")
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n")
    closing = (done.stdout.strip().splitlines() or ["pytest said nothing"])[-1]
    print(f"  {closing} ({spent:.0f} processor seconds, {time.monotonic() - began:.0f} s)", flush=True)
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Run every variant, also after one that fails; arguments are pytest's."""
    print(processor(), flush=True)
    failed = [name for name, settings in VARIANTS.items() if not run(name, settings, arguments)]
    print(f"{len(VARIANTS) - len(failed)} of {len(VARIANTS)} variants passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
