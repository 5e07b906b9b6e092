"""Cards are made from records: what was not recorded is not said, and the metadata is what the Hub takes."""

import json

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from published_folder import SHARD

from realm_hf.hub.cards import CardFacts, dataset_card, model_card, retriever_card
from realm_hf.hub.manifest import HubManifest
from realm_hf.knowledge.saved_source import checked_settings
from realm_hf.models.places import DESCRIPTION
from realm_hf.runs.records import RunRecord, read_run


@pytest.fixture
def manifest(honest) -> HubManifest:
    return HubManifest.from_dict(json.loads((honest / DESCRIPTION).read_text()), "here")


@pytest.fixture
def card(manifest):
    from tiny_worlds import tiny_model

    def card(facts=None, run=None, **arguments) -> ModelCard:
        arguments = {"retriever_place": "there", "recall_against_exact": None, "is_one_repository": False, **arguments}
        return model_card("me/realm", tiny_model(), manifest, facts or CardFacts(), run, **arguments)

    return card


def test_nothing_is_said_that_was_not_recorded(card):
    text = card().text

    assert "No run was recorded." in text
    assert "None were recorded." in text
    assert "staleness" not in text
    assert "recall" not in text


def test_what_the_run_recorded_is_said(card, manifest, tmp_path):
    summary = {
        "steps": 170,
        "final_generation": "step-150-00000000",
        "generations": [{"name": manifest.generation_name, "snapshot_step": 150, "staleness_steps": 12}],
        "evaluation": {"eval_loss": 3.25, "eval_note": "words"},
        "recall": {"ict": {"1": 75.5, "20": 100.0}, "realm": {"1": 86.9, "5": 93.5}},
        "seconds": {"total": 387.7},
        "arguments": {"warmup_steps": 1000, "refresh": "async", "refresh_steps": 500},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "run.json").write_text(json.dumps({"packages": {"torch": "2.13.0"}}))
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 3.0, "lr": 0.0005}\n{"step": 2, "loss": 2.0, "lr": 0.0001}\n{"st'
    )

    text = card(run=read_run(tmp_path), recall_against_exact=0.984).text

    assert "| optimizer steps | 170 |" in text
    assert "| largest learning rate | 0.0005 |" in text
    assert "| warm-up steps | 1,000 |" in text
    assert "| index refresh | async, every 500 steps |" in text
    assert "| torch | 2.13.0 |" in text
    assert "| loss | 3.25 |" in text
    assert "words" not in text.split("## Results")[1].split("## Limits")[0]
    assert "| stage | recall@1 | recall@5 | recall@20 |" in text
    assert "| after ICT | 75.5 |  | 100.0 |" in text
    assert "98.4 %" in text


def test_retrieval_is_said_before_and_after_training_and_once(card, tmp_path):
    at = {step: {"step": step, "eval_recall_at_1": step / 1000, "eval_ndcg_at_10": 0.5} for step in (0, 400, 812)}
    run = RunRecord(
        tmp_path, evaluations=list(at.values()), summary={"evaluation": {"eval_recall_at_1": 0.812, "eval_loss": 2.5}}
    )
    text = card(run=run).text
    assert "| step | recall@1 | nDCG@10 |\n|---|---|---|\n| 0 | 0.0 | 50.0 |\n| 812 | 81.2 | 50.0 |" in text
    assert "| loss | 2.5 |" in text and "recall at 1" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"refresh": "off", "refresh_steps": 500}, "| index refresh | off |"),
        ({"refresh": "sync", "refresh_schedule": "0-9:2,9-:5"}, "| index refresh | sync, 0-9:2,9-:5 |"),
    ],
)
def test_a_card_says_when_the_index_was_refreshed(card, tmp_path, arguments, said):
    assert said in card(run=RunRecord(tmp_path, summary={"arguments": arguments})).text


def test_staleness_is_counted_from_the_generation_that_is_published(card, manifest, tmp_path):
    from dataclasses import replace

    from tiny_worlds import tiny_model

    served = [{"name": "step-150-0123abcd", "snapshot_step": 150}]
    text = model_card(
        "me/realm",
        tiny_model(),
        replace(manifest, generation_name="step-150-0123abcd"),
        CardFacts(),
        RunRecord(tmp_path, summary={"steps": 170, "generations": served}),
        retriever_place="there",
        recall_against_exact=None,
        is_one_repository=False,
    ).text

    assert "built from the weights of step 150, 20 steps behind" in text


def test_staleness_is_said_only_where_the_passage_tower_was_trained(manifest, tmp_path):
    from dataclasses import replace

    from tiny_worlds import tiny_model

    summary = {"steps": 10, "generations": [{"name": "g", "snapshot_step": 0}]}
    fine_tuned = {"trained_questions": {"questions": 4}}
    for facts, said in (
        ({"arguments": {"refresh": "off"}}, True),  # pre-training moves the tower, refreshed or not
        ({"arguments": {"refresh": "off"}, **fine_tuned}, False),
        ({"arguments": {"refresh": "sync"}, **fine_tuned}, True),
    ):
        text = model_card(
            "me/realm",
            tiny_model(),
            replace(manifest, generation_name="g"),
            CardFacts(),
            RunRecord(tmp_path, summary={**summary, **facts}),
            retriever_place="there",
            recall_against_exact=None,
            is_one_repository=False,
        ).text
        assert ("staleness" in text) is said


def test_base_model_batch_and_hardware_come_from_the_record(card, tmp_path):
    summary = {"base_model": "a/bert", "examples_per_step": 512, "hardware": {"processes": 8, "device": "NVIDIA H200"}}
    found = card(run=RunRecord(tmp_path, summary=summary))
    assert found.data.base_model == "a/bert"
    for row in ("started from | a/bert", "batch size, over all processes | 512", "device | NVIDIA H200"):
        assert f"| {row} |" in found.text
    at_home = RunRecord(tmp_path, summary={"started_from": "/home/me/weights/minilm"})
    assert "| started from | minilm (a folder) |" in card(run=at_home).text and "/home" not in card(run=at_home).text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, "the index"),
        ({"kind": "bm25"}, "BM25"),
        ({"kind": "mixed", "parts": ["bm25", "dense"], "counts": [2, 3]}, "BM25 and the index in turn, 2 to 3"),
        (
            {"kind": "fused", "parts": ["bm25", "dense"], "constant": 60, "depth": 100},
            "BM25 and the index, fused by reciprocal ranks (constant 60)",
        ),
        (
            {"kind": "weighted", "weight": 0.25, "depth": 100},
            "the index and BM25, by inner product + 0.25 x BM25's score",
        ),
    ],
)
def test_every_card_says_what_finds_the_candidates(manifest, settings, said):
    from dataclasses import replace

    from tiny_worlds import tiny_model

    described = replace(manifest, candidate_source=None if settings is None else checked_settings(settings))
    model = model_card(
        "me/realm",
        tiny_model(),
        described,
        CardFacts(),
        None,
        retriever_place="there",
        recall_against_exact=None,
        is_one_repository=False,
    ).text
    assert f"| candidates are found by | {said} |" in model
    alone = retriever_card("me/passages", described, None)
    for text in (dataset_card("me/passages", "me/realm", described, CardFacts()).text, alone):
        assert f"Candidates are found by {said}." in " ".join(text.split())


def test_recall_that_was_written_as_shares_is_said_in_percent(card, tmp_path):
    text = card(run=RunRecord(tmp_path, summary={"recall": {"ict": {"1": 0.5, "5": 1.0}}})).text

    assert "| after ICT | 50.0 | 100.0 |" in text


def test_results_become_a_model_index(card):
    result = EvalResult(
        "question-answering", "nq_open", "Natural Questions", "exact_match", 40.4, dataset_split="test"
    )

    found = card(CardFacts(results=[result], license="mit", base_model="bert-base-uncased", datasets=["nq_open"]))

    assert found.data.eval_results == [result]
    assert ModelCardData(**found.data.to_dict()).to_dict()["model-index"][0]["name"] == "realm"
    assert found.data.metrics == ["exact_match"]
    assert "| Natural Questions | test | exact_match | 40.4 |" in found.text


def test_a_cell_cannot_break_the_table(card):
    text = card(CardFacts(training={"note": "a | b\nc"})).text

    assert "| note | a \\| b c |" in text


def test_the_viewer_is_told_where_the_rows_are(manifest):
    card = dataset_card("me/passages", "me/realm", manifest, CardFacts(dataset_license="cc0-1.0"))

    assert card.data.to_dict()["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert card.data.to_dict()["size_categories"] == "n<1K"
    assert SHARD.startswith("data/train-")
    assert 'load_dataset("me/passages")' in card.text


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="output_dir"):
        read_run(tmp_path)
