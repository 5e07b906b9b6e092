"""Variables of the original release become parameters of the five classes."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch

from realm_hf import RealmConfig, RealmEmbedder, RealmKnowledgeAugEncoder, RealmScorer
from realm_hf.legacy.tensorflow_names import from_tensorflow, parameter_name
from realm_hf.models.modeling_reader import RealmReader
from realm_hf.models.modeling_realm_qa import RealmForOpenQA

OLD_PYTHON = os.environ.get("REALM_OLD_PYTHON")
MODELS = {
    model.__name__: model
    for model in (RealmEmbedder, RealmScorer, RealmKnowledgeAugEncoder, RealmReader, RealmForOpenQA)
}
SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
    "retriever_proj_size": 6,
    "span_hidden_size": 5,
    "num_block_records": 3,
}
# The towers of a checkpoint: its scopes for BERT, for the prediction head and for the heads that are REALM's own.
PRETRAINED_EMBEDDER = ("module/module/module/bert", "module/module/module/cls", "module/module")
FINE_TUNED_EMBEDDER = ("module/module/module/module/bert", "module/module/module/module/cls", "module/module/module")
CHECKPOINTS = {
    "RealmEmbedder": [PRETRAINED_EMBEDDER],
    "RealmScorer": [PRETRAINED_EMBEDDER],
    "RealmKnowledgeAugEncoder": [("bert", "cls", None)],
    "RealmReader": [("reader/module/bert", "reader/module/cls", "reader")],
    "RealmForOpenQA": [FINE_TUNED_EMBEDDER, ("reader/module/bert", "reader/module/cls", "reader")],
}


def variables(kind: str) -> dict[str, np.ndarray]:
    """A checkpoint of that kind in the release's names, with values that tell all of them apart."""
    shapes: dict[str, tuple[int, ...]] = {}
    hidden, inner, words = SMALL["hidden_size"], SMALL["intermediate_size"], SMALL["vocab_size"]

    def dense(scope, inputs, outputs):
        shapes[f"{scope}/kernel"], shapes[f"{scope}/bias"] = (inputs, outputs), (outputs,)

    def norm(scope, size):
        shapes[f"{scope}/gamma"], shapes[f"{scope}/beta"] = (size,), (size,)

    for bert, cls, own in CHECKPOINTS[kind]:
        for name, size in (("word", words), ("position", SMALL["max_position_embeddings"]), ("token_type", 2)):
            shapes[f"{bert}/embeddings/{name}_embeddings"] = (size, hidden)
        norm(f"{bert}/embeddings/LayerNorm", hidden)
        for layer in range(SMALL["num_hidden_layers"]):
            scope = f"{bert}/encoder/layer_{layer}"
            for part in ("query", "key", "value"):
                dense(f"{scope}/attention/self/{part}", hidden, hidden)
            dense(f"{scope}/attention/output/dense", hidden, hidden)
            norm(f"{scope}/attention/output/LayerNorm", hidden)
            dense(f"{scope}/intermediate/dense", hidden, inner)
            dense(f"{scope}/output/dense", inner, hidden)
            norm(f"{scope}/output/LayerNorm", hidden)
        dense(f"{bert}/pooler/dense", hidden, hidden)
        shapes[f"{cls}/predictions/output_bias"] = (words,)
        dense(f"{cls}/predictions/transform/dense", hidden, hidden)
        norm(f"{cls}/predictions/transform/LayerNorm", hidden)
        if own == "reader":
            dense("reader/dense", hidden, 2 * SMALL["span_hidden_size"])
            dense("reader/dense_1", SMALL["span_hidden_size"], 1)
            norm("reader/layer_normalization", SMALL["span_hidden_size"])
        elif own:
            dense(f"{own}/dense", hidden, SMALL["retriever_proj_size"])
            norm(f"{own}/LayerNorm", SMALL["retriever_proj_size"])
    rng = np.random.default_rng(0)
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"global_step": np.array(7), f"{next(iter(made))}/adam_m": np.zeros(3, np.float32)}


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_found(kind):
    model = MODELS[kind](RealmConfig(**SMALL))
    state = from_tensorflow(variables(kind), kind)
    result = model.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    tied = ("decoder.weight", "decoder.bias", "position_ids", "token_type_ids")
    missing = [name for name in result.missing_keys if not name.endswith(tied)]
    assert [name for name in missing if not name.startswith("query_embedder.")] == []


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("bert/pooler/dense/kernel", "RealmKnowledgeAugEncoder", "realm.pooler.dense.weight"),
        ("bert/pooler/dense/kernel", "RealmForOpenQA", "reader.realm.pooler.dense.weight"),
        ("bert/pooler/dense/kernel", "RealmReader", None),
        ("reader/dense_1/bias", "RealmForOpenQA", "reader.qa_outputs.dense_output.bias"),
        ("module/module/dense/kernel", "RealmEmbedder", "cls.dense.weight"),
        ("module/module/module/dense/kernel", "RealmForOpenQA", "embedder.cls.dense.weight"),
        ("module/module/LayerNorm/gamma", "RealmScorer", "embedder.cls.LayerNorm.weight"),
        ("cls/seq_relationship/output_weights", "RealmKnowledgeAugEncoder", None),
        ("reader/dense/kernel/adam_v", "RealmReader", None),
        ("block_emb", "RealmForOpenQA", "block_emb"),
    ],
)
def test_names(name, kind, expected):
    assert parameter_name(name, kind) == expected


def test_kernels_are_transposed():
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = from_tensorflow({"bert/pooler/dense/kernel": kernel}, "RealmKnowledgeAugEncoder")
    torch.testing.assert_close(state["realm.pooler.dense.weight"], torch.from_numpy(kernel.T))


OLD_LOADER = """
import json, sys, types
import numpy as np, torch
stored = dict(np.load(sys.argv[1]))
tensorflow = types.ModuleType("tensorflow")
tensorflow.train = types.SimpleNamespace(
    list_variables=lambda path: [(name, value.shape) for name, value in stored.items()],
    load_variable=lambda path, name: stored[name],
)
import transformers
from transformers.models.deprecated import realm
from transformers.models.deprecated.realm import modeling_realm
sys.modules["tensorflow"] = tensorflow
config = realm.RealmConfig(**json.loads(sys.argv[3]))
model = getattr(modeling_realm, sys.argv[2])(config)
modeling_realm.load_tf_weights_in_realm(model, config, "checkpoint")
np.savez(sys.argv[4], **{name: value.numpy() for name, value in model.state_dict().items()})
"""


@pytest.mark.skipif(OLD_PYTHON is None, reason="REALM_OLD_PYTHON names no Python with transformers 4.57.6")
@pytest.mark.parametrize("kind", MODELS)
def test_the_port_loads_the_same_values_into_the_same_names(tmp_path, kind):
    stored = variables(kind)
    np.savez(tmp_path / "stored.npz", **stored)
    arguments = [str(tmp_path / "stored.npz"), kind, json.dumps(SMALL), str(tmp_path / "loaded.npz")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([OLD_PYTHON, "-c", OLD_LOADER, *arguments], check=True, env=environment)
    theirs = np.load(tmp_path / "loaded.npz")
    for name, value in from_tensorflow(stored, kind).items():
        np.testing.assert_array_equal(theirs[name], value.numpy(), err_msg=name)
