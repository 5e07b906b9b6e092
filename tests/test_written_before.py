"""Runs, checkpoints, retrievers and publications that were written before the modules moved open and go on as before.

`tests/fixtures/written_before_the_move` says what they are. They lie at another place than where they were written.
"""

import json
import shutil
import tarfile
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from hub_client import HubClient
from hub_repos import Commit, Repository
from hub_server import HubServer
from transformers import pipeline

from realm_hf import (
    QuestionAnswerer,
    RealmEmbedder,
    RealmForOpenQA,
    RealmForPreTraining,
    RealmRetriever,
    RealmTokenizer,
    write_report,
)
from realm_hf.data import OpenQAExample, PassageStore, SentenceStore, build_sentences, tagger_from_name
from realm_hf.training import (
    InverseClozeTrainer,
    InverseClozeTrainingArguments,
    OpenQATrainer,
    OpenQATrainingArguments,
    RealmTrainer,
    RealmTrainingArguments,
    TrainingLoop,
    list_checkpoints,
)

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests" / "fixtures" / "written_before_the_move"
EXPECTED = json.loads((KEPT / "expected.json").read_text(encoding="utf-8"))
QUERIES = EXPECTED["queries"]
RUNS = ("inverse_cloze", "pretraining", "finetuning")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Unpacked; only read by the tests."""
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(KEPT / "artefacts.tar.xz") as archive:
        # The filter came with Python 3.11.4; Debian 12 has 3.11.2.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / "artefacts"


@pytest.fixture
def moved(kept, tmp_path) -> Path:
    """A copy at yet another place, to train on."""
    return Path(shutil.copytree(kept, tmp_path / "moved"))


def same_results(found, expected) -> bool:
    for one, before in zip(found, expected, strict=True):
        assert list(one["rows"]) == before["rows"]
        assert one["titles"] == before["titles"]
        np.testing.assert_allclose(one["scores"], before["scores"], rtol=1e-5, atol=1e-5)
    return True


def same_answers(found, expected) -> bool:
    for one, before in zip(found, expected, strict=True):
        assert one.keys() >= before.keys()
        exact = ("question", "text", "row", "title", "start_char", "end_char", "best_string")
        assert {name: one[name] for name in exact} == {name: before[name] for name in exact}
        assert [passage["row"] for passage in one["evidence"]] == [passage["row"] for passage in before["evidence"]]
        assert one["score"] == pytest.approx(before["score"], rel=1e-5, abs=1e-5)
        assert one["probability"] == pytest.approx(before["probability"], abs=1e-5)
    return True


def searched(place: Path, **arguments) -> list[dict]:
    found = RealmRetriever.from_pretrained(place, **arguments).search(QUERIES, k=4)
    return [{"rows": one.rows.tolist(), "titles": one.titles, "scores": one.scores} for one in found]


def command(*arguments: str) -> int:
    """`realm-hf ...`, wherever the function is that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return EntryPoint("realm-hf", project["scripts"]["realm-hf"], "console_scripts").load()(arguments)


# Data


def test_passage_and_sentence_stores_open_with_their_fingerprints_and_every_hash(kept):
    passages = PassageStore.load(kept / "data" / "passages", verify=True)
    sentences = SentenceStore.load(kept / "data" / "sentences", verify=True)

    documents = json.loads((kept / "data" / "documents.json").read_text())
    assert passages.fingerprint == EXPECTED["passages"]
    assert [passages.text(row) for row in range(len(passages))] == documents["text"]
    assert sentences.fingerprint == EXPECTED["sentences"]
    assert (len(sentences.train), len(sentences.heldout)) == (66, 15)


def test_split_and_tagged_sentences_are_found_in_the_cache_and_make_the_same_store(moved, tmp_path):
    if Hasher.hash(("a", 0.5)) != "e195e8864439d6c4":
        pytest.skip(
            "this version of `datasets` hashes plain values otherwise: its caches of then are lost to everybody"
        )
    cache = moved / "data" / "cache"
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    rows = json.loads((moved / "data" / "documents.json").read_text())

    sentences = build_sentences(
        Dataset(pa.table(rows), fingerprint="written-before-the-move"),
        RealmTokenizer.from_pretrained(moved / "data" / "tokenizer"),
        tagger_from_name("rules"),
        tmp_path / "sentences",
        max_query_length=24,
        heldout_fraction=0.2,
        cache_dir=cache,
    )

    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert sentences.fingerprint == EXPECTED["sentences"]
    assert sentences.info["tagger_fingerprint"] == EXPECTED["tagger"]


# Retrievers


@pytest.mark.parametrize("place", EXPECTED["search"])
def test_a_run_its_model_its_generations_and_saved_retrievers_find_the_same_passages(kept, place):
    assert same_results(searched(kept / place, verify="sha256"), EXPECTED["search"][place])


# Models


@pytest.mark.parametrize("place", ["pretraining", "pretraining/model"])
def test_a_pretrained_model_gives_the_same_query_vectors(kept, place):
    tokenizer = RealmTokenizer.from_pretrained(kept / place)
    model = RealmForPreTraining.from_pretrained(kept / place)

    vectors = model.query_embedder.encode(QUERIES, tokenizer=tokenizer)

    np.testing.assert_allclose(vectors, EXPECTED["query_vectors"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", ["finetuning", "finetuning/model"])
def test_a_fine_tuned_model_gives_the_same_answers(kept, place):
    model, retriever = RealmForOpenQA.from_pretrained(kept / place), RealmRetriever.from_pretrained(kept / place)

    answers = [answer.to_dict() for answer in QuestionAnswerer(model, retriever)(QUERIES)]

    assert same_answers(answers, EXPECTED["answers"])


def test_the_pipeline_takes_a_fine_tuning_run(kept):
    answers = pipeline("open-domain-qa", model=str(kept / "finetuning"), device="cpu")(QUERIES)

    assert [answer["text"] for answer in answers] == [answer["text"] for answer in EXPECTED["answers"]]


@pytest.mark.parametrize(
    ("loads", "weights", "same_as"),
    [
        (RealmForPreTraining, "inverse_cloze/checkpoints/step-6/model", "inverse_cloze/model"),
        (RealmForPreTraining, "pretraining/checkpoints/step-6/model", "pretraining/model"),
        (RealmForOpenQA, "finetuning/best/step-6", "finetuning/model"),
        (RealmEmbedder, "retriever/embedder", "pretraining/model/embedder"),
    ],
)
def test_checkpoints_best_weights_and_towers_load_with_every_weight(kept, loads, weights, same_as):
    model, facts = loads.from_pretrained(kept / weights, output_loading_info=True)
    other = dict(loads.from_pretrained(kept / same_as).named_parameters())

    assert not (facts["missing_keys"] or facts["unexpected_keys"] or facts["mismatched_keys"])
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.named_parameters())


# Trainings that go on


def trainer_of(name: str, root: Path, **overrides) -> TrainingLoop:
    """As `make.py` made it, from the artefacts at `root`."""
    settings = {
        "output_dir": str(root / name),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "save_steps": 3,
        "save_total_limit": None,
        "use_cpu": True,
        "disable_tqdm": True,
        **overrides,
    }
    passages = PassageStore.load(root / "data" / "passages")
    tokenizer = RealmTokenizer.from_pretrained(root / "data" / "tokenizer")
    if name == "inverse_cloze":
        args = InverseClozeTrainingArguments(keep_probability=0.5, max_query_length=24, **settings)
        model = RealmForPreTraining(RealmForPreTraining.from_pretrained(root / "inverse_cloze" / "model").config)
        return InverseClozeTrainer(model, args, train_dataset=passages, processing_class=tokenizer)
    if name == "pretraining":
        sentences = SentenceStore.load(root / "data" / "sentences")
        lengths = {"max_query_length": 24, "max_candidate_length": 48}
        index = {"num_candidates": 4, "refresh": "sync", "refresh_steps": 2, "probe_queries": 4, "eval_steps": 3}
        args = RealmTrainingArguments(**lengths, **index, **settings)
        model = RealmForPreTraining.from_pretrained(root / "inverse_cloze" / "model")
        return RealmTrainer(
            model,
            args,
            train_dataset=sentences.train,
            eval_dataset=sentences.heldout,
            processing_class=tokenizer,
            passages=passages,
        )
    beams = {"searcher_beam_size": 12, "reader_beam_size": 3, "reader_seq_len": 64}
    args = OpenQATrainingArguments(**beams, probe_queries=0, eval_steps=2, **settings)
    model = RealmForOpenQA.from_pretraining(RealmForPreTraining.from_pretrained(root / "pretraining"))
    asked = questions(root)
    return OpenQATrainer(
        model,
        args,
        train_dataset=asked,
        eval_dataset=asked[:6],
        processing_class=tokenizer,
        passages=passages,
        index_from=root / "pretraining",
    )


def questions(root: Path) -> list[OpenQAExample]:
    documents = json.loads((root / "data" / "documents.json").read_text())
    goods = [text.split(". ")[1].split()[0].lower() for text in documents["text"]]
    return [
        OpenQAExample(f"What does {title} sell?", (good,), id=title)
        for title, good in zip(documents["title"], goods, strict=True)
    ]


def steps_logged(run: Path) -> dict[int, dict]:
    """The last record of each step."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record for record in records if "loss" in record}


@pytest.mark.parametrize("name", RUNS)
def test_a_training_resumes_in_the_middle_and_takes_the_same_steps_as_then(moved, name):
    run = moved / name

    result = trainer_of(name, moved).train(resume_from_checkpoint=run / "checkpoints" / "step-3")

    assert result.step == 6
    found = steps_logged(run)
    for before in EXPECTED["logged"][name]:
        after = found[before["step"]]
        # A generation that is built again has another hash behind the step of its snapshot.
        assert after.get("generation", "").split("-")[:2] == before.get("generation", "").split("-")[:2]
        figures = before.keys() - {"generation"}
        assert [after[name] for name in figures] == pytest.approx([before[name] for name in figures], rel=1e-4)
    checkpoints = list_checkpoints(run / "checkpoints")
    assert [checkpoint.step for checkpoint in checkpoints] == [3, 6]
    assert checkpoints[1].term > json.loads((run / "checkpoints" / "step-3" / "state.json").read_text())["term"]


@pytest.mark.parametrize("name", RUNS)
def test_a_training_goes_on_beyond_its_end_from_its_newest_checkpoint(moved, name):
    run = moved / name

    result = trainer_of(name, moved, max_steps=8).train(resume_from_checkpoint=True)

    assert result.step == 8
    assert list_checkpoints(run / "checkpoints")[-1].step == 8
    assert np.isfinite([steps_logged(run)[step]["loss"] for step in (7, 8)]).all()


# The command line and the report


@pytest.mark.parametrize("name", ["pretraining", "finetuning"])
def test_inspect_and_verify_accept_a_run(kept, name, capsys):
    assert command("inspect", str(kept / name)) == 0
    assert "step-6" in capsys.readouterr().out
    assert command("verify", str(kept / name)) == 0
    assert "WRONG" not in capsys.readouterr().out


def test_the_report_of_a_run_is_made_from_its_log(kept, tmp_path):
    page = Path(write_report(kept / "pretraining", tmp_path / "report.html")).read_text()

    assert "Loss" in page and "step-6" in page


# Publications


def test_the_folder_of_a_published_retriever_finds_the_same_passages(kept, tmp_path):
    found = searched(kept / "published" / "dataset", cache_dir=tmp_path)

    assert same_results(found, EXPECTED["publication"]["search"])


@pytest.fixture(scope="module")
def client(kept, tmp_path_factory):
    """A client of a Hub that has both repositories, the passages' at the commit that the model names."""
    published, folder = EXPECTED["publication"], tmp_path_factory.mktemp("hub")
    with HubServer(folder) as hub:
        for kind, name, oid in (
            ("model", published["repo_id"], published["commit"]),
            ("dataset", published["dataset_repo_id"], published["dataset_commit"]),
        ):
            repository = Repository(kind, name, False, folder / f"repository-of-{kind}")
            files = repository.add_folder(kept / "published" / kind).files
            repository.commits[oid] = Commit(oid, None, "Publish", "2026-01-01T00:00:00.000Z", files)
            repository.branches["main"] = oid
            hub.repositories[kind, name] = repository
        with HubClient(hub.url, tmp_path_factory.mktemp("home"), "hub_calls", KEPT) as client:
            yield client


@pytest.mark.multiprocess
def test_a_published_model_answers_by_its_name(client):
    published = EXPECTED["publication"]

    assert same_answers(client.call("answer", name=published["repo_id"], questions=QUERIES), published["answers"])


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["repo_id", "dataset_repo_id"])
def test_a_published_retriever_is_searched_by_the_names_of_model_and_passages(client, name):
    found = client.call("search", name=EXPECTED["publication"][name], queries=QUERIES)

    assert same_results(found, EXPECTED["publication"]["search"])
