"""Each model class on each kind of checkpoint: it loads its part, to the bit, or refuses; nothing is random."""

import copy
import json

import pytest
import torch
from tiny_worlds import tiny_model, tiny_tokenizer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForPreTraining,
    pipeline,
)

from realm_hf import (
    RealmEmbedder,
    RealmForOpenQA,
    RealmForPreTraining,
    RealmKnowledgeAugEncoder,
    RealmReader,
    RealmScorer,
)

CLASSES = (RealmEmbedder, RealmScorer, RealmKnowledgeAugEncoder, RealmReader, RealmForPreTraining, RealmForOpenQA)
# Class wanted -> checkpoint -> the part that is read ("" for all), or what the refusal says.
TABLE = {
    RealmEmbedder: {
        "RealmScorer": r"two towers.*RealmScorer\.from_pretrained",
        "RealmKnowledgeAugEncoder": r"learned no retrieval: `RealmForPreTraining\.from_bert",
        "RealmReader": "a reader alone",
        "RealmForPreTraining": "embedder",
        "two_towers": "embedder",
        "RealmForOpenQA": "embedder",
    },
    RealmScorer: {
        "RealmEmbedder": "one tower alone",
        "RealmKnowledgeAugEncoder": "learned no retrieval",
        "RealmReader": "a reader alone",
        "RealmForPreTraining": "",
        "two_towers": "",
        "RealmForOpenQA": r"RealmRetriever\.from_pretrained\(.*\)\.embedder",
    },
    RealmKnowledgeAugEncoder: {
        "RealmEmbedder": "one tower alone",
        "RealmScorer": "without an encoder",
        "RealmReader": "a reader alone",
        "RealmForPreTraining": "encoder",
        "two_towers": "encoder",
        "RealmForOpenQA": "whose encoder has become a reader",
    },
    RealmReader: {
        "RealmEmbedder": "one tower alone",
        "RealmScorer": "without an encoder",
        "RealmKnowledgeAugEncoder": "learned no retrieval",
        "RealmForPreTraining": "cannot answer yet",
        "two_towers": "cannot answer yet",
        "RealmForOpenQA": "reader",
    },
    RealmForPreTraining: {
        "RealmEmbedder": "one tower alone.*give the RealmForPreTraining",
        "RealmScorer": "without an encoder",
        "RealmKnowledgeAugEncoder": r"`RealmForPreTraining\.from_bert\('.*RealmKnowledgeAugEncoder'\)` starts",
        "RealmReader": "a reader alone",
        "two_towers": "",
        "RealmForOpenQA": r"fine-tuned model.*RealmForOpenQA\.from_pretrained",
    },
    RealmForOpenQA: {
        "RealmEmbedder": "one tower alone",
        "RealmScorer": "without an encoder",
        "RealmKnowledgeAugEncoder": "learned no retrieval",
        "RealmReader": "a reader alone",
        "RealmForPreTraining": r"cannot answer yet.*realm-hf finetune",
        "two_towers": "cannot answer yet",
    },
}
AUTO = {
    AutoModel: RealmEmbedder,
    AutoModelForMaskedLM: RealmKnowledgeAugEncoder,
    AutoModelForPreTraining: RealmForPreTraining,
    AutoModelForQuestionAnswering: RealmForOpenQA,
}
PAIRS = [
    pytest.param(loads, wanted, kind, says, id=f"{loads.__name__}-{kind}")
    for loads, wanted in [*((kind, kind) for kind in CLASSES), *AUTO.items()]
    for kind, says in ({wanted.__name__: ""} | TABLE[wanted]).items()
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of each kind, with the model that was saved."""
    folder, models = tmp_path_factory.mktemp("checkpoints"), {}
    tiny_config = tiny_model().config
    two_towers = copy.deepcopy(tiny_config)
    two_towers.share_embedders = False
    torch.manual_seed(1)
    for kind in CLASSES:
        models[kind.__name__] = kind(copy.deepcopy(tiny_config))
    models["two_towers"] = RealmForPreTraining(two_towers)
    for name, model in models.items():
        model.eval().save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    BertForPreTraining(BertConfig(**{name: getattr(tiny_config, name) for name in fields})).save_pretrained(
        folder / "bert"
    )
    return folder, models


def all_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("loads", "wanted", "kind", "says"), PAIRS)
def test_a_class_reads_its_part_of_a_checkpoint_or_refuses_in_words(
    saved, tmp_path, caplog, loads, wanted, kind, says
):
    folder, models = saved
    if says not in ("", "embedder", "encoder", "reader"):
        with pytest.raises(ValueError, match=says):
            loads.from_pretrained(folder / kind)
        return
    loaded = loads.from_pretrained(folder / kind)

    assert type(loaded) is wanted and not loaded.training and not caplog.records
    whole = models[kind]
    if wanted is RealmScorer and kind != "RealmScorer":
        assert all_equal(loaded.embedder, whole.embedder) and all_equal(loaded.query_embedder, whole.query_embedder)
    else:
        assert all_equal(loaded, whole.get_submodule(says))
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [wanted.__name__]
    assert all_equal(wanted.from_pretrained(tmp_path), loaded)


@pytest.mark.parametrize("loads", CLASSES)
def test_a_bert_is_refused_with_the_call_that_starts_from_it(saved, loads):
    with pytest.raises(ValueError, match=rf"of type 'bert', not one of REALM's: `{loads.__name__}\.from_bert\("):
        loads.from_pretrained(saved[0] / "bert")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_hidden_layers": 3}, r"lacks \d+ of the \d+ weights of RealmForPreTraining.*realm\.encoder\.layer\."),
        ({"share_embedders": False}, r"lacks \d+ of the .*query_embedder\..*a second tower"),
        ({"intermediate_size": 8}, r"weights of other shapes.*is \(\d+, \d+\), not \(8, \d+\)"),
    ],
)
def test_settings_that_ask_for_more_than_was_saved_are_refused(saved, settings, says):
    with pytest.raises(ValueError, match=says):
        RealmForPreTraining.from_pretrained(saved[0] / "RealmForPreTraining", **settings)


def test_a_file_that_lacks_a_weight_is_refused_though_its_configuration_names_the_class(saved, tmp_path):
    _, models = saved
    model = models["RealmEmbedder"]
    weights = model.state_dict()
    del weights["cls.dense.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ weights of RealmEmbedder.*: cls\.dense\.weight\."):
        RealmEmbedder.from_pretrained(tmp_path)


def test_what_nothing_reads_may_be_missing_and_what_has_no_place_is_said_in_one_line(saved, tmp_path, caplog):
    _, models = saved
    model = models["RealmEmbedder"]
    weights = {name: tensor for name, tensor in model.state_dict().items() if "predictions" not in name}
    model.save_pretrained(tmp_path, state_dict=weights | {f"extra.{number}": torch.zeros(1) for number in range(9)})

    loaded, report = RealmEmbedder.from_pretrained(tmp_path, output_loading_info=True)

    assert torch.equal(loaded.cls.dense.weight, model.cls.dense.weight) and len(report["unexpected_keys"]) == 9
    (record,) = caplog.records
    assert record.message.count("\n") == 0 and "9 weights that RealmEmbedder has no place for" in record.message


def test_the_report_of_a_part_is_of_the_part(saved):
    _, report = RealmEmbedder.from_pretrained(saved[0] / "RealmForPreTraining", output_loading_info=True)
    assert not any(report.values())


def test_pipelines_take_a_pretrained_model(saved):
    folder, models = saved
    place, whole = str(folder / "RealmForPreTraining"), models["RealmForPreTraining"]
    text = "the river is [MASK]."

    filled = pipeline("fill-mask", model=place, device="cpu")(text, top_k=2)
    vectors = pipeline("feature-extraction", model=place, device="cpu")(text, return_tensors=True)

    inputs = tiny_tokenizer()(text, return_tensors="pt")
    with torch.no_grad():
        logits = whole.encoder(**inputs).logits[inputs["input_ids"] == tiny_tokenizer().mask_token_id]
        expected = whole.embedder(**inputs).projected_score
    assert [answer["token"] for answer in filled] == logits.topk(2).indices[0].tolist()
    torch.testing.assert_close(vectors, expected)
