"""`realm-hf estimate`: the arithmetic by hand, what it must follow, and the command."""

import dataclasses
import json

import pytest
import torch
from tiny_encoders import FAMILIES, tiny_configuration
from tiny_worlds import tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, BertConfig, GPT2Config

from realm_hf import RealmConfig
from realm_hf.cli.estimate import in_words
from realm_hf.cli.main import main
from realm_hf.estimate import MODELS, ModelShape, Plan, Rates, estimate_run, packaged_rates
from realm_hf.estimate.encoder_shapes import shape_of_encoder
from realm_hf.estimate.index_costs import bm25_bytes
from realm_hf.knowledge.bm25 import build_bm25
from realm_hf.refresh.build import TASK_ROWS

RATES = Rates(train_tflops=1.0, encode_tflops=2.0, index_tflops=0.5, disk_gigabytes=1.0, source="test")
SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
PLAN = Plan(passages=50_000, steps=10_000, shape=MODELS["base"], rates=RATES)


def changed(**changes):
    return estimate_run(dataclasses.replace(PLAN, **changes))


def test_the_operations_of_a_layer_are_those_of_its_matrices():
    shape = ModelShape(hidden_size=4, num_hidden_layers=3, intermediate_size=8)
    weights = 3 * (4 * 4 * 4 + 2 * 4 * 8)
    assert shape.layer_parameters == weights
    # Two operations a weight and token; queries times keys and weights times values: each 2 L H T².
    assert shape.forward_operations(5) == 2 * weights * 5 + 2 * (2 * 3 * 4 * 5 * 5)


def test_bert_base_has_its_parameters():
    assert MODELS["base"].parameters == pytest.approx(109e6, rel=0.02)


def test_embedding_takes_the_operations_of_all_passages_at_the_rate():
    found = changed(passages=1000, passage_tokens=100.0)
    assert found.embed_seconds == pytest.approx(1000 * MODELS["base"].forward_operations(100) / 2e12)


def test_builders_share_the_tasks_of_embedding_and_devices_share_the_step():
    passages = 8 * TASK_ROWS
    one, four = changed(passages=passages), changed(passages=passages, builders=4, devices=2)
    assert four.embed_seconds == pytest.approx(one.embed_seconds / 4)
    assert four.step_seconds == pytest.approx(one.step_seconds / 2)
    # Nine tasks are as long for four as twelve are, and one task is for one alone.
    nine, twelve = (changed(passages=count * TASK_ROWS, builders=4).embed_seconds for count in (9, 12))
    assert nine == pytest.approx(twelve)
    assert changed(passages=1000, builders=4).embed_seconds == changed(passages=1000).embed_seconds


def test_passages_are_embedded_at_the_rate_of_their_precision():
    rates = dataclasses.replace(RATES, bfloat16_encode_tflops=6.0)
    half = changed(rates=rates, encode_dtype="bfloat16")
    assert half.embed_seconds == pytest.approx(changed(rates=rates).embed_seconds / 3)
    with pytest.raises(ValueError, match="encode_dtype is bfloat16, for which no rate is known"):
        changed(encode_dtype="bfloat16")


@pytest.mark.parametrize(
    ("passages", "factory", "dtype", "bytes_a_row"),
    [
        (50_000, "auto", "float32", 4 * 128 + 4 * 128),
        (50_000, "auto", "float16", 2 * 128 + 4 * 128),
        (1_000_000, "auto", "float16", 2 * 128 + 2 * 128 + 8),
        (1_000_000, "IVF4096,PQ32", "float16", 2 * 128 + 32 + 8),
        (1_000_000, "SQ8", "float16", 2 * 128 + 128),
        (1_000_000, "HNSW32_SQfp16", "float16", 2 * 128 + 2 * 128 + 8 * 32),
    ],
)
def test_serving_takes_embeddings_and_index(passages, factory, dtype, bytes_a_row):
    found = changed(passages=passages, factory=factory, dtype=dtype)
    assert found.serving_bytes == passages * bytes_a_row
    assert found.disk_bytes > 3 * found.serving_bytes, "two generations are kept while a third is written"


def test_devices_that_hold_the_rows_search_on_the_path_of_the_step():
    lists = changed(passages=2_000_000, devices=2, batch_size=16)
    found = changed(passages=2_000_000, devices=2, batch_size=16, device_gigabytes=80)
    assert (lists.factory, found.factory) == ("IVF4096,SQfp16", "exact-sharded")
    assert (found.dtype, found.share_bytes) == ("float16", 2 * 1_000_000 * 128 * 2)
    # Each multiplies its million rows with all 16 queries, in two parts: two operations for each number.
    assert found.search_seconds == pytest.approx(1_000_000 * 128 * 16 * 2 * 2 / 2e12)
    assert found.step_seconds == pytest.approx(lists.step_seconds + found.search_seconds)
    assert found.device_bytes == lists.device_bytes + found.share_bytes
    assert found.index_seconds == 0.0 < lists.index_seconds
    assert found.serving_bytes == 2_000_000 * 128 * 2
    on_cores = changed(passages=2_000_000, devices=2, batch_size=16, factory="exact-sharded")
    assert on_cores.search_seconds == pytest.approx(found.search_seconds / 2)
    assert "two shares of the index" in "\n".join(in_words(found))
    chosen = changed(
        passages=2_000_000,
        devices=2,
        batch_size=16,
        device_gigabytes=80,
        rates=dataclasses.replace(RATES, gigascores=0.25),
    )
    assert chosen.search_seconds == pytest.approx(found.search_seconds + 1_000_000 * 16 / 0.25e9)


def test_a_bm25_source_takes_eight_bytes_for_each_word_of_a_passage_once(countries):
    plain, found = (
        changed(passages=1000, passage_tokens=100.0),
        changed(passages=1000, passage_tokens=100.0, bm25=True),
    )
    assert found.bm25_bytes == pytest.approx(1000 * 100 * 0.43 * 8)
    assert found.disk_bytes == plain.disk_bytes + found.bm25_bytes and plain.bm25_bytes == 0
    assert found.serving_bytes == plain.serving_bytes and found.built_bm25_bytes > 5 * found.bm25_bytes
    # On real text: the tiny vocabulary cuts words into more wordpieces than BERT's.
    index = build_bm25(countries, tiny_tokenizer())
    tokens = len(countries.title_tokens.values) + len(countries.body_tokens.values)
    assert bm25_bytes(tokens) / 2 < 8 * len(index.rows) < 1.2 * bm25_bytes(tokens)


def test_lists_take_more_while_they_are_built():
    flat, lists = changed(passages=1_000_000, factory="Flat"), changed(passages=1_000_000, factory="IVF4096,Flat")
    tower = 4 * MODELS["base"].parameters
    assert flat.builder_bytes == flat.serving_bytes + tower
    grown, sample = 1_000_000 * (4 * 128 + 8) / 2, 1_000_000 * 4 * 128
    assert lists.builder_bytes == lists.serving_bytes + tower + grown + sample


def test_a_flat_index_takes_no_training_and_lists_do():
    assert changed(factory="Flat").index_seconds == 0.0
    lists = changed(passages=1_000_000, factory="IVF4096,Flat")
    assert lists.index_seconds == pytest.approx(2 * 4096 * 128 * (10 * 1_000_000 + 1_000_000) / 0.5e12)
    cores = changed(passages=1_000_000, index_cores=4, builders=4)
    assert cores.index_seconds == pytest.approx(changed(passages=1_000_000, builders=4).index_seconds / 4)
    assert changed(passages=1_000_000).index_seconds < lists.index_seconds, "auto trains on a part of the rows"


def test_async_is_stale_by_a_build_and_sync_never_by_more_than_its_period():
    sync = changed(builders=0)
    assert (sync.staleness_steps, sync.longest_staleness_steps) == (250, 500)
    asynchronous = changed()
    build = asynchronous.refresh_seconds / asynchronous.step_seconds
    assert asynchronous.longest_staleness_steps == pytest.approx(build + max(500, build))
    assert asynchronous.staleness_steps == pytest.approx((build + asynchronous.longest_staleness_steps) / 2)


def test_training_waits_for_builds_in_sync_mode_only():
    sync, asynchronous = changed(builders=0), changed()
    steps = PLAN.steps * sync.step_seconds
    assert sync.refreshes == (PLAN.steps - 1) // PLAN.refresh_steps
    assert sync.total_seconds == pytest.approx(steps + (sync.refreshes + 2) * sync.refresh_seconds)
    assert asynchronous.total_seconds == pytest.approx(steps + 2 * asynchronous.refresh_seconds)


@pytest.mark.parametrize("builders", [0, 1])
def test_a_schedule_of_one_part_is_estimated_as_its_interval(builders):
    by_schedule = changed(builders=builders, refresh_schedule="0-:70", refresh_steps=9)
    plain = changed(builders=builders, refresh_steps=70)
    assert dataclasses.replace(by_schedule, assumed=[]) == dataclasses.replace(plain, assumed=[])
    assert any("schedule every 70 steps" in line for line in by_schedule.assumed)


def test_a_schedule_renews_the_index_as_often_as_its_parts_say():
    sync = changed(builders=0, steps=5000, refresh_schedule="0-1000:250,1000-:1000")
    assert sync.refreshes == 4 + 3, "250, 500, 750, 1000, 2000, 3000, 4000; that of step 5000 is the last index"
    assert sync.longest_staleness_steps == 1000
    assert sync.staleness_steps == pytest.approx((1000 * 125 + 4000 * 500) / 5000)
    asynchronous = changed(steps=5000, passages=100, refresh_schedule="0-1000:250,1000-:1000")
    build = asynchronous.refresh_seconds / asynchronous.step_seconds
    assert asynchronous.longest_staleness_steps == pytest.approx(build + 1000)
    assert asynchronous.refreshes == 4 - 1 + 4, "each is served a build later: the fourth in the second part"


def test_a_run_too_short_for_a_build_is_never_refreshed():
    assert changed(steps=3, passages=10_000_000).refreshes == 0


def test_a_step_grows_with_batch_candidates_and_lengths():
    base = changed().step_seconds
    assert changed(batch_size=16).step_seconds == pytest.approx(2 * base)
    # Two operations forward and four back, for each weight and token, and attention.
    embedded = PLAN.shape.forward_operations(PLAN.passage_tokens)
    shared = changed(batch_size=16, distinct_candidates=100)
    assert shared.step_seconds == pytest.approx(2 * base - 3 * (16 * 7 - 100) * embedded / 1e12)
    assert "100 passages are embedded; no padding" in "\n".join(shared.assumed)
    assert "56 passages are embedded, as if no two queries shared one" in "\n".join(changed().assumed)
    assert changed(candidate_tokens=150.0).step_seconds == changed(passage_tokens=150.0).step_seconds
    assert changed(candidate_tokens=150.0).embed_seconds == changed().embed_seconds
    for change in ({"candidates": 9}, {"passage_tokens": 210.0}, {"query_tokens": 41.0}, {"masked_tokens": 4.0}):
        assert changed(**change).step_seconds > base


def test_an_encoder_at_rest_only_reads_forward_and_needs_no_moments():
    joint = PLAN.shape.forward_operations(PLAN.query_tokens + PLAN.passage_tokens)
    alone = PLAN.shape.forward_operations(PLAN.query_tokens)
    read = 8 * (7 * joint + alone + 8 * PLAN.shape.head_operations(PLAN.masked_tokens))
    rest = changed(freeze_encoder=True)
    assert changed().step_seconds - rest.step_seconds == pytest.approx(2 * read / 1e12)
    assert changed().device_bytes - rest.device_bytes == 12 * PLAN.shape.parameters
    assert "the encoder is at rest" in "\n".join(rest.assumed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passages": 0}, "passages is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"builders": -1}, "builders is -1"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        (
            {"distinct_candidates": 57},
            "distinct_candidates is 57, but 8 queries of 8 candidates.* at most 56 passages",
        ),
        ({"encode_dtype": "int8"}, "encode_dtype is 'int8'. Choose float32 or bfloat16"),
        ({"index_cores": 0}, "index_cores is 0"),
        ({"refresh_schedule": "0-10:5"}, "refresh_schedule is '0-10:5': it ends at step 10"),
        ({"rates": dataclasses.replace(RATES, encode_tflops=0.0)}, "encode_tflops is 0.0"),
    ],
)
def test_a_plan_that_no_run_can_have_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        changed(**change)


def test_the_packaged_rates_say_where_they_come_from():
    for name, rates in packaged_rates().items():
        assert rates.source, name
        Plan(passages=1, steps=1, shape=MODELS["tiny"], rates=rates)


def test_the_command_prints_what_it_assumed(capsys):
    assert main(["estimate", "--passages", "13353718", "--steps", "200000", "--train_tflops", "40"]) == 0
    told = capsys.readouterr().out
    assert "IVF16384,SQfp16" in told
    assert "40 TFLOP/s training" in told
    assert "train_tflops as given" in told
    for word in ("refresh", "staleness", "total", "memory", "disk"):
        assert f"\n{word} " in told


def test_the_command_takes_a_precision_with_a_rate_of_its_own(capsys):
    words = ["estimate", "--passages", "100000", "--steps", "10", "--json", "--encode_tflops", "7"]
    found = []
    for dtype in ("float32", "bfloat16"):
        assert main([*words, "--encode_dtype", dtype]) == 0
        found.append(json.loads(capsys.readouterr().out)["embed_seconds"])
    assert found[0] == found[1]


def test_the_command_tells_of_bm25_where_there_is_one(capsys):
    words = ["estimate", "--passages", "13353718", "--steps", "200000"]
    assert main(words) == 0 and "BM25" not in capsys.readouterr().out
    assert main([*words, "--bm25"]) == 0
    assert "\nBM25         8.6 GiB mapped a host; built once, in 59.9 GiB\n" in capsys.readouterr().out


def test_the_command_as_json_and_with_the_model_of_a_folder(tmp_path, capsys):
    config = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024, "vocab_size": 30_522}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "realm"}))
    asked = ["estimate", "--passages", "20000", "--steps", "1000", "--json", "--model"]
    assert main([*asked, str(tmp_path)]) == 0
    of_folder = json.loads(capsys.readouterr().out)
    assert main([*asked, "mini"]) == 0
    assert json.loads(capsys.readouterr().out) == of_folder
    assert of_folder["refresh_seconds"] == pytest.approx(
        of_folder["embed_seconds"] + of_folder["index_seconds"] + of_folder["write_seconds"]
    )


@pytest.mark.parametrize("folder", ["", "{}"])
def test_a_model_that_is_none_is_told(folder, tmp_path, capsys):
    if folder:
        (tmp_path / "config.json").write_text(folder)
    assert main(["estimate", "--passages", "9", "--steps", "9", "--model", str(tmp_path)]) == 4
    assert str(tmp_path) in capsys.readouterr().err


def test_the_command_takes_a_schedule(capsys):
    words = ["estimate", "--passages", "1000", "--steps", "5000", "--builders", "0", "--refresh_schedule"]
    assert main([*words, "0-1000:250,1000-:1000"]) == 0
    told = capsys.readouterr().out
    assert "with 7 refreshes" in told
    assert "a snapshot by the schedule 0-1000:250,1000-:1000" in told


@pytest.mark.parametrize("family", ["bert", *FAMILIES])
def test_what_is_counted_of_an_encoder_is_what_it_computes(family):
    """Against the operations that torch counts while a masked language model runs, and the weights that it has."""
    config = BertConfig(**SIZES) if family == "bert" else tiny_configuration(family, 200)
    config._attn_implementation = "eager"
    shape, length = shape_of_encoder(config), 24
    model = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(torch.full((1, length), 9))
    # DeBERTa's products with relative positions and its convolution are not counted.
    counts = shape.forward_operations(length) + shape.head_operations(length)
    total = counted.get_total_flops()
    assert counts < total < 1.5 * counts if family == "deberta-v2" else counts == pytest.approx(total, rel=0.01)
    assert shape.parameters == sum(weight.numel() for weight in model.base_model.parameters())


def test_the_command_knows_other_encoders(tmp_path, capsys):
    roberta, distilbert = tiny_configuration("roberta", 300), tiny_configuration("distilbert", 300)
    roberta.save_pretrained(tmp_path / "roberta")
    RealmConfig(embedder_config=roberta, encoder_config=roberta).save_pretrained(tmp_path / "realm")
    RealmConfig(embedder_config=roberta, encoder_config=distilbert).save_pretrained(tmp_path / "two")
    found = []
    for folder in ("roberta", "realm", "two"):
        words = ["estimate", "--passages", "2000", "--steps", "10", "--json", "--model", str(tmp_path / folder)]
        assert main(words) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    weights = [shape_of_encoder(config).parameters for config in (roberta, distilbert)]
    assert found[0]["device_bytes"] == 16 * 2 * weights[0]
    assert found[2]["device_bytes"] == 16 * sum(weights)
    assert found[2]["embed_seconds"] == found[0]["embed_seconds"]
    assert any("the second tower, which reads: 2 layers of 32" in line for line in found[2]["assumed"])


def test_a_decoder_is_not_estimated(tmp_path, capsys):
    GPT2Config().save_pretrained(tmp_path)
    assert main(["estimate", "--passages", "9", "--steps", "9", "--model", str(tmp_path)]) == 4
    assert "a decoder" in capsys.readouterr().err
