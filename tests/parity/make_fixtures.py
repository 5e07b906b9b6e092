"""Fixtures for the parity tests, made by transformers 4.57.6: the last release that contains REALM.

    python -m venv /tmp/oldport && /tmp/oldport/bin/pip install torch==2.13.0 transformers==4.57.6
    /tmp/oldport/bin/python tests/parity/make_fixtures.py make tests/parity/fixtures
    REALM_OLD_PYTHON=/tmp/oldport/bin/python pytest tests/parity        # also loads our files back there

`make` writes models with random weights, saved by that release as `.bin` and, where it can, as safetensors. Beside
them lie their inputs, outputs and gradients, and what its tokenizers encode. `load-back DIR` loads what our classes
saved and prints, as JSON, missing and unexpected keys and the largest differences. The functions that run a model
call nothing but the common interface of both libraries, so the tests import them from here.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VOCAB = Path(__file__).parents[1] / "fixtures" / "vocab.txt"
CLASSES = ("RealmEmbedder", "RealmScorer", "RealmKnowledgeAugEncoder")
SMALL = {"vocab_size": 64, "max_position_embeddings": 24, "initializer_range": 0.2}
SHAPES: dict[str, dict[str, Any]] = {
    # As the published weights: gelu_new and special ids 1/0/2 by default.
    "published": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "retriever_proj_size": 8,
        "span_hidden_size": 12,
        "num_candidates": 4,
    },
    "bert": {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "hidden_act": "gelu",
        "retriever_proj_size": 20,
        "span_hidden_size": 4,
        "num_candidates": 3,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    # A projection wider than the tower, and a decoder of its own.
    "untied": {
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 16,
        "hidden_act": "relu",
        "retriever_proj_size": 12,
        "num_candidates": 1,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
}
TEXTS = [["Paris is the capital of France.", "An unbelievably long second candidate, cut off at the end."], ["", "x"]]
PAIRS = [["France", "The body of it, also rather long, and with Ünïcode."], ["A body without a title.", ""]]


def random_rows(
    generator: torch.Generator, shape: tuple[int, ...], config: Any, prefix: str
) -> dict[str, torch.Tensor]:
    """Token ids, mask and segments of random lengths, padded with the config's pad id; the first row is full."""
    lengths = torch.randint(2, shape[-1] + 1, shape[:-1], generator=generator)
    lengths.view(-1)[0] = shape[-1]
    positions = torch.arange(shape[-1])
    mask = positions < lengths.unsqueeze(-1)
    ids = torch.randint(3, config.vocab_size, shape, generator=generator).masked_fill(~mask, config.pad_token_id)
    return {
        f"{prefix}input_ids": ids,
        f"{prefix}attention_mask": mask.long(),
        f"{prefix}token_type_ids": ((positions >= lengths.unsqueeze(-1) // 2) & mask).long(),
    }


def make_inputs(kind: str, config: Any, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of one class, by argument name."""
    generator = torch.Generator().manual_seed(seed)
    batch, candidates = 3, config.num_candidates
    if kind == "RealmEmbedder":
        return random_rows(generator, (5, 11), config, "")
    if kind == "RealmScorer":
        query = random_rows(generator, (batch, 7), config, "")
        return query | random_rows(generator, (batch, candidates, 11), config, "candidate_")
    inputs = random_rows(generator, (batch, candidates, 13), config, "")
    labels = torch.randint(3, config.vocab_size, (batch, 13), generator=generator)
    inputs["labels"] = labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.5, -100)
    inputs["mlm_mask"] = (torch.rand(labels.shape, generator=generator) < 0.5).long()
    inputs["relevance_score"] = 3 * torch.randn((batch, candidates), generator=generator)
    return inputs


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Random values for biases and layer normalizations too: their defaults of 0 and 1 would hide mix-ups."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def run_model(model: torch.nn.Module, kind: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything a model says about `inputs`, and all gradients of one scalar: `output.*` and `gradient.*`."""
    inputs = {name: value.clone() for name, value in inputs.items()}
    result: dict[str, torch.Tensor] = {}
    model.eval()
    model.zero_grad()
    if kind == "RealmKnowledgeAugEncoder":
        score = inputs["relevance_score"].requires_grad_()
        outputs = model(**inputs)
        outputs.loss.backward()
        result["gradient.relevance_score"] = score.grad
        joint = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            unmasked = model(**joint, relevance_score=score, labels=inputs["labels"])
            by_tuple = model(**joint, relevance_score=score, labels=inputs["labels"], return_dict=False)
        # Whole logits are stored once; a mean over the vocabulary is enough to recognise them.
        result |= {"output.unmasked_loss": unmasked.loss, "output.plain_logits": model(**joint).logits.mean(-1)}
        result |= {"output.tuple_loss": by_tuple[0], "output.tuple_logits": by_tuple[1].mean(-1)}
    else:
        outputs = model(**inputs)
        scalar = outputs[0]
        (scalar * torch.arange(1.0, scalar.numel() + 1).view_as(scalar) / scalar.numel()).sum().backward()
        if kind == "RealmEmbedder":
            with torch.no_grad():
                hidden = model(**inputs, output_hidden_states=True).hidden_states
            result |= {f"output.hidden_{i}": tensor for i, tensor in enumerate(hidden)}
    result |= {f"output.{name}": tensor for name, tensor in outputs.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            result[f"gradient.{name}"] = parameter.grad
    return {name: tensor.detach().clone().contiguous() for name, tensor in result.items()}


def make(library: ModuleType, out: Path) -> None:
    """Write all fixtures below `out`."""
    for number, (shape, fields) in enumerate(SHAPES.items()):
        for kind in CLASSES:
            config = library.RealmConfig(**(SMALL | fields))
            model = getattr(library, kind)(config)
            randomize(model, number)
            folder = out / shape / kind
            # That release refuses to save modules under two names as safetensors.
            for name, safe in (("bin", False), ("safetensors", True))[: 1 if kind == "RealmScorer" else 2]:
                model.save_pretrained(folder / name, safe_serialization=safe)
            inputs = make_inputs(kind, config, number)
            expected = {f"input.{name}": tensor for name, tensor in inputs.items()}
            save_file(expected | run_model(model, kind, inputs), folder / "expected.safetensors")
    encodings: dict[str, Any] = {}
    vocab = out / "vocab.txt"
    vocab.write_text("".join(VOCAB.read_text(encoding="utf-8").splitlines(keepends=True)[:600]), encoding="utf-8")
    for kind in ("RealmTokenizer", "RealmTokenizerFast"):
        tokenizer = getattr(library, kind)(str(vocab))
        tokenizer.save_pretrained(out / "tokenizers" / kind)
        encodings[kind] = {
            "single": dict(tokenizer.batch_encode_candidates(TEXTS, max_length=12, truncation=True)),
            "pair": dict(tokenizer.batch_encode_candidates(TEXTS, text_pair=PAIRS, max_length=16, truncation=True)),
            "long": dict(tokenizer.batch_encode_candidates(TEXTS, max_length=64)),
        }
    vocab.unlink()
    (out / "tokenizers" / "encodings.json").write_text(json.dumps(encodings), encoding="utf-8")


def load_back(library: ModuleType, root: Path) -> dict[str, Any]:
    """What happens when the models below `root`, saved by our classes, are loaded by this library."""
    report: dict[str, Any] = {}
    for kind in CLASSES:
        expected = load_file(root / kind / "expected.safetensors")
        model, info = getattr(library, kind).from_pretrained(root / kind, output_loading_info=True)
        inputs = {name.removeprefix("input."): value for name, value in expected.items() if name.startswith("input.")}
        found = run_model(model, kind, inputs)
        theirs = {name for name in found if name.startswith(("output.", "gradient."))}
        ours = {name for name in expected if name.startswith(("output.", "gradient."))}
        report[kind] = {
            "missing": sorted(info["missing_keys"]),
            "unexpected": sorted(info["unexpected_keys"]),
            "different_names": sorted(theirs ^ ours),
            "differences": {name: (found[name] - expected[name]).abs().max().item() for name in sorted(theirs & ours)},
        }
    return report


def main() -> None:
    """Run one of the two commands with the installed transformers."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("make", "load-back"))
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    if transformers.__version__ != "4.57.6":
        sys.exit(f"transformers is {transformers.__version__}: run this with an interpreter that has 4.57.6.")
    transformers.logging.set_verbosity_error()
    if arguments.command == "make":
        make(transformers, arguments.path)
    else:
        print(json.dumps(load_back(transformers, arguments.path)))


if __name__ == "__main__":
    main()
