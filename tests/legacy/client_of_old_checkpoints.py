"""Calls that load old checkpoints by name from the local Hub, each in a process of its own."""

import importlib.util
import sys
from pathlib import Path

from safetensors.torch import load_file

import realm_hf
from realm_hf.models.modeling_reader import RealmReader
from realm_hf.models.modeling_realm_qa import RealmForOpenQA

PARITY = Path(__file__).parents[1] / "parity"
_SPEC = importlib.util.spec_from_file_location("make_fixtures", PARITY / "make_fixtures.py")
port = sys.modules.setdefault("make_fixtures", importlib.util.module_from_spec(_SPEC))
_SPEC.loader.exec_module(port)


def differences(repo_id: str, kind: str, expected: str) -> dict:
    """The largest difference between what 4.57.6 computed and what a model loaded by name computes."""
    stored = load_file(expected)
    inputs = {name.removeprefix("input."): value for name, value in stored.items() if name.startswith("input.")}
    model_class = {"RealmReader": RealmReader, "RealmForOpenQA": RealmForOpenQA}.get(kind) or getattr(realm_hf, kind)
    model = model_class.from_pretrained(repo_id)
    if kind == "RealmForOpenQA":
        model.retriever = realm_hf.RealmRetriever.from_pretrained(repo_id)
        inputs.pop("block_emb", None)
    found = port.run_model(model, kind, inputs)
    outputs = {name for name in stored if name.startswith("output.")}
    return {
        "names": sorted(outputs ^ {name for name in found if name.startswith("output.")}),
        "largest": max((found[name].double() - stored[name].double()).abs().max().item() for name in outputs),
    }


def load_retriever(repo_id: str) -> int:
    return len(realm_hf.RealmRetriever.from_pretrained(repo_id))
