"""`realm-hf estimate`: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from realm_hf.estimate.costs import Estimate, estimate_run, time_in_words
from realm_hf.estimate.index_costs import DTYPE_BYTES
from realm_hf.estimate.plan import ENCODE_DTYPES, Plan, packaged_rates
from realm_hf.estimate.shapes import MODELS, ModelShape

__all__ = ["add_parser", "in_words"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `estimate` to the commands of an `argparse` parser; `options.command(options)` runs it."""
    parser = commands.add_parser(
        "estimate",
        description="Estimate a pre-training run from measured rates, and say what was assumed.",
        epilog="exit codes: 0 estimated, 4 an option has a value that no run can have",
    )
    known = packaged_rates()
    parser.add_argument("--passages", type=int, required=True, metavar="N", help="passages of the corpus")
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="optimizer steps")
    parser.add_argument(
        "--model", default="base", metavar="NAME", help=f"{', '.join(MODELS)}, or a folder's config.json"
    )
    parser.add_argument("--device", default=next(iter(known)), choices=known, help="measured (default: %(default)s)")
    defaults = {own.name: own.default for own in fields(Plan)}
    counts = ("devices", "builders", "index_cores", "batch_size", "candidates", "refresh_steps", "dimension")
    for name in (*counts, "keep_generations"):
        parser.add_argument(f"--{name}", type=int, default=defaults[name], metavar="N", help="(default: %(default)s)")
    parser.add_argument("--refresh_schedule", metavar="PARTS", help="such as 0-1000:250,1000-:1000 (default: none)")
    parser.add_argument(
        "--candidate_tokens",
        type=float,
        metavar="X",
        help="mean length of a candidate, as log.jsonl says (default: that of all passages)",
    )
    for name in ("query_tokens", "passage_tokens", "masked_tokens"):
        parser.add_argument(
            f"--{name}", type=float, default=defaults[name], metavar="X", help="(default: %(default)s)"
        )
    parser.add_argument(
        "--distinct_candidates",
        type=float,
        metavar="X",
        help="passages that a step embeds, shared ones once, as log.jsonl says (default: no two queries share one)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPE_BYTES, help="of embeddings (default: float32, and float16 for exact-sharded)"
    )
    parser.add_argument(
        "--encode_dtype",
        choices=ENCODE_DTYPES,
        default=defaults["encode_dtype"],
        help="in which passages are embedded (default: %(default)s)",
    )
    parser.add_argument(
        "--device_gigabytes",
        type=float,
        metavar="X",
        help="memory of a GPU that trains: auto may then search exactly on all of them (default: no GPU)",
    )
    parser.add_argument("--index_factory", default="auto", metavar="FACTORY", help="(default: %(default)s)")
    for name in ("train_tflops", "encode_tflops", "index_tflops", "disk_gigabytes"):
        parser.add_argument(f"--{name}", type=float, metavar="X", help="instead of the measured rate of the device")
    parser.add_argument("--bm25", action="store_true", help="with a BM25 source, as --candidate_mix bm25=4,dense=3")
    parser.add_argument("--freeze_encoder", action="store_true", help="only the retriever learns")
    parser.add_argument("--json", action="store_true", help="as JSON, in seconds and bytes")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    rates = packaged_rates()[options.device]
    given = {name: getattr(options, name) for name in asdict(rates) if getattr(options, name, None) is not None}
    if "encode_tflops" in given:
        # A rate of one's own is that of the precision of one's own, and of another device, which chooses otherwise.
        rates = replace(rates, bfloat16_encode_tflops=given["encode_tflops"], gigascores=None)
    if given:
        rates = replace(rates, **given, source=f"{', '.join(given)} as given; the others: {rates.source}")
    own = {name: getattr(options, name) for name in (own.name for own in fields(Plan)) if hasattr(options, name)}
    embedder, encoder = _shapes(options.model)
    found = estimate_run(
        Plan(**own, factory=options.index_factory, shape=embedder, encoder_shape=encoder, rates=rates),
    )
    if options.json:
        text = json.dumps({**asdict(found), "refresh_seconds": found.refresh_seconds}, indent=2)
    else:
        text = "\n".join(in_words(found))
    sys.stdout.write(f"{text}\n")
    return 0


def _shapes(name: str) -> tuple[ModelShape, ModelShape | None]:
    """Of the embedder, and of the encoder that reads where it is another."""
    if name in MODELS:
        return MODELS[name], None
    path = Path(name) / "config.json"
    if not path.is_file():
        raise ValueError(f"There is no {path}: give {', '.join(MODELS)}, or the folder of a model.")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.get("model_type", "bert") not in ("bert", "realm"):
        return _counted(content), None
    embedder, encoder = content.get("embedder_config"), content.get("encoder_config")
    if embedder == encoder:
        return _counted(embedder) if embedder else _of_bert(content, path), None
    return (
        _counted(embedder) if embedder else _of_bert(content, path),
        _counted(encoder) if encoder else _of_bert(content, path),
    )


def _of_bert(content: dict[str, Any], path: Path) -> ModelShape:
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not the configuration of a BERT-like model.")
    return ModelShape(**{name: content[name] for name in names})


def _counted(content: dict[str, Any]) -> ModelShape:
    # Only here is torch needed, which takes longer to import than all else takes to run.
    from realm_hf.estimate.encoder_shapes import shape_of_encoder
    from realm_hf.models.any_encoder import encoder_configuration

    return shape_of_encoder(encoder_configuration(content))


def in_words(found: Estimate) -> list[str]:
    """The estimate as lines of text."""
    return [
        f"index        {found.factory}",
        f"step         {time_in_words(found.step_seconds)}{_searched(found)}",
        f"refresh      {time_in_words(found.refresh_seconds)}: embedding {time_in_words(found.embed_seconds)}, index "
        f"{time_in_words(found.index_seconds)}, writing {time_in_words(found.write_seconds)}",
        f"staleness    {found.staleness_steps:,.0f} steps on average, {found.longest_staleness_steps:,.0f} at most",
        f"total        {time_in_words(found.total_seconds)}, with {found.refreshes:,} refreshes",
        f"memory       {_size(found.device_bytes)} on each device{_held(found)}, and activations; builder "
        f"{_size(found.builder_bytes)}; index and embeddings mapped {_size(found.serving_bytes)} a host",
        *_words(found),
        f"disk         {_size(found.disk_bytes)}",
        "assumed:",
        *(f"  - {line}" for line in found.assumed),
    ]


def _searched(found: Estimate) -> str:
    return f", {time_in_words(found.search_seconds)} of it for the search" if found.search_seconds else ""


def _held(found: Estimate) -> str:
    return f", {_size(found.share_bytes)} of it for two shares of the index" if found.share_bytes else ""


def _words(found: Estimate) -> list[str]:
    if not found.bm25_bytes:
        return []
    return [f"BM25         {_size(found.bm25_bytes)} mapped a host; built once, in {_size(found.built_bm25_bytes)}"]


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
