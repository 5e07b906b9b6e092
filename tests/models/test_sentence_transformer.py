"""Embedders in folders of sentence-transformers: the same embeddings there, and bit for bit the same weights back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_encoders import FAMILIES, TEXT, save_encoder, train_tokenizer
from transformers import AutoModel, AutoTokenizer

from realm_hf import RealmConfig, RealmEmbedder
from realm_hf.models.sentence_transformer_folder import norm_scale
from realm_hf.models.sentence_transformer_reading import read_modules
from realm_hf.models.tower_files import same_tower


def as_the_library_does(folder, texts, route=None):
    """What sentence-transformers computes of such a folder, written down from its modules and its prompts."""
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    prompt = settings["prompts"][route] if route else ""
    texts = [(prompt + t[0], t[1]) if isinstance(t, tuple) else prompt + t for t in texts]
    modules = json.loads((folder / "modules.json").read_text())
    chain = [(module["type"].rsplit(".", 1)[1], folder / module["path"]) for module in modules]
    if chain[0][0] == "Router":
        router = json.loads((folder / "router_config.json").read_text())
        chain = [(router["types"][p].rsplit(".", 1)[1], folder / p) for p in router["structure"][route]]
    place = chain[0][1]
    length = json.loads((place / "sentence_bert_config.json").read_text())["max_seq_length"]
    first, second = ([t[0] for t in texts], [t[1] for t in texts]) if isinstance(texts[0], tuple) else (texts, None)
    batch = AutoTokenizer.from_pretrained(place)(
        first, second, padding=True, truncation="longest_first", max_length=length, return_tensors="pt"
    )
    model = AutoModel.from_pretrained(place).eval()
    with torch.no_grad():
        state = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        for kind, path in chain[1:]:
            content = json.loads((path / "config.json").read_text()) if (path / "config.json").is_file() else {}
            weights = load_file(path / "model.safetensors") if (path / "model.safetensors").is_file() else {}
            if kind == "Pooling":
                assert content["word_embedding_dimension"] == state.shape[-1]
                mean = (state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
                state = state[:, 0] if content["pooling_mode_cls_token"] else mean
            elif kind == "Dense":
                state = torch.nn.functional.linear(state, weights["linear.weight"], weights["linear.bias"])
                state = torch.tanh(state) if content["activation_function"].endswith(".Tanh") else state
            elif kind == "LayerNorm":
                state = torch.nn.functional.layer_norm(
                    state, (content["dimension"],), weights["norm.weight"], weights["norm.bias"]
                )
            elif kind == "Normalize":
                state = torch.nn.functional.normalize(state, dim=1)
            else:
                raise AssertionError(kind)
    return state.numpy()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {family: save_encoder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def with_norm(embedder):
    """A normalization that has been trained."""
    if embedder.cls.LayerNorm is not None:
        with torch.no_grad():
            embedder.cls.LayerNorm.weight.add_(0.3 * torch.randn(embedder.cls.LayerNorm.weight.shape))
            embedder.cls.LayerNorm.bias.add_(0.3 * torch.randn(embedder.cls.LayerNorm.bias.shape))
            embedder.cls.dense.bias.add_(0.3 * torch.randn(embedder.cls.dense.bias.shape))
    return embedder


FIELDS = [
    {"projection": "layer_norm", "retriever_proj_size": 8},
    {"projection": "linear", "retriever_proj_size": 8, "normalize": True},
    {"projection": "none", "retriever_proj_size": 32, "pooling_mode": "mean", "normalize": True},
]


@pytest.fixture
def bert(tokenizer):
    def build(**fields):
        torch.manual_seed(3)
        config = RealmConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=48, max_position_embeddings=64, initializer_range=0.2, **fields,
        )  # fmt: skip
        embedder = with_norm(RealmEmbedder(config).eval())
        embedder.tokenizer = tokenizer
        return embedder

    return build


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_of_a_bert_the_library_computes_the_same(bert, fields, tmp_path):
    embedder = bert(**fields)
    embedder.to_sentence_transformer(tmp_path / "out")
    np.testing.assert_allclose(as_the_library_does(tmp_path / "out", TEXT), embedder.encode(TEXT), atol=1e-5)
    pairs = [("Paris", TEXT[0]), ("The Seine", TEXT[1])]
    ours = embedder.encode([body for _, body in pairs], titles=[title for title, _ in pairs])
    np.testing.assert_allclose(as_the_library_does(tmp_path / "out", pairs), ours, atol=1e-5)
    assert np.abs(ours - embedder.encode([body for _, body in pairs])).max() > 1e-2, "titles change nothing"


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_out_and_back_every_bit_is_the_same(bert, fields, tmp_path):
    embedder = bert(**fields)
    embedder.to_sentence_transformer(tmp_path / "out")
    back = RealmEmbedder.from_sentence_transformer(tmp_path / "out")
    unread = ("cls.predictions.", "realm.pooler.") if embedder.config.pooling_mode == "mean" else ("cls.predictions.",)
    ours, theirs = back.state_dict(), embedder.state_dict()
    read = [name for name in theirs if not name.startswith(unread)]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in read)
    assert np.array_equal(back.encode(TEXT), embedder.encode(TEXT))
    changed = {"score_scale", "torch_dtype", "dtype", "architectures", "_name_or_path"}
    ours, theirs = back.config.to_dict(), embedder.config.to_dict()
    assert {k: v for k, v in ours.items() if k not in changed} == {k: v for k, v in theirs.items() if k not in changed}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_of_any_encoder_the_library_computes_the_same_and_it_comes_back(checkpoints, family, pooling, tmp_path):
    torch.manual_seed(1)
    embedder = with_norm(
        RealmEmbedder.from_encoders(embedder=checkpoints[family], retriever_proj_size=8, pooling_mode=pooling)
    )
    embedder.to_sentence_transformer(tmp_path / "out", tokenizer=train_tokenizer(family))
    embedder.tokenizer = train_tokenizer(family)
    np.testing.assert_allclose(as_the_library_does(tmp_path / "out", TEXT), embedder.encode(TEXT), atol=1e-5)
    back = RealmEmbedder.from_sentence_transformer(tmp_path / "out")
    assert same_tower(back, embedder)


def test_two_towers_are_two_routes(bert, tmp_path):
    documents, queries = bert(**FIELDS[0]), bert(**FIELDS[0])
    with torch.no_grad():
        queries.cls.dense.weight.add_(0.2 * torch.randn(queries.cls.dense.weight.shape))
    documents.to_sentence_transformer(tmp_path / "out", query_embedder=queries)
    for route, tower in (("query", queries), ("document", documents)):
        found = as_the_library_does(tmp_path / "out", TEXT, route)
        np.testing.assert_allclose(found, tower.encode(TEXT), atol=1e-5)
        assert same_tower(RealmEmbedder.from_sentence_transformer(tmp_path / "out", route=route), tower)
    with pytest.raises(ValueError, match="has the towers document, query, and `route` is None"):
        RealmEmbedder.from_sentence_transformer(tmp_path / "out")
    assert np.abs(queries.encode(TEXT) - documents.encode(TEXT)).max() > 1e-2


def test_no_module_is_of_another_package_and_scores_are_inner_products(bert, tmp_path):
    bert(**FIELDS[0]).to_sentence_transformer(tmp_path / "out")
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [m["type"] for m in modules] == [
        f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Dense", "Dense", "LayerNorm")
    ]
    settings = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert settings["similarity_fn_name"] == "dot"
    assert not list((tmp_path / "out").rglob("*.py"))


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1e-3])
def test_the_scale_stands_for_the_epsilon(epsilon):
    scale = norm_scale(epsilon)
    assert np.log2(scale) == round(np.log2(scale))
    assert epsilon / 4 < 1e-5 / scale**2 < epsilon * 4


def rewrite(folder, change):
    modules = json.loads((folder / "modules.json").read_text())
    change(modules)
    (folder / "modules.json").write_text(json.dumps(modules))


def test_what_cannot_be_read_is_refused(bert, tmp_path):
    with pytest.raises(ValueError, match=r"has no modules\.json"):
        RealmEmbedder.from_sentence_transformer(tmp_path)
    embedder = bert(**FIELDS[1])
    embedder.to_sentence_transformer(tmp_path / "out")
    with pytest.raises(FileExistsError, match="is not empty"):
        embedder.to_sentence_transformer(tmp_path / "out")
    with pytest.raises(ValueError, match="says what retriever_proj_size must be"):
        RealmEmbedder.from_sentence_transformer(tmp_path / "out", retriever_proj_size=16)
    rewrite(tmp_path / "out", lambda modules: modules.append({"idx": 9, "name": "9", "path": "x", "type": "a.b.CNN"}))
    with pytest.raises(ValueError, match="nothing but Normalize may follow, and CNN does"):
        RealmEmbedder.from_sentence_transformer(tmp_path / "out")
    case = tmp_path / "out" / "tokenizer_config.json"
    case.write_text(json.dumps(json.loads(case.read_text()) | {"do_lower_case": False}))
    (tmp_path / "out" / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(ValueError, match="texts are put in lower case, and not by its tokenizer"):
        RealmEmbedder.from_sentence_transformer(tmp_path / "out")
    (tmp_path / "out" / "sentence_bert_config.json").unlink()
    pooling = tmp_path / "out" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "lasttoken"}))
    with pytest.raises(ValueError, match="its pooling is lasttoken"):
        RealmEmbedder.from_sentence_transformer(tmp_path / "out")


PROMPTS = {"query_prompt": "where is ", "document_prompt": "it is said : "}


def with_prompts(tokenizer):
    ids = {f"{name}_ids": tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in PROMPTS.items()}
    return {**PROMPTS, **ids}


def test_prompts_go_out_and_come_back(bert, tokenizer, tmp_path):
    embedder = bert(**FIELDS[2], **with_prompts(tokenizer))
    embedder.to_sentence_transformer(tmp_path / "out")
    np.testing.assert_allclose(as_the_library_does(tmp_path / "out", TEXT, "query"), embedder.encode(TEXT), atol=1e-5)
    pairs = [("Paris", TEXT[0]), ("The Seine", TEXT[1])]
    ours = embedder.encode([body for _, body in pairs], titles=[title for title, _ in pairs])
    np.testing.assert_allclose(as_the_library_does(tmp_path / "out", pairs, "document"), ours, atol=1e-5)
    back = RealmEmbedder.from_sentence_transformer(tmp_path / "out")
    assert np.array_equal(back.encode(TEXT), embedder.encode(TEXT)) and back.config.query_prompt == "where is "
    other = RealmEmbedder.from_sentence_transformer(tmp_path / "out", query_prompt="", document_prompt="and ")
    assert (other.config.query_prompt, other.config.document_prompt) == ("", "and ")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, ("", "")),
        ({"prompts": {"query": "q ", "document": ""}}, ("q ", "")),
        ({"prompts": {"query": "q ", "passage": "p "}}, ("q ", "p ")),
        ({"prompts": {"query": "", "document": "", "passage": "p "}}, ("", "p ")),
        ({"prompts": {"all": "a "}, "default_prompt_name": "all"}, ("a ", "a ")),
        ({"prompts": {"all": "a ", "query": "q "}, "default_prompt_name": "all"}, ("q ", "a ")),
        ({"prompts": {"query": "q ", "document": ""}, "default_prompt_name": "query"}, ("q ", "")),
    ],
    ids=str,
)
def test_a_role_has_the_prompt_that_encode_query_and_encode_document_use(bert, tmp_path, settings, found):
    bert(**FIELDS[2]).to_sentence_transformer(tmp_path / "out")
    (tmp_path / "out" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    prompts = read_modules(tmp_path / "out").prompts
    assert (prompts.get("query_prompt", ""), prompts.get("document_prompt", "")) == found


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fields", [*FIELDS, FIELDS[0] | {"document_format": "joined"}], ids=str)
def test_out_in_and_out_again_the_files_are_the_same(bert, tokenizer, fields, tmp_path):
    bert(**fields, **with_prompts(tokenizer)).to_sentence_transformer(tmp_path / "one", max_length=48)
    back = RealmEmbedder.from_sentence_transformer(tmp_path / "one")
    assert back.config.document_format == fields.get("document_format", "pair")
    back.to_sentence_transformer(tmp_path / "two")
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    classes = {json.loads(files.pop(Path("tokenizer_config.json")))["tokenizer_class"] for files in (one, two)}
    assert one == two and classes == {"BertTokenizer"}, "what transformers and the library have, not ours"


def test_texts_are_cut_where_the_folder_says(bert, tmp_path):
    embedder = bert(**FIELDS[2])
    embedder.to_sentence_transformer(tmp_path / "out", max_length=12)
    long = [" ".join(TEXT)]
    found = RealmEmbedder.from_sentence_transformer(tmp_path / "out").encode(long)
    np.testing.assert_allclose(found, as_the_library_does(tmp_path / "out", long), atol=1e-5)
    assert np.abs(found - embedder.encode(long)).max() > 1e-2


def test_joined_is_what_tools_embed_that_join_title_and_text(bert, tmp_path):
    embedder = bert(**FIELDS[0], document_format="joined")
    embedder.to_sentence_transformer(tmp_path / "out")
    ours = embedder.encode(TEXT[:2], titles=["Paris", "The Seine"])
    joined = [f"Paris {TEXT[0]}", f"The Seine {TEXT[1]}"]
    np.testing.assert_allclose(as_the_library_does(tmp_path / "out", joined, "document"), ours, atol=1e-5)


def test_prompts_that_would_become_other_tokens_are_refused(checkpoints, tmp_path):
    embedder = RealmEmbedder.from_encoders(embedder=checkpoints["roberta"], retriever_proj_size=8, query_prompt="q: ")
    with pytest.raises(ValueError, match=r"The prompt 'q: ' \(query\) and a text have other tokens joined"):
        embedder.to_sentence_transformer(tmp_path / "out", tokenizer=train_tokenizer("roberta"))
    plain = RealmEmbedder.from_encoders(embedder=checkpoints["roberta"], retriever_proj_size=8)
    plain.to_sentence_transformer(tmp_path / "plain", tokenizer=train_tokenizer("roberta"))
    settings = tmp_path / "plain" / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"prompts": {"query": "q: "}}))
    for start in (
        RealmEmbedder.from_sentence_transformer,
        lambda f, **k: RealmEmbedder.from_encoders(embedder=f, **k),
    ):
        with pytest.raises(ValueError, match="have other tokens joined"):
            start(tmp_path / "plain")
        assert not start(tmp_path / "plain", query_prompt="").config.query_prompt
