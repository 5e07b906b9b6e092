"""Files of transformers 4.57.6 load here with the same numbers and gradients, and ours load there."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import realm_hf

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures"
OLD_PYTHON = os.environ.get("REALM_OLD_PYTHON")
QA = ("RealmReader", "RealmForOpenQA")
CASES = sorted(path.relative_to(FIXTURES) for path in FIXTURES.glob("*/Realm*/*") if path.is_dir())


def port_script():
    """`make_fixtures.py` as a module: it runs models of either library."""
    spec = importlib.util.spec_from_file_location("make_fixtures", HERE / "make_fixtures.py")
    module = sys.modules.setdefault("make_fixtures", importlib.util.module_from_spec(spec))
    if not hasattr(module, "run_model"):
        spec.loader.exec_module(module)
    return module


def knowledge(folder: Path, block_emb) -> realm_hf.RealmRetriever:
    """The passages of `make_fixtures.py` with an old checkpoint's tokenizer and other embeddings."""
    passages = Dataset.from_dict({"text": port_script().PASSAGES})
    return realm_hf.RealmRetriever(
        passages, realm_hf.RealmTokenizer.from_pretrained(folder), embeddings=np.asarray(block_emb)
    )


def stored_keys(folder: Path) -> set[str]:
    if (folder / "model.safetensors").exists():
        return set(load_file(folder / "model.safetensors"))
    return set(torch.load(folder / "pytorch_model.bin", weights_only=True))


def load(case: Path):
    """The model of a fixture, what loading reported, its inputs and what 4.57.6 computed."""
    kind = case.parts[1]
    model, info = getattr(realm_hf, kind).from_pretrained(FIXTURES / case, output_loading_info=True)
    if kind == "RealmForOpenQA":
        model.retriever = realm_hf.RealmRetriever.from_pretrained(FIXTURES / case)
    expected = load_file(FIXTURES / case.parent / "expected.safetensors")
    inputs = {name.removeprefix("input."): value for name, value in expected.items() if name.startswith("input.")}
    return (
        kind,
        model,
        info,
        inputs,
        {name: value for name, value in expected.items() if not name.startswith("input.")},
    )


def test_the_fixtures_cover_three_shapes_both_formats_and_all_classes():
    assert {case.parts[0] for case in CASES} == set(port_script().SHAPES)
    assert {(case.parts[1], case.parts[2]) for case in CASES} == {
        ("RealmEmbedder", "bin"),
        ("RealmEmbedder", "safetensors"),
        ("RealmScorer", "bin"),
        ("RealmKnowledgeAugEncoder", "bin"),
        ("RealmKnowledgeAugEncoder", "safetensors"),
        ("RealmReader", "bin"),
        ("RealmForOpenQA", "bin"),
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_old_file_loads_without_missing_or_unexpected_keys(case):
    _, model, info, _, _ = load(case)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    names = set(model.state_dict())
    stored = stored_keys(FIXTURES / case)
    # The old index is the retriever's now.
    assert stored - names == ({"block_emb"} if case.parts[1] == "RealmForOpenQA" else set())
    # What a file leaves out is tied to something in it.
    assert names - stored <= set(model.all_tied_weights_keys)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_old_model_gives_the_same_outputs_and_gradients(case):
    kind, model, _, inputs, expected = load(case)
    found = port_script().run_model(model, kind, inputs)
    assert set(found) == set(expected)
    for name, value in expected.items():
        tolerance = 1e-4 if name.startswith("gradient.") else 1e-5
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", [case for case in CASES if case.parts[1] == "RealmKnowledgeAugEncoder"], ids=str)
def test_logits_at_chosen_positions_give_the_ports_loss_and_gradients(case):
    _, model, _, inputs, expected = load(case)
    labels, counted = inputs.pop("labels"), inputs.pop("mlm_mask")
    labels = labels.masked_fill(counted == 0, -100)
    width = int((labels != -100).sum(-1).max())
    positions = (labels != -100).int().topk(width).indices
    chosen = labels.gather(1, positions)
    outputs = model.eval()(**inputs, labels=chosen, mlm_positions=positions, mlm_mask=chosen != -100)
    assert outputs.logits.shape[1] == width < labels.shape[1]
    # The port also counts positions that `mlm_mask` marks and that have no label.
    loss = outputs.loss * (chosen != -100).sum() / counted.sum()
    loss.backward()
    torch.testing.assert_close(loss, expected["output.loss"], atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[f"gradient.{name}"], atol=1e-4, rtol=0)


def outputs_of(expected: dict[str, torch.Tensor], mode: str, number: int) -> dict[str, torch.Tensor]:
    prefix = f"output.{mode}.{number}."
    return {name.removeprefix(prefix): value for name, value in expected.items() if name.startswith(prefix)}


@pytest.mark.parametrize("shape", sorted(port_script().SHAPES))
@pytest.mark.parametrize("kind", QA)
def test_the_qa_fixtures_hold_answered_and_answerless_questions(kind, shape):
    expected = load(Path(shape) / kind / "bin")[-1]
    losses = {
        (float(outputs["retriever_loss"]) > 0, float(outputs["reader_loss"]) > 0)
        for outputs in (outputs_of(expected, "train", number) for number in range(port_script().READER_QUESTIONS))
    }
    assert (False, False) in losses
    assert any(reader for _, reader in losses)
    assert any(retriever for retriever, _ in losses)


@pytest.mark.parametrize("shape", sorted(port_script().SHAPES))
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_old_reader_gives_the_same_for_a_batch_of_questions(shape, mode):
    _, model, _, inputs, expected = load(Path(shape) / "RealmReader" / "bin")
    scores = inputs["relevance_score"].requires_grad_()
    outputs = model.train(mode == "train")(**inputs)
    singles = [outputs_of(expected, mode, number) for number in range(port_script().READER_QUESTIONS)]
    for name in singles[0].keys() - {"loss"}:
        value = torch.stack([single[name] for single in singles])
        value = value.squeeze(-1) if name in ("start_pos", "end_pos") else value
        torch.testing.assert_close(outputs[name], value, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    mean = torch.stack([single["loss"] for single in singles]).mean()
    torch.testing.assert_close(outputs.loss, mean, atol=1e-5, rtol=0)
    outputs.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, value in (found | {"relevance_score": scores.grad}).items():
        torch.testing.assert_close(value, expected[f"gradient.{mode}.{name}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", sorted(port_script().SHAPES))
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_old_qa_model_gives_the_same_for_a_batch_of_questions(shape, mode):
    script = port_script()
    _, model, _, _, expected = load(Path(shape) / "RealmForOpenQA" / "bin")
    tokenizer = model.retriever.tokenizer
    questions = tokenizer([question for question, _ in script.QUESTIONS], padding=True, return_tensors="pt")
    answers = [tokenizer(answers, add_special_tokens=False).input_ids for _, answers in script.QUESTIONS]
    output = model.train(mode == "train")(**questions, answer_ids=answers)
    singles = [outputs_of(expected, mode, number) for number in range(len(answers))]
    for number, single in enumerate(singles):
        assert torch.equal(output.predicted_answer_ids[number], single["predicted_answer_ids"])
        # Numbers of candidates depend on the padded length.
        for name in ("retriever_loss", "reader_loss", "retriever_correct", "block_idx", "start_pos", "end_pos"):
            value = single[name].squeeze(-1) if name.endswith("pos") else single[name]
            torch.testing.assert_close(output.reader_output[name][number], value, atol=1e-5, rtol=0)
    mean = torch.stack([single["loss"] for single in singles]).mean()
    torch.testing.assert_close(output.reader_output.loss, mean, atol=1e-5, rtol=0)
    output.reader_output.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = expected[f"gradient.{mode}.{name}"]
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


EXAMPLE = """
import torch
from transformers import RealmForOpenQA, RealmRetriever, AutoTokenizer

retriever = RealmRetriever.from_pretrained("google/realm-orqa-nq-openqa")
tokenizer = AutoTokenizer.from_pretrained("google/realm-orqa-nq-openqa")
model = RealmForOpenQA.from_pretrained("google/realm-orqa-nq-openqa", retriever=retriever)

question = "Who is the pioneer in modern computer science?"
question_ids = tokenizer([question], return_tensors="pt")
answer_ids = tokenizer(
    ["alan mathison turing"],
    add_special_tokens=False,
    return_token_type_ids=False,
    return_attention_mask=False,
).input_ids

reader_output, predicted_answer_ids = model(**question_ids, answer_ids=answer_ids, return_dict=False)
predicted_answer = tokenizer.decode(predicted_answer_ids)
loss = reader_output.loss
"""


@pytest.mark.parametrize("shape", sorted(port_script().SHAPES))
def test_the_old_docstring_example_runs_with_its_import_line_changed(shape, tmp_path, monkeypatch):
    script = port_script()
    checkpoint = tmp_path / "google" / "realm-orqa-nq-openqa"
    shutil.copytree(FIXTURES / shape / "RealmForOpenQA" / "bin", checkpoint)
    monkeypatch.chdir(tmp_path)
    old_line = "from transformers import RealmForOpenQA, RealmRetriever, AutoTokenizer"
    new_line = "from realm_hf import RealmForOpenQA, RealmRetriever; from transformers import AutoTokenizer"
    names: dict = {}
    exec(EXAMPLE.replace(old_line, new_line), names)
    expected = load_file(FIXTURES / shape / "RealmForOpenQA" / "expected.safetensors")
    [number] = [i for i, (question, _) in enumerate(script.QUESTIONS) if question == names["question"]]
    torch.testing.assert_close(names["loss"], expected[f"output.eval.{number}.loss"], atol=1e-5, rtol=0)
    assert torch.equal(names["predicted_answer_ids"], expected[f"output.eval.{number}.predicted_answer_ids"])
    assert names["predicted_answer"]


def test_old_configurations_keep_the_special_ids_they_name():
    config = AutoConfig.from_pretrained(FIXTURES / "published" / "RealmEmbedder" / "bin")
    assert isinstance(config, realm_hf.RealmConfig)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 0, 2)
    assert (config.hidden_act, config.retriever_proj_size, config.span_hidden_size) == ("gelu_new", 8, 12)


def test_auto_classes_load_old_files():
    model = AutoModelForMaskedLM.from_pretrained(FIXTURES / "bert" / "RealmKnowledgeAugEncoder" / "safetensors")
    assert isinstance(model, realm_hf.RealmKnowledgeAugEncoder)


def test_an_old_scorer_shares_its_towers_parameter_by_parameter():
    _, model, _, _, _ = load(Path("published/RealmScorer/bin"))
    query_tower = dict(model.query_embedder.named_parameters(remove_duplicate=False))
    for name, parameter in model.embedder.named_parameters(remove_duplicate=False):
        assert query_tower[name] is parameter, name


def test_an_old_scorer_with_two_towers_keeps_them_apart(tmp_path):
    shutil.copytree(FIXTURES / "published" / "RealmScorer" / "bin", tmp_path, dirs_exist_ok=True)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    state = {name: value + 1.0 if name.startswith("query_embedder.") else value for name, value in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = realm_hf.RealmScorer.from_pretrained(tmp_path)
    for name in ("cls.dense.weight", "realm.pooler.dense.bias"):
        assert torch.equal(model.query_embedder.state_dict()[name], state[f"query_embedder.{name}"])
        assert torch.equal(model.embedder.state_dict()[name], state[f"embedder.{name}"])


@pytest.mark.parametrize("kind", ["RealmTokenizer", "RealmTokenizerFast"])
@pytest.mark.parametrize("auto", [False, True], ids=["class", "auto"])
def test_old_tokenizers_load_and_encode_candidates_identically(kind, auto):
    texts, pairs = port_script().TEXTS, port_script().PAIRS
    factory = AutoTokenizer if auto else realm_hf.RealmTokenizer
    tokenizer = factory.from_pretrained(FIXTURES / "tokenizers" / kind)
    assert isinstance(tokenizer, realm_hf.RealmTokenizer)
    expected = json.loads((FIXTURES / "tokenizers" / "encodings.json").read_text(encoding="utf-8"))[kind]
    found = {
        "single": tokenizer.batch_encode_candidates(texts, max_length=12, truncation=True),
        "pair": tokenizer.batch_encode_candidates(texts, text_pair=pairs, max_length=16, truncation=True),
        "long": tokenizer.batch_encode_candidates(texts, max_length=64),
    }
    assert {name: dict(encoding) for name, encoding in found.items()} == expected


@pytest.mark.multiprocess
@pytest.mark.skipif(OLD_PYTHON is None, reason="set REALM_OLD_PYTHON to an interpreter with transformers 4.57.6")
@pytest.mark.parametrize("shape", sorted(port_script().SHAPES))
def test_our_files_load_in_transformers_4_with_the_same_numbers(shape, tmp_path):
    script = port_script()
    old_qa = FIXTURES / shape / "RealmForOpenQA" / "bin"
    shutil.copy(old_qa / "vocab.txt", tmp_path / "vocab.txt")
    for kind in script.CLASSES:
        config = realm_hf.RealmConfig(**(script.SMALL | script.SHAPES[shape] | script.qa_fields(kind, shape)))
        torch.manual_seed(7)
        model = getattr(realm_hf, kind)(config)
        script.randomize(model, 7)
        model.save_pretrained(tmp_path / kind)
        inputs = script.make_inputs(kind, config, 7)
        if kind == "RealmForOpenQA":
            model.retriever = knowledge(old_qa, inputs["block_emb"])
        expected = {f"input.{name}": value for name, value in inputs.items()}
        save_file(expected | script.run_model(model, kind, inputs), tmp_path / kind / "expected.safetensors")
    finished = subprocess.run(
        [OLD_PYTHON, str(HERE / "make_fixtures.py"), "load-back", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    for kind, report in json.loads(finished.stdout).items():
        # The index is no part of our files: whoever goes back supplies it, as `load-back` does.
        missing = ["block_emb"] if kind == "RealmForOpenQA" else []
        assert (report["missing"], report["unexpected"], report["different_names"]) == (missing, [], []), kind
        for name, difference in report["differences"].items():
            assert difference <= (1e-4 if name.startswith("gradient.") else 1e-5), (kind, name, difference)
