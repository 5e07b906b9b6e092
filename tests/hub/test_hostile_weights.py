"""Tokenizers and towers that strangers may publish: no code is run, and no memory taken for what is not there."""

import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from published_folder import ROWS, describe, put

from realm_hf.untrusted.checks import HubArtefactError


def test_a_tokenizer_that_brings_code(folder, load, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nclass Evil:\n    pass\n"
    put(folder, "tokenizer/evil.py", code.encode())
    path = folder / "tokenizer/tokenizer_config.json"
    content = json.loads(path.read_text())
    content.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    put(folder, "tokenizer/tokenizer_config.json", json.dumps(content).encode())

    with pytest.raises(HubArtefactError):
        load()

    assert not mark.exists()


def test_another_tokenizer_than_the_passages(folder, load):
    path = folder / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    words = [word for word in vocab if word.isalpha()][:2]
    vocab[words[0]], vocab[words[1]] = vocab[words[1]], vocab[words[0]]
    put(folder, "tokenizer/tokenizer.json", json.dumps(content).encode())

    with pytest.raises(HubArtefactError, match=r"tokenizer of .* has fingerprint"):
        load()
    assert len(load(force=True)) == ROWS


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("beside", [True, False])
def test_a_tower_with_pickled_weights(folder, load, tmp_path, beside):
    mark = tmp_path / "ran"
    torch.save({"weight": Bomb(mark)}, folder / "embedder/pytorch_model.bin")
    put(folder, "embedder/pytorch_model.bin")
    if not beside:
        (folder / "embedder/model.safetensors").unlink()
        describe(folder, lambda content: content["files"].pop("embedder/model.safetensors"))

    with pytest.raises(HubArtefactError, match="pickled weights are not loaded"):
        load()

    assert not mark.exists()


@pytest.mark.parametrize("kind", ["cut", "header", "noise"])
def test_a_tower_with_damaged_safetensors(folder, load, kind):
    name = "embedder/model.safetensors"
    content = (folder / name).read_bytes()
    damaged = {
        "cut": content[:-1000],
        "header": struct.pack("<Q", 1 << 62) + content[8:],
        "noise": np.random.default_rng(0).bytes(1000),
    }
    put(folder, name, damaged[kind])

    with pytest.raises(HubArtefactError, match="passage tower"):
        load()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 10**9),
        ("vocab_size", 10**30),
        ("hidden_size", 10**6),
        ("num_hidden_layers", 10**7),
        ("retriever_proj_size", 8),
        ("model_type", "bert"),
        ("intermediate_size", -5),
    ],
)
def test_a_tower_that_claims_another_shape(folder, load, field, value):
    path = folder / "embedder/config.json"
    content = json.loads(path.read_text())
    content[field] = value
    put(folder, "embedder/config.json", json.dumps(content).encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(HubArtefactError, match="passage tower"):
        load()

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_another_tower_than_the_index(folder, load, tmp_path):
    from tiny_worlds import tiny_model

    tiny_model(seed=9).embedder.save_pretrained(tmp_path / "other")
    put(folder, "embedder/model.safetensors", (tmp_path / "other/model.safetensors").read_bytes())

    with pytest.raises(HubArtefactError, match=r"passage tower of .* has fingerprint"):
        load()
