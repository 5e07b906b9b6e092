"""Configurations that strangers may publish: bounded before they are used, and one error for whatever is wrong."""

import json
import resource
import time

import pytest
from published_folder import describe, put
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from realm_hf import RealmConfig, RealmForOpenQA, RealmRetriever
from realm_hf.hub import published_tokenizer
from realm_hf.hub.tokenizer_bounds import check_tokenizer
from realm_hf.untrusted.checks import HubArtefactError
from realm_hf.untrusted.limited import run_limited
from realm_hf.untrusted.refusing import refusing

TOKENIZER, SETTINGS, TOWER = "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "embedder/config.json"


def change(folder, name, change) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    put(folder, name, json.dumps(content).encode())


def as_it_is(folder) -> None:
    """Have the class that takes `tokenizer.json` as it is; BERT's makes its own steps."""
    change(folder, SETTINGS, lambda content: content.update(tokenizer_class="PreTrainedTokenizerFast"))


def replace(pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


STEPS = [
    ("normalizer", {"type": "Sequence", "normalizers": [replace("e", "e" * 30)] * 5}),
    ("normalizer", {"type": "Prepend", "prepend": "x" * 1_000_000}),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 3}),
    ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 9}),
    ("decoder", replace("a", "a" * 1_000_000)),
    ("decoder", {"type": "WordPiece", "prefix": "#" * 1000, "cleanup": True}),
    ("padding", {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}),
    ("truncation", {"max_length": 10**12, "strategy": "LongestFirst", "stride": 0}),
]


@pytest.mark.parametrize(("part", "step"), STEPS, ids=[f"{part} {step.get('type', '')}" for part, step in STEPS])
def test_steps_of_a_tokenizer_that_explode(folder, load, part, step):
    as_it_is(folder)
    change(folder, TOKENIZER, lambda content: content.update({part: step}))
    started = time.perf_counter()

    with pytest.raises(HubArtefactError, match=r"The tokenizer of .* cannot be loaded: its "):
        load(force=True)

    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_input_chars_per_word", 10**9),
        ("continuing_subword_prefix", "#" * 10**6),
        ("vocab", {"x" * 10**6: 0}),
        ("type", "Other"),
        ("vocab", None),
    ],
)
def test_models_of_a_tokenizer_that_are_beyond_bounds(folder, load, field, value):
    as_it_is(folder)
    change(folder, TOKENIZER, lambda content: content["model"].update({field: value}))

    with pytest.raises(HubArtefactError, match=r"The tokenizer of .* cannot be loaded"):
        load(force=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (TOKENIZER, b"[" * 100_000),
        (TOKENIZER, b"[]"),
        (TOKENIZER, b"\xff\xfe"),
        (TOKENIZER, b'{"model": 5}'),
        (SETTINGS, b"[" * 100_000),
        (SETTINGS, b'{"tokenizer_class": ["a"]}'),
        (SETTINGS, b'{"tokenizer_class": "BertTokenizer", "pad_token": {"a": {"b": {"c": {"d": {"e": 1}}}}}}'),
        (SETTINGS, b'{"tokenizer_class": "BertTokenizer", "model_max_length": "x"}'),
        (SETTINGS, b'{"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"x": 1}}'),
        (TOWER, b"[" * 100_000),
        (TOWER, b"[]"),
        (TOWER, b"\xff\xfe"),
    ],
)
def test_files_of_another_form(folder, load, name, content):
    put(folder, name, content)

    with pytest.raises(HubArtefactError, match=r"The (tokenizer|passage tower) of"):
        load(force=True)


def test_a_tokenizer_that_the_library_does_not_survive_is_tried_in_the_child(folder, load, monkeypatch):
    monkeypatch.setattr(published_tokenizer, "check_tokenizer", lambda content: None)
    as_it_is(folder)
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    change(folder, TOKENIZER, lambda content: content.update(normalizer=charsmap))

    with pytest.raises(HubArtefactError, match=r"The tokenizer of"):
        load(force=True)


def test_what_no_bound_stops_the_child_stops(folder, load, monkeypatch):
    monkeypatch.setattr(published_tokenizer, "check_tokenizer", lambda content: None)
    as_it_is(folder)
    change(folder, TOKENIZER, lambda content: content.update(normalizer=STEPS[0][1]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(HubArtefactError, match=r"The tokenizer of .* is refused"):
        load(force=True)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_tokenizer_that_could_not_be_loaded_is_not_published(tmp_path, tiny_passages, vectors, tokenizer):
    from published_folder import Folder

    from realm_hf.hub.export import ExportSettings
    from realm_hf.hub.retriever import add_retriever

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace("a", "b")
    other = PreTrainedTokenizerFast(tokenizer_object=backend)

    with pytest.raises(ValueError, match=r"The tokenizer cannot be published.*a step 'Replace'"):
        add_retriever(Folder(tmp_path), RealmRetriever(tiny_passages, other, embeddings=vectors), ExportSettings())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 0),
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", "many"),
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", "small"),
        ("hidden_act", "none"),
        ("hidden_dropout_prob", [0.1]),
        ("dtype", "complex128"),
        ("dtype", "nn"),
        ("marginalization", "other"),
    ],
)
def test_entries_of_a_tower_that_are_beyond_bounds(folder, load, field, value):
    change(folder, TOWER, lambda content: content.update({field: value}))

    with pytest.raises(HubArtefactError, match="The passage tower of"):
        load()


def test_entries_that_a_tower_does_not_need_are_not_read(folder, load):
    def evil(content):
        content.update(
            num_labels=10**6, attn_implementation="stranger/kernels", quantization_config={"quant_method": "x"}
        )
        content["auto_map"] = {"AutoConfig": "evil.Evil"}

    change(folder, TOWER, evil)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    config = load().embedder.config

    assert config.num_labels == 2
    assert config._attn_implementation in ("eager", "sdpa")
    assert not hasattr(config, "quantization_config") and not hasattr(config, "auto_map")
    assert time.perf_counter() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"num_labels": 10**6}, "1000000 labels; at most 10000"),
        ({"id2label": {str(n): "x" for n in range(20_000)}}, "20000 labels"),
        ({"attn_implementation": "stranger/kernels"}, "would be fetched and run"),
        ({"attn_implementation": {"": "stranger/kernels"}}, "would be fetched and run"),
        ({"vocab_size": 10**30}, "no model has that"),
        ({"layer_norm_eps": float("nan")}, "no model has that"),
    ],
)
def test_a_models_configuration_is_bounded_too(tmp_path, tiny_config, entry, words):
    tiny_config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))

    for loader in (RealmConfig, AutoConfig, RealmForOpenQA):
        with pytest.raises(ValueError, match=words):
            loader.from_pretrained(tmp_path)


def test_what_the_caller_asks_for_is_his_own(tmp_path, tiny_config):
    tiny_config.save_pretrained(tmp_path)

    config = RealmConfig.from_pretrained(tmp_path, attn_implementation="own/kernels", num_labels=20_000)

    assert config._attn_implementation == "own/kernels"
    assert config.num_labels == 20_000


def test_stores_that_are_none(folder, load):
    for change_it in (
        lambda store: store.update(max_length="long"),
        lambda store: store.update(special_tokens={"pad": 0}),
        lambda store: store["special_tokens"].update(pad=-1),
        lambda store: store.update(statistics=[1]),
        lambda store: store.pop("max_length"),
    ):
        original = (folder / "realm_retriever.json").read_bytes()
        describe(folder, lambda content, change_it=change_it: change_it(content["store"]))
        with pytest.raises(HubArtefactError, match=r"realm_retriever\.json"):
            load()
        (folder / "realm_retriever.json").write_bytes(original)


@pytest.mark.parametrize("error", [RecursionError("deep"), ZeroDivisionError(), KeyError("x"), OSError("no errno")])
def test_whatever_a_library_raises_becomes_one_error(error):
    with (
        pytest.raises(HubArtefactError, match=rf"The file cannot be loaded \({type(error).__name__}\)"),
        refusing("The file"),
    ):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(28, "full")])
def test_what_is_not_the_files_fault_comes_through(error):
    with pytest.raises(type(error)) as raised, refusing("The file"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("bytearray(1 << 30)", "MemoryError"),
        ("import os; os.abort()", "died of signal"),
        ("import time; time.sleep(60)", "could not be tried within 2 s"),
        ("while True: pass", "could not be tried within 2 s|died of signal"),
        ("with open('made', 'w') as file: file.write('x')", "File too large|died of signal"),
        ("raise SystemExit('it is wrong')", "is refused: it is wrong"),
    ],
)
def test_a_child_is_limited(tmp_path, monkeypatch, program, words):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(program)

    with pytest.raises(HubArtefactError, match=rf"It ({words}|is refused: .*({words}))"):
        run_limited(script, [], libraries=["json"], memory=1 << 28, seconds=2, what="It")


def test_the_honest_tokenizer_is_within_bounds(honest):
    check_tokenizer(json.loads((honest / TOKENIZER).read_text()))
