"""RealmConfig: the port's defaults, validation, files."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from realm_hf import RealmConfig


def test_defaults_are_the_ports_but_for_the_special_ids():
    config = RealmConfig()
    port = {
        "vocab_size": 30522,
        "hidden_size": 768,
        "retriever_proj_size": 128,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_candidates": 8,
        "intermediate_size": 3072,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "span_hidden_size": 256,
        "max_span_width": 10,
        "reader_layer_norm_eps": 1e-3,
        "reader_beam_size": 5,
        "reader_seq_len": 320,
        "num_block_records": 13353718,
        "searcher_beam_size": 5000,
    }
    assert {name: getattr(config, name) for name in port} == port
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, None, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("marginalization", "sum"), ("retriever_proj_size", "128"), ("score_scale", None), ("share_embedders", "yes")],
)
def test_wrong_values_are_refused(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        RealmConfig(**{field: value})


def test_files_keep_every_field(tmp_path):
    config = RealmConfig(projection_dropout=0.1, score_scale=0.5, marginalization="span", share_embedders=False)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "realm"
    assert RealmConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
