"""Embedder and scorer: signatures of old scripts, saving and loading, resizing, freezing, dropout, Auto classes."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer
from transformers.activations import NewGELUActivation

from realm_hf import RealmConfig, RealmEmbedder, RealmForPreTraining, RealmKnowledgeAugEncoder, RealmScorer
from realm_hf.models import modeling_bert_tower

CLASSES = [RealmEmbedder, RealmScorer, RealmKnowledgeAugEncoder, RealmForPreTraining]


@pytest.fixture
def embedder(tiny_config):
    torch.manual_seed(0)
    tiny_config.initializer_range = 0.2
    return RealmEmbedder(tiny_config).eval()


def texts(tokenizer):
    return tokenizer(["Paris is in France.", "What?"], padding=True, return_tensors="pt")


def test_a_scorer_script_of_transformers_4_runs_with_its_import_changed(tiny_config, tokenizer):
    model = RealmScorer(tiny_config).eval()
    inputs = tokenizer(["How are you?", "What is the item in the picture?"], padding=True, return_tensors="pt")
    candidates = tokenizer.batch_encode_candidates(
        [["Hello world!", "Nice to meet you!"], ["A cute cat.", "An adorable dog."]],
        max_length=16,
        return_tensors="pt",
    )
    outputs = model(
        **inputs,
        candidate_input_ids=candidates.input_ids,
        candidate_attention_mask=candidates.attention_mask,
        candidate_token_type_ids=candidates.token_type_ids,
    )
    by_hand = torch.einsum("bd,bkd->bk", outputs.query_score, outputs.candidate_score)
    torch.testing.assert_close(outputs.relevance_score, by_hand)
    one_by_one = [
        model.embedder(candidates.input_ids[b], candidates.attention_mask[b]).projected_score for b in (0, 1)
    ]
    torch.testing.assert_close(outputs.candidate_score, torch.stack(one_by_one), atol=1e-5, rtol=1e-5)


def test_a_scorer_takes_flat_candidates_and_positional_arguments(tiny_config):
    model = RealmScorer(tiny_config).eval()
    ids, candidates = torch.tensor([[2, 9, 3]]), torch.tensor([[2, 8, 3], [2, 7, 3]])
    relevance, query, candidate = model(ids, None, None, None, candidates, return_dict=False)
    assert (relevance.shape, query.shape, candidate.shape) == ((1, 2), (1, 16), (1, 2, 16))


def test_an_encoder_script_of_transformers_4_runs_with_its_import_changed(tiny_config, tokenizer):
    model = RealmKnowledgeAugEncoder(tiny_config).eval()
    inputs = tokenizer.batch_encode_candidates(
        [["Hello world!", "Nice to meet you!"], ["The cute cat.", "The adorable dog."]],
        max_length=16,
        return_tensors="pt",
    )
    labels = torch.full((2, 16), -100)
    labels[:, 2] = 7
    outputs = model(
        **inputs,
        relevance_score=torch.tensor([[1.0, 0.0], [0.0, 3.0]]),
        labels=labels,
        mlm_mask=(labels != -100).long(),
    )
    assert outputs.logits.shape == (4, 16, tiny_config.vocab_size)
    likelihood = outputs.logits.softmax(-1)[:, 2, 7].view(2, 2)
    prior = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).softmax(-1)
    torch.testing.assert_close(outputs.loss, -(likelihood * prior).sum(-1).log().mean())


def test_an_encoder_loss_without_counted_positions_is_zero_with_gradient(tiny_config):
    model = RealmKnowledgeAugEncoder(tiny_config)
    ids, labels = torch.full((1, 2, 4), 9), torch.full((1, 4), -100)
    loss = model(ids, relevance_score=torch.zeros(1, 2), labels=labels, mlm_mask=torch.zeros(1, 4)).loss
    loss.backward()
    assert loss.item() == 0.0


def test_labels_without_relevance_score_are_refused(tiny_config):
    with pytest.raises(ValueError, match="without `relevance_score`"):
        RealmKnowledgeAugEncoder(tiny_config)(torch.full((1, 2, 4), 9), labels=torch.full((1, 4), 9))


@pytest.mark.parametrize("given", ["query", "candidates"])
def test_a_scorer_names_what_is_missing(tiny_config, given):
    ids = torch.tensor([[2, 9, 3]])
    inputs = {"input_ids": ids} if given == "query" else {"candidate_input_ids": ids}
    missing = "candidate" if given == "query" else "query"
    with pytest.raises(ValueError, match=f"No {missing} was given"):
        RealmScorer(tiny_config)(**inputs)


def test_candidates_that_cannot_be_shared_out_are_refused(tiny_config):
    with pytest.raises(ValueError, match="3 candidates cannot be shared out to 2 queries"):
        RealmScorer(tiny_config)(torch.full((2, 3), 9), candidate_input_ids=torch.full((3, 3), 9))


def test_head_masks_are_refused_instead_of_ignored(embedder):
    with pytest.raises(ValueError, match="no head masks"):
        embedder(torch.full((1, 3), 9), head_mask=torch.ones(2, 2))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_computing_only_cls_in_the_last_layer_is_exact(tiny_config, tokenizer, implementation):
    tiny_config._attn_implementation = implementation
    model = RealmEmbedder(tiny_config).double().eval()
    inputs = texts(tokenizer)
    whole = model.cls(model.realm(**inputs).pooler_output)
    torch.testing.assert_close(model(**inputs).projected_score, whole, atol=1e-12, rtol=0)


def test_chunks_of_a_batch_share_one_lookup_of_words_and_its_gradient_is_exact(embedder):
    embedder.double()
    words = embedder.realm.embeddings.word_embeddings
    looked_up = []
    words.register_forward_hook(lambda *_: looked_up.append(1))
    ids = torch.randint(5, 50, (6, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([9, 2, 5, 7, 3, 4])[:, None]).long()
    weights = torch.randn(6, embedder.config.retriever_proj_size, dtype=torch.double)
    (embedder.encode(ids, mask, max_tokens_per_chunk=9) * weights).sum().backward()
    assert len(looked_up) == 1
    gradient, words.weight.grad = words.weight.grad, None
    (embedder(ids, mask).projected_score * weights).sum().backward()
    torch.testing.assert_close(gradient, words.weight.grad, atol=1e-12, rtol=1e-9)


def test_the_published_activation_is_one_kernel_with_the_same_values(tiny_config):
    tiny_config.hidden_act = "gelu_new"
    values = torch.linspace(-8, 8, 1001, dtype=torch.double)
    for layer in RealmEmbedder(tiny_config).realm.encoder.layer:
        assert isinstance(layer.intermediate.intermediate_act_fn, torch.nn.GELU)
        fused = layer.intermediate.intermediate_act_fn(values)
        torch.testing.assert_close(fused, NewGELUActivation()(values), atol=1e-14, rtol=0)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_without_gradients_the_activation_is_part_of_the_product_and_values_stay(tiny_config, activation):
    tiny_config.hidden_act = activation
    intermediate = RealmEmbedder(tiny_config).realm.encoder.layer[0].intermediate
    states = torch.randn(3, 5, tiny_config.hidden_size, generator=torch.Generator().manual_seed(0)) * 4
    seen = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    apart = intermediate(states)
    assert apart.requires_grad
    with torch.no_grad(), Operators():
        at_once = intermediate(states)
    assert seen == ["mkldnn._linear_pointwise.default"]
    torch.testing.assert_close(at_once, apart.detach(), atol=2e-6, rtol=1e-5)


def test_torch_2_8_to_2_13_have_the_private_kernel_with_the_signature_that_is_called():
    """Another torch fails here: look at its signature, extend the versions or let go of the kernel."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    assert (2, 8) <= release <= (2, 13)
    assert modeling_bert_tower.fused_linear() is torch.ops.mkldnn._linear_pointwise.default


@pytest.mark.parametrize("signature", [None, "mkldnn::_linear_pointwise(Tensor X, Tensor W, str attr) -> Tensor Y"])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_a_torch_without_the_private_kernel_computes_the_same_values(tiny_config, monkeypatch, activation, signature):
    tiny_config.hidden_act = activation
    intermediate = RealmEmbedder(tiny_config).realm.encoder.layer[0].intermediate
    states = torch.randn(3, 5, tiny_config.hidden_size, generator=torch.Generator().manual_seed(0)) * 4
    with torch.no_grad():
        usual = intermediate(states)
    other = SimpleNamespace(default=SimpleNamespace(_schema=signature)) if signature else None
    found = modeling_bert_tower.fused_linear(SimpleNamespace(_linear_pointwise=other))
    assert found is None
    monkeypatch.setattr(modeling_bert_tower, "_linear_and_activation", found)
    seen = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Operators():
        apart = intermediate(states)
    assert "aten.gelu.default" in seen and "mkldnn._linear_pointwise.default" not in seen
    torch.testing.assert_close(apart, usual, atol=2e-6, rtol=1e-5)


class Adapted(torch.nn.Linear):
    """As libraries of adapters replace linear layers."""

    def forward(self, states):
        return super().forward(states) + 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_fused_product_gives_way_to_whatever_it_does_not_know(tiny_config):
    intermediate = RealmEmbedder(tiny_config).eval().realm.encoder.layer[0].intermediate
    states = torch.randn(3, 5, tiny_config.hidden_size, generator=torch.Generator().manual_seed(0))
    seen = []
    with torch.no_grad():
        expected = intermediate(states)
        handle = intermediate.dense.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(intermediate(states), expected, atol=2e-6, rtol=1e-5)
        handle.remove()
        with torch.autocast("cpu", torch.bfloat16):
            assert intermediate(states).dtype == torch.bfloat16
        assert "mkldnn" not in str(torch.jit.trace(intermediate, (states,)).inlined_graph)
        assert "mkldnn" not in str(torch.export.export(intermediate, (states,)).graph)
        plain, adapted = intermediate.dense, Adapted(tiny_config.hidden_size, tiny_config.intermediate_size)
        adapted.load_state_dict(plain.state_dict())
        intermediate.dense = adapted
        changed = torch.nn.functional.gelu(plain(states) + 1)
        torch.testing.assert_close(intermediate(states), changed)
        assert intermediate.double()(states.double()).dtype == torch.float64
    assert seen == [1]


def test_hidden_states_and_attentions_are_returned_whole(tiny_config, tokenizer):
    tiny_config._attn_implementation = "eager"
    model = RealmEmbedder(tiny_config).eval()
    inputs = texts(tokenizer)
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    shape = inputs.input_ids.shape
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(*shape, 32)] * 3
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(shape[0], 2, shape[1], shape[1])] * 2
    torch.testing.assert_close(outputs.hidden_states[-1], model.realm(**inputs).last_hidden_state)
    torch.testing.assert_close(outputs.projected_score, model(**inputs).projected_score)


def test_projection_dropout_comes_after_the_layer_normalization_and_only_in_training(tiny_config, tokenizer):
    tiny_config.projection_dropout = 0.5
    model = RealmEmbedder(tiny_config).eval()
    inputs = texts(tokenizer)
    reference = model(**inputs).projected_score
    assert torch.equal(model(**inputs).projected_score, reference)
    torch.manual_seed(0)
    dropped = model.train()(**inputs).projected_score
    zero = dropped == 0.0
    assert 0 < zero.sum() < zero.numel()
    torch.testing.assert_close(dropped[~zero], 2 * reference[~zero])


def test_the_score_scale_multiplies_scores(tiny_config):
    model = RealmScorer(tiny_config).eval()
    ids, candidates = torch.tensor([[2, 9, 3]]), torch.tensor([[[2, 8, 3], [2, 7, 3]]])
    unscaled = model(ids, candidate_input_ids=candidates).relevance_score
    model.config.score_scale = 0.25
    torch.testing.assert_close(model(ids, candidate_input_ids=candidates).relevance_score, 0.25 * unscaled)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("fields", [{}, {"share_embedders": False}, {"tie_word_embeddings": False}], ids=str)
def test_saving_and_loading_keeps_weights_tying_and_freezing(tiny_config, tmp_path, model_class, fields):
    for name, value in fields.items():
        setattr(tiny_config, name, value)
    torch.manual_seed(0)
    model = model_class(tiny_config)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name in RealmConfig.__annotations__:
        assert getattr(loaded.config, name) == getattr(model.config, name), name
    state, other = model.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    for one in (model, loaded):
        # One storage each: optimizers and DistributedDataParallel see every weight once.
        assert len({p.data_ptr() for p in one.parameters()}) == len(list(one.parameters()))
    assert len(list(model.parameters())) == len(list(loaded.parameters()))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in loaded.named_parameters() if p.requires_grad}


def test_tied_weights_are_stored_once(tiny_config, tmp_path):
    RealmScorer(tiny_config).save_pretrained(tmp_path)
    assert not any(name.startswith("query_embedder.") for name in load_file(tmp_path / "model.safetensors"))


def test_a_scorer_keeps_a_query_embedder_of_its_own(tiny_config, tmp_path):
    own = RealmEmbedder(tiny_config)
    tiny_config.share_embedders = False
    RealmScorer(tiny_config, query_embedder=own).save_pretrained(tmp_path)
    loaded = RealmScorer.from_pretrained(tmp_path)
    assert torch.equal(loaded.query_embedder.cls.dense.weight, own.cls.dense.weight)
    assert not torch.equal(loaded.embedder.cls.dense.weight, own.cls.dense.weight)


def test_unfreezing_a_model_leaves_unread_parts_frozen(tiny_config):
    model = RealmForPreTraining(tiny_config)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    model.embedder.requires_grad_(False)
    assert not any(name.startswith("embedder.") for name, p in model.named_parameters() if p.requires_grad)
    model.requires_grad_(True)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable


@pytest.mark.parametrize("model_class", CLASSES)
def test_resized_embeddings_reach_every_tower_and_survive_saving(tiny_config, tmp_path, model_class):
    model = model_class(tiny_config)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    size = tiny_config.vocab_size + 5
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    rows = {
        name: w.shape[0] for name, w in model.state_dict().items() if "word_embeddings" in name or "decoder" in name
    }
    assert set(rows.values()) == {size}
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.get_input_embeddings().num_embeddings == size


def test_the_encoders_decoder_is_tied_to_its_word_embeddings(tiny_config):
    for encoder in (RealmKnowledgeAugEncoder(tiny_config), RealmForPreTraining(tiny_config).encoder):
        assert encoder.get_output_embeddings().weight is encoder.get_input_embeddings().weight
        assert encoder.cls.predictions.bias is encoder.cls.predictions.decoder.bias


def test_a_tower_of_the_joint_model_saves_as_an_embedder(tiny_config, tmp_path, tokenizer):
    model = RealmForPreTraining(tiny_config).eval()
    model.embedder.save_pretrained(tmp_path)
    loaded, info = RealmEmbedder.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    inputs = texts(tokenizer)
    assert torch.equal(loaded(**inputs).projected_score, model.embedder(**inputs).projected_score)


def test_shared_towers_are_one_module_and_untied_towers_two(tiny_config):
    shared = RealmForPreTraining(tiny_config)
    assert shared.query_embedder is shared.embedder
    assert not any(name.startswith("query_embedder") for name in shared.state_dict())
    tiny_config.share_embedders = False
    untied = RealmForPreTraining(tiny_config)
    assert untied.query_embedder is not untied.embedder
    assert any(name.startswith("query_embedder") for name, _ in untied.named_parameters())


def test_auto_classes_know_every_model(tiny_config, tokenizer, tmp_path):
    tiny_config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), RealmConfig)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is type(tokenizer)
    assert isinstance(AutoModel.from_config(tiny_config), RealmEmbedder)
    assert isinstance(AutoModelForMaskedLM.from_config(tiny_config), RealmKnowledgeAugEncoder)
    assert isinstance(AutoModelForPreTraining.from_config(tiny_config), RealmForPreTraining)


def test_models_run_in_bfloat16_with_float32_embeddings(embedder, tokenizer):
    inputs = texts(tokenizer)
    reference = embedder(**inputs).projected_score
    halved = embedder.to(torch.bfloat16)(**inputs).projected_score
    assert halved.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(halved, reference).min() > 0.99
