"""What embedding passages in fewer bits costs: differences of coordinates, and neighbours lost, against float32.

    python examples/fetch_minilm.py && python benchmarks/encode_dtypes.py

The passages are the CIA World Factbook's, the tower is all-MiniLM-L6-v2 as the demo begins with it, or that of a run
(`--model runs/demo/model`). Queries are the demo's questions, in float32 unless said. On a GPU tf32 is the device's
own; elsewhere its rounding is imitated: inputs and weights of every linear layer are cut to 10 bits behind the point.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from realm_hf import RealmEmbedder, RealmTokenizer
from realm_hf.generations.embedding import embed_passages
from realm_hf.index.exact import exact_search
from realm_hf.models.precision import encoding_in
from realm_hf.training.prefetch import encode_queries

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from factbook_task import prepare_task, start_model  # noqa: E402
from fetch_minilm import DEFAULT_FOLDER  # noqa: E402

DEPTH = 5
_KEPT_BITS = -(1 << 13)  # float32 has 23 bits behind the point, tf32 10


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="a BERT, or RUN/model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "encode-dtypes", help="of the passages")
    parser.add_argument("--passages", type=int, default=1000, help="as many, spread over the corpus")
    parser.add_argument("--questions", type=int, default=1000)
    args = parser.parse_args()
    device = torch.device(args.device)
    task = prepare_task(args.folder, RealmTokenizer.from_pretrained(args.model))
    embedder = load_tower(args.model).to(device).eval()
    texts = [question.question for question in task.questions[: args.questions]]
    ids = [np.asarray(one, np.int64) for one in task.tokenizer(texts)["input_ids"]]
    queries = encode_queries(embedder, ids)

    rows = np.linspace(0, len(task.passages) - 1, min(args.passages, len(task.passages))).astype(np.int64)
    exact = embed_passages(embedder, task.passages, rows=rows)
    nearest = exact_search(exact, queries, DEPTH)[1]
    print(f"{len(exact)} passages, {len(queries)} questions, {args.model.name} on {args.device};")
    print(f"standard deviation of a coordinate {exact.std():.2f}, largest {np.abs(exact).max():.1f}", flush=True)
    print("| passages | queries | largest difference | mean difference | kept of the best 5 |")
    print("|---|---|---:|---:|---:|")
    for dtype in ("float32", "tf32", "bfloat16"):
        with encoding_in(dtype, device), imitated_tf32(dtype == "tf32" and device.type != "cuda"):
            found = embed_passages(embedder, task.passages, rows=rows)
        apart = np.abs(found - exact)
        for bf16 in (False, True):
            asked = encode_queries(embedder, ids, bf16=True) if bf16 else queries
            kept = share_kept(nearest, exact_search(found, asked, DEPTH)[1])
            said = "bfloat16" if bf16 else "float32"
            print(f"| {dtype} | {said} | {apart.max():.4f} | {apart.mean():.5f} | {100 * kept:.2f} % |", flush=True)


def load_tower(model: Path) -> RealmEmbedder:
    """The passage tower of a run's model, or one made of a BERT."""
    if (model / "config.json").is_file() and '"realm"' in (model / "config.json").read_text(encoding="utf-8"):
        from realm_hf import RealmForPreTraining

        return RealmForPreTraining.from_pretrained(model).embedder
    return start_model(str(model), seed=0).embedder


def share_kept(nearest: np.ndarray, found: np.ndarray) -> float:
    """The mean share of each row of `nearest` `[Q, k]` that is in the same row of `found`."""
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(nearest, found, strict=True)]))


@contextmanager
def imitated_tf32(wanted: bool) -> Iterator[None]:
    """Linear layers multiply what tf32 would leave of their inputs and weights; sums stay float32, as on a GPU."""
    linear = torch.nn.functional.linear
    fused = torch.backends.mkldnn.enabled

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int32)
        return ((bits + (1 << 12)) & _KEPT_BITS).view(torch.float32)

    if wanted:
        torch.nn.functional.linear = lambda x, weight, bias=None: linear(cut(x), cut(weight), bias)
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # the fused layer has a kernel of its own
    try:
        yield
    finally:
        torch.nn.functional.linear = linear
        torch.backends.mkldnn.enabled = fused  # type: ignore[assignment]


if __name__ == "__main__":
    main()
