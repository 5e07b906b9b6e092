"""Fixtures for the parity tests, made by transformers 4.57.6: the last release that contains REALM.

    python -m venv /tmp/oldport && /tmp/oldport/bin/pip install torch==2.13.0 transformers==4.57.6
    /tmp/oldport/bin/python tests/parity/make_fixtures.py make tests/parity/fixtures
    REALM_OLD_PYTHON=/tmp/oldport/bin/python pytest tests/parity        # also loads our files back there

`make` writes models with random weights, saved by that release as `.bin` and, where it can, as safetensors. Beside
them lie their inputs, outputs and gradients, and what its tokenizers encode; beside the open-domain QA models also
tokenizer and passages, as in the published checkpoints. `load-back DIR` loads what our classes
saved and prints, as JSON, missing and unexpected keys and the largest differences. The functions that run a model
call nothing but the common interface of both libraries, so the tests import them from here.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

VOCAB = Path(__file__).parents[1] / "fixtures" / "vocab.txt"
CLASSES = ("RealmEmbedder", "RealmScorer", "RealmKnowledgeAugEncoder", "RealmReader", "RealmForOpenQA")
# That release refuses to save tensors under two names as safetensors.
ONLY_BIN = ("RealmScorer", "RealmReader", "RealmForOpenQA")
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
# Fields of the QA classes. Span heads are not too small: where one unit alone is active, its layer normalization gives
# the same for all spans, and rounding would choose among them.
QA_SHAPES: dict[str, dict[str, Any]] = {
    "published": {"max_span_width": 4, "reader_beam_size": 3, "searcher_beam_size": 7},
    "bert": {
        "reader_beam_size": 4,
        "searcher_beam_size": 9,
        "reader_layer_norm_eps": 1e-6,
        "span_hidden_size": 24,
    },
    "untied": {"max_span_width": 1, "reader_beam_size": 5, "searcher_beam_size": 5, "span_hidden_size": 20},
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXT_SIZES = {"vocab_size": 600, "max_position_embeddings": 48, "reader_seq_len": 40, "num_block_records": 12}
READER_QUESTIONS = 5
PASSAGES = [
    "The capital of France is Paris, on the river Seine.",
    "France has about 68 million people; most of them live in cities.",
    "Lake Chad lies between four countries: Chad, Cameroon, Niger and Nigeria. Its area has fallen since 1960.",
    "The north of the country is desert, the south is green.",
    "Coffee, tea and sugar are the main exports.",
    "The army was founded in 1961 after independence from France.",
    "Elections are held every five years; the president is chief of state.",
    "",
    "Paris hosts the government, the parliament and the highest court of the country.",
    "The climate is tropical; rain falls from May to October, and the land is dry in the other months of the year.",
    "A short one.",
    "Natural resources: iron ore, gold, timber, fish, and the water of the great river, which serves three countries.",
]
QUESTIONS = [
    ("What is the capital of France?", ["Paris"]),
    ("Which countries lie around the lake, and how has its area changed since the year of independence?", ["1960"]),
    ("What does the land export?", ["the country", "sugar", "the main exports of it all"]),
    ("Who?", ["nobody at all"]),
    ("When is the rain?", ["from May to October, and the land is dry", "the"]),
    # That of the docstring in that release.
    ("Who is the pioneer in modern computer science?", ["alan mathison turing"]),
]
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


def qa_fields(kind: str, shape: str) -> dict[str, Any]:
    """What the config of a QA model has besides `SMALL` and `SHAPES`."""
    if kind not in ("RealmReader", "RealmForOpenQA"):
        return {}
    return NO_DROPOUT | QA_SHAPES[shape] | (TEXT_SIZES if kind == "RealmForOpenQA" else {})


def make_reader_inputs(config: Any, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of the reader for several questions, stacked: [Q, R, L] and, for the whole beam, [Q, S, ...]."""
    generator = torch.Generator().manual_seed(seed)
    questions, length, read, beam = READER_QUESTIONS, 17, config.reader_beam_size, config.searcher_beam_size
    inputs = random_rows(generator, (questions, beam, length), config, "")
    inside = inputs["token_type_ids"].bool()
    # One passage with a hole, as a special token in the text makes one, and one without any token.
    inside[0, 0, length - 3], inside[1, -1] = False, False
    shape = (questions, beam, 6)
    starts = torch.randint(0, length, shape, generator=generator)
    # Some answers are too wide to be candidates, some end behind the input; none lies outside its passage.
    ends = starts + torch.randint(0, config.max_span_width + 2, shape, generator=generator)
    rows = torch.arange(questions)[:, None, None], torch.arange(beam)[None, :, None]
    outside = ~(inside[(*rows, starts)] & inside[(*rows, ends.clamp(max=length - 1))])
    # The last two questions: no answer among the passages that are read; none in the whole beam.
    outside[-2, :read], outside[-1] = True, True
    starts, ends = starts.masked_fill(outside, -1), ends.masked_fill(outside, -1)
    has_answers = (starts >= 0).any(-1)
    has_answers[-2, -1] = beam > read
    return {name: value[:, :read].contiguous() for name, value in inputs.items()} | {
        "relevance_score": 3 * torch.randn((questions, beam), generator=generator),
        "block_mask": inside,
        "start_positions": starts,
        "end_positions": ends,
        "has_answers": has_answers,
    }


def make_inputs(kind: str, config: Any, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of one class, by argument name; for open-domain QA only the embeddings of `PASSAGES`."""
    if kind == "RealmReader":
        return make_reader_inputs(config, seed)
    generator = torch.Generator().manual_seed(seed)
    if kind == "RealmForOpenQA":
        return {"block_emb": torch.randn((len(PASSAGES), config.retriever_proj_size), generator=generator)}
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


def ask(model: Any, question: str, answers: list[str] | None) -> tuple[Any, torch.Tensor]:
    """The two outputs of an open-domain QA model, called as in the docstring of that release."""
    tokenizer = model.retriever.tokenizer
    plain = {"add_special_tokens": False, "return_token_type_ids": False, "return_attention_mask": False}
    answer_ids = tokenizer(answers, **plain).input_ids if answers else None
    return model(**tokenizer([question], return_tensors="pt"), answer_ids=answer_ids, return_dict=False)


def run_qa_model(model: Any, kind: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As `run_model`, in evaluation and in training mode, one question at a time."""
    result: dict[str, torch.Tensor] = {}
    for mode in ("eval", "train"):
        model.train(mode == "train")
        model.zero_grad()
        scores = inputs["relevance_score"].clone().requires_grad_() if kind == "RealmReader" else None
        losses = []
        for number in range(READER_QUESTIONS if kind == "RealmReader" else len(QUESTIONS)):
            prefix = f"output.{mode}.{number}"
            if scores is not None:
                own = {name: value[number] for name, value in inputs.items()} | {"relevance_score": scores[number]}
                outputs = model(**own)
            else:
                outputs, answer = ask(model, *QUESTIONS[number])
                result[f"{prefix}.predicted_answer_ids"] = answer
                result[f"{prefix}.unlabelled"] = ask(model, QUESTIONS[number][0], None)[1]
            losses.append(outputs.loss)
            result |= {f"{prefix}.{name}": tensor for name, tensor in outputs.items()}
        torch.stack(losses).mean().backward()
        if scores is not None:
            result[f"gradient.{mode}.relevance_score"] = scores.grad
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                result[f"gradient.{mode}.{name}"] = parameter.grad.clone()
    return {name: tensor.detach().clone().contiguous() for name, tensor in result.items()}


def run_model(model: torch.nn.Module, kind: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything a model says about `inputs`, and all gradients of one scalar: `output.*` and `gradient.*`."""
    if kind in ("RealmReader", "RealmForOpenQA"):
        return run_qa_model(model, kind, inputs)
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


def add_knowledge(library: ModuleType, model: Any, block_emb: torch.Tensor, vocab: Path) -> None:
    """Give one of that release's QA models passages, tokenizer and index."""
    records = np.array([text.encode() for text in PASSAGES], dtype=object)
    model.retriever = library.RealmRetriever(records, library.RealmTokenizerFast(str(vocab)))
    model.block_emb.copy_(block_emb)


def make(library: ModuleType, out: Path) -> None:
    """Write all fixtures below `out`."""
    vocab = out / "vocab.txt"
    vocab.write_text("".join(VOCAB.read_text(encoding="utf-8").splitlines(keepends=True)[:600]), encoding="utf-8")
    for number, (shape, fields) in enumerate(SHAPES.items()):
        for kind in CLASSES:
            config = library.RealmConfig(**(SMALL | fields | qa_fields(kind, shape)))
            torch.manual_seed(number)
            model = getattr(library, kind)(config)
            randomize(model, number)
            folder = out / shape / kind
            inputs = make_inputs(kind, config, number)
            if kind == "RealmForOpenQA":
                add_knowledge(library, model, inputs.pop("block_emb"), vocab)
            for name, safe in (("bin", False), ("safetensors", True))[: 1 if kind in ONLY_BIN else 2]:
                model.save_pretrained(folder / name, safe_serialization=safe)
                if kind == "RealmForOpenQA":
                    model.retriever.save_pretrained(folder / name)
            expected = {f"input.{name}": tensor for name, tensor in inputs.items()}
            save_file(expected | run_model(model, kind, inputs), folder / "expected.safetensors")
    encodings: dict[str, Any] = {}
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
        if kind == "RealmForOpenQA":
            # Our files hold no index: `block_emb` is missing, and has to be supplied.
            add_knowledge(library, model, inputs["block_emb"], root / "vocab.txt")
        found = run_model(model, kind, inputs)
        theirs = {name for name in found if name.startswith(("output.", "gradient."))}
        ours = {name for name in expected if name.startswith(("output.", "gradient."))}
        report[kind] = {
            "missing": sorted(info["missing_keys"]),
            "unexpected": sorted(info["unexpected_keys"]),
            "different_names": sorted(theirs ^ ours),
            "differences": {
                name: (found[name].double() - expected[name].double()).abs().max().item()
                for name in sorted(theirs & ours)
            },
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
