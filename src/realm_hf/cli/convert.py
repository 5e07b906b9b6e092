"""`realm-hf convert OLD NEW`: a checkpoint of transformers 4's REALM port in this package's form."""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `convert` to the commands of an `argparse` parser; `options.command(options)` runs it."""
    parser = commands.add_parser(
        "convert",
        description="Write the model, tokenizer, passages and embeddings of OLD into the directory NEW: safetensors, "
        "Parquet and a memory-mapped index. Records and embeddings stream through; nothing in OLD is executed.",
        epilog="exit codes: 0 converted, 4 OLD cannot be used or NEW not be written",
    )
    parser.add_argument("old", metavar="OLD", help="directory, or Hub name such as google/realm-orqa-nq-openqa")
    parser.add_argument("new", metavar="NEW", help="directory to make")
    parser.add_argument("--revision", help="branch, tag or commit of OLD")
    parser.add_argument(
        "--factory", default="Flat", help="FAISS factory of the index, or auto (default: %(default)s, exact)"
    )
    parser.add_argument("--train_size", type=int, metavar="N", help="rows that train another index than Flat")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of stored embeddings")
    parser.add_argument("--errors", choices=("strict", "replace"), default="strict", help="for records not in UTF-8")
    parser.add_argument(
        "--embedder", metavar="NAME", help="passage tower, such as google/realm-cc-news-pretrained-embedder"
    )
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from realm_hf.legacy.conversion import convert  # here: help needs no models

    parts = convert(
        options.old,
        options.new,
        revision=options.revision,
        factory=options.factory,
        train_size=options.train_size,
        dtype=options.dtype,
        errors=options.errors,
        embedder=options.embedder,
    )
    for part in parts:
        sys.stdout.write(f"{part.words}\n")
    sys.stdout.write(f"{options.new}\n")
    return 0
