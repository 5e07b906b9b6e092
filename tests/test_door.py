"""One door: a run, its model folder, a saved retriever or a repository; else words that say what was given."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from question_worlds import qa_trainer, questions
from tiny_worlds import bag_of_words_start, load_world, tiny_model, tiny_tokenizer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, TrainerCallback, pipeline

from realm_hf import RealmEmbedder, RealmForOpenQA, RealmForPreTraining, RealmRetriever, RealmTokenizer
from realm_hf.generations.embedding import embed_passages
from realm_hf.generations.manifest import newest_generation
from realm_hf.generations.store import GenerationStore
from realm_hf.models.places import what_is
from realm_hf.models.tower_files import same_tower
from realm_hf.retriever.text_search import SearchResult
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.pretraining import RealmTrainer
from realm_hf.untrusted.checks import HubArtefactError

QUERY = "[MASK] is what the coast sells."


def pretrainer(world: Path, run: Path, model=None, **overrides) -> RealmTrainer:
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "num_candidates": 3,
        "max_query_length": 24,
        "max_candidate_length": 32,
        "learning_rate": 3e-3,
        "refresh": "sync",
        "refresh_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = RealmTrainingArguments(output_dir=str(run), **{**settings, **overrides})
    passages, sentences = load_world(world)
    return RealmTrainer(
        model or bag_of_words_start(tiny_model()),
        args,
        train_dataset=sentences.train,
        processing_class=tiny_tokenizer(),
        passages=passages,
    )


@pytest.fixture(scope="module")
def pretraining(world, tmp_path_factory):
    """A finished run of pre-training, and its model."""
    run = tmp_path_factory.mktemp("pretraining") / "run"
    trainer = pretrainer(world, run)
    trainer.train()
    return run, trainer.model.eval()


@pytest.fixture(scope="module")
def fine_tuning(world, tmp_path_factory):
    """A finished run of fine-tuning, and its model."""
    run = tmp_path_factory.mktemp("fine_tuning") / "run"
    trainer = qa_trainer(world, run)
    trainer.train()
    return run, trainer.model.eval()


class CopiedAt(TrainerCallback):
    """Copies the run directory after a step: what a process elsewhere would find at that moment."""

    def __init__(self, step: int, target: Path):
        self.step, self.target = step, target

    def on_step_end(self, args, state, control, trainer, record, **kwargs):
        if record["step"] == self.step:
            shutil.copytree(trainer.directory, self.target)


@pytest.fixture(scope="module")
def unfinished(world, tmp_path_factory):
    """Runs of pre-training and of fine-tuning as they are after two of four steps."""
    folder = tmp_path_factory.mktemp("unfinished")
    for name, trainer in (
        ("pretraining", pretrainer(world, folder / "one")),
        ("fine_tuning", qa_trainer(world, folder / "two")),
    ):
        trainer.callbacks.append(CopiedAt(2, folder / name))
        trainer.train()
    return folder


def by_hand(model, retriever: RealmRetriever, queries: list[str], k: int):
    """The search that `RealmRetriever.search` stands for."""
    tower = getattr(model, "query_embedder", None) or model.embedder
    inputs = retriever.tokenizer(queries, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = tower(inputs["input_ids"], inputs["attention_mask"]).projected_score
    return retriever.retrieve(vectors, k, null_passage=False)


def same_search(results: list[SearchResult], expected) -> bool:
    for number, result in enumerate(results):
        assert result.rows.tolist() == expected.rows[number].tolist()
        np.testing.assert_allclose(result.scores, expected.scores[number], atol=1e-4)
    return True


# Runs


@pytest.mark.parametrize("place", ["", "model"])
def test_a_finished_pretraining_run_and_its_model_folder_give_the_retriever_of_the_final_weights(pretraining, place):
    run, model = pretraining
    retriever = RealmRetriever.from_pretrained(run / place)

    assert retriever.generation_name == json.loads((run / "summary.json").read_text())["final_generation"]
    found = retriever.search([QUERY, "the river"], k=3)
    assert same_search(found, by_hand(model, retriever, [QUERY, "the river"], 3))
    assert same_tower(retriever.embedder, model.embedder)


def test_pretraining_leaves_its_retriever_by_hard_links_to_generation_and_passages(pretraining):
    run, _ = pretraining
    name = RealmRetriever.from_pretrained(run).generation_name

    for ours, theirs in (
        ("embeddings.npy", f"index/{name}/embeddings.npy"),
        ("index.faiss", f"index/{name}/index.faiss"),
        ("passages/body_tokens.bin", "passages/body_tokens.bin"),
    ):
        assert (run / "model" / ours).samefile(run / theirs)
    assert RealmRetriever.from_pretrained(run, verify="sha256").generation_name == name


def test_where_links_are_impossible_the_retriever_is_copied(world, tmp_path, monkeypatch):
    link = os.link

    def refuse(source, target) -> None:
        if ".tmp-model-" in str(target):  # locks and run.json are taken by links
            raise OSError("no hard links here")
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)
    pretrainer(world, tmp_path, max_steps=1).train()

    assert (tmp_path / "model" / "index.faiss").stat().st_nlink == 1
    assert len(RealmRetriever.from_pretrained(tmp_path, verify="sha256").search(QUERY)) == 5


@pytest.mark.parametrize("place", ["", "model"])
def test_a_fine_tuning_run_and_its_model_folder_search_by_the_fine_tuned_query_tower(fine_tuning, place):
    run, model = fine_tuning
    retriever = RealmRetriever.from_pretrained(run / place)

    assert not same_tower(retriever.embedder, model.embedder)
    assert same_tower(retriever.query_embedder, model.embedder)
    assert same_search(retriever.search(["what is sold?"], k=4), by_hand(model, retriever, ["what is sold?"], 4))


@pytest.mark.parametrize("place", ["", "model"])
def test_models_come_from_a_run_as_from_its_model_folder(pretraining, fine_tuning, place):
    for loads, (run, model) in ((RealmForPreTraining, pretraining), (RealmForOpenQA, fine_tuning)):
        loaded = dict(loads.from_pretrained(run / place).named_parameters())
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.named_parameters())


@pytest.mark.parametrize("loads", [RealmTokenizer, AutoTokenizer])
def test_the_tokenizer_comes_from_a_run_finished_or_not(pretraining, unfinished, tokenizer, loads):
    for place in (pretraining[0], pretraining[0] / "model", unfinished / "fine_tuning"):
        found = loads.from_pretrained(place)
        assert isinstance(found, RealmTokenizer) and found(QUERY)["input_ids"] == tokenizer(QUERY)["input_ids"]


def test_pipeline_and_auto_class_take_a_fine_tuning_run(fine_tuning):
    run, _ = fine_tuning
    asked = ["what does the coast sell?", "who buys rice?"]

    found = [answer["text"] for answer in pipeline("open-domain-qa", model=str(run), device="cpu")(asked)]

    folder = run / "model"
    assert found == [answer["text"] for answer in pipeline("open-domain-qa", model=str(folder), device="cpu")(asked)]
    assert isinstance(AutoModelForQuestionAnswering.from_pretrained(run), RealmForOpenQA)


def test_an_unfinished_pretraining_run_is_searched_in_its_newest_generation_by_that_snapshots_tower(unfinished):
    run = unfinished / "pretraining"
    newest = newest_generation(GenerationStore(run / "index").list())
    retriever = RealmRetriever.from_pretrained(run)

    assert newest.snapshot_step == 2 and retriever.generation_name == newest.name
    row = 7
    stored = embed_passages(retriever.embedder, retriever.passages, rows=np.array([row]))
    np.testing.assert_allclose(stored, retriever.embeddings[row : row + 1], atol=1e-5)
    assert same_tower(retriever.query_embedder, retriever.embedder)
    assert same_search([retriever.search(QUERY)], by_hand(_Model(retriever.embedder), retriever, [QUERY], 5))


def test_an_unfinished_fine_tuning_run_has_passages_to_search_but_no_query_tower_and_says_so(unfinished):
    retriever = RealmRetriever.from_pretrained(unfinished / "fine_tuning")

    assert len(retriever.retrieve(retriever.embeddings[:1], k=3, null_passage=False).rows[0]) == 3
    with pytest.raises(ValueError, match=r"retriever\.query_embedder"):
        retriever.search("a question")


def test_a_run_of_two_towers_searches_by_its_query_tower(world, tmp_path):
    model = bag_of_words_start(tiny_model(share_embedders=False))
    model.query_embedder.load_state_dict(model.embedder.state_dict())
    pretrainer(world, tmp_path, model, query_encoder="live").train()

    retriever = RealmRetriever.from_pretrained(tmp_path)

    assert same_tower(retriever.query_embedder, model.query_embedder)
    assert not same_tower(retriever.query_embedder, retriever.embedder)


def test_a_run_that_left_a_model_but_no_retriever_is_searched_in_its_newest_generation(pretraining, tmp_path):
    run, model = pretraining
    older = Path(shutil.copytree(run, tmp_path / "older"))
    (older / "model" / "retriever.json").unlink()

    for place in (older, older / "model"):
        retriever = RealmRetriever.from_pretrained(place)
        assert same_search(retriever.search([QUERY]), by_hand(model, retriever, [QUERY], 5))


# What is refused, in words


@pytest.mark.parametrize("place", ["", "model"])
def test_a_pretraining_run_is_refused_as_a_model_that_answers(pretraining, place):
    run, _ = pretraining
    with pytest.raises(ValueError, match=r"pre-trained model.*cannot answer yet.*realm-hf finetune"):
        RealmForOpenQA.from_pretrained(run / place)
    with pytest.raises(ValueError, match=r"cannot answer yet"):
        pipeline("open-domain-qa", model=str(run / place), device="cpu")


def test_a_fine_tuning_run_is_refused_as_a_pretrained_model(fine_tuning):
    with pytest.raises(ValueError, match=r"fine-tuned model.*RealmForOpenQA\.from_pretrained"):
        RealmForPreTraining.from_pretrained(fine_tuning[0])


def test_an_unfinished_run_is_refused_as_a_model_with_its_kind(unfinished):
    with pytest.raises(FileNotFoundError, match="a run of pre-training that has left no model yet"):
        RealmForPreTraining.from_pretrained(unfinished / "pretraining")
    with pytest.raises(ValueError, match="a run of fine-tuning that has left no model yet"):
        pipeline("open-domain-qa", model=str(unfinished / "fine_tuning"), device="cpu")


def test_a_fine_tuning_run_without_its_retriever_is_refused_with_the_option(world, tmp_path):
    qa_trainer(world, tmp_path, max_steps=1, save_retriever=False).train()
    for place in (tmp_path, tmp_path / "model"):
        with pytest.raises(FileNotFoundError, match="save_retriever"):
            RealmRetriever.from_pretrained(place)


def test_a_run_without_any_index_is_refused_as_a_retriever(pretraining, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(pretraining[0] / "run.json", run)
    with pytest.raises(FileNotFoundError, match="a run of training that has left no model yet, and no index either"):
        RealmRetriever.from_pretrained(run)


def test_other_directories_are_called_by_their_name(pretraining, world, tmp_path):
    run, _ = pretraining
    generation = next((run / "index").glob("step-*"))
    assert what_is(world / "passages") == "a passage store"
    assert what_is(generation) == "an index generation of a run"
    assert what_is(next((run / "snapshots").iterdir())) == "a snapshot of a run's passage tower"
    assert what_is(run) == "a run of pre-training"
    assert what_is(run / "model") == "a saved RealmForPreTraining with a saved retriever"
    assert what_is(tmp_path) == "a directory without anything of REALM's in it"
    with pytest.raises(FileNotFoundError, match="is a passage store, without a model"):
        RealmForOpenQA.from_pretrained(world / "passages")
    with pytest.raises(FileNotFoundError, match="it is a passage store"):
        RealmRetriever.from_pretrained(world / "passages")


def test_a_generation_that_a_run_has_kept_is_searched_by_its_own_snapshots_tower(pretraining):
    run, model = pretraining
    infos = GenerationStore(run / "index").list()

    older = RealmRetriever.from_pretrained(run / "index" / infos[0].name)

    assert older.generation_name == infos[0].name != RealmRetriever.from_pretrained(run).generation_name
    assert same_tower(older.query_embedder, older.embedder) and not same_tower(older.embedder, model.embedder)


# Text in, passages out


@pytest.fixture
def retriever(tiny_passages, tokenizer, embedder):
    vectors = embed_passages(embedder, tiny_passages)
    return RealmRetriever(tiny_passages, tokenizer, embeddings=vectors, embedder=embedder, query_embedder=embedder)


def test_one_query_gives_one_result_and_many_give_a_list(retriever):
    one, many = retriever.search("the river", k=4), retriever.search(["the river", "a road"], k=4)

    assert isinstance(one, SearchResult) and one.query == "the river" and len(one) == 4
    assert [result.query for result in many] == ["the river", "a road"]
    assert one.rows.tolist() == many[0].rows.tolist()
    assert one.rows.dtype == np.int64 and one.scores.dtype == np.float32
    assert one.titles == retriever.titles(one.rows) and one.texts == retriever.texts(one.rows)
    assert (np.diff(one.scores) <= 0).all()
    first = next(iter(one))
    assert (first.title, first.text, first.row) == (one.titles[0], one.texts[0], one.rows[0])
    assert retriever.search([]) == []


def test_more_than_there_is_gives_all_there_is(retriever):
    assert sorted(retriever.search("the river", k=1000).rows.tolist()) == list(range(48))


def test_what_was_edited_is_found_with_its_text(retriever):
    text = "The lighthouse stands alone."
    (row,) = retriever.add_passages(text, "Lighthouse")
    retriever.remove_passages(0)

    found = retriever.search("lighthouse alone", k=48)

    assert found.texts[found.rows.tolist().index(row)] == text
    assert 0 not in found.rows


def test_search_without_tower_tokenizer_or_fitting_dimension_says_what_is_missing(retriever, tiny_passages, tokenizer):
    vectors = retriever.embeddings
    with pytest.raises(ValueError, match=r"retriever\.query_embedder"):
        RealmRetriever(tiny_passages, tokenizer, embeddings=vectors).search("the river")
    with pytest.raises(ValueError, match=r"retriever\.tokenizer"):
        RealmRetriever(tiny_passages, embeddings=vectors, query_embedder=retriever.embedder).search("the river")
    other = tiny_model(retriever_proj_size=8).embedder
    with pytest.raises(ValueError, match="8 dimensions, the index has 16"):
        RealmRetriever(tiny_passages, tokenizer, embeddings=vectors, query_embedder=other).search("the river")
    with pytest.raises(TypeError, match="17, a int"):
        retriever.search([17])


def test_a_swap_leaves_no_tower_of_the_earlier_generation(pretraining):
    run, _ = pretraining
    retriever = RealmRetriever.from_pretrained(run)
    store = GenerationStore(run / "index")
    with store.open(store.list()[0].name) as generation:
        retriever.swap(generation)
    assert retriever.embedder is None and retriever.query_embedder is None


def test_the_query_tower_is_saved_once_and_loaded_when_it_is_needed(retriever, tmp_path):
    folder = tmp_path / "shared"
    retriever.save_pretrained(folder)
    assert not (folder / "query_embedder").exists()
    again = RealmRetriever.from_pretrained(folder)
    assert same_search([again.search("the river")], by_hand(_Model(retriever.embedder), retriever, ["the river"], 5))

    own = tiny_model(seed=5, max_position_embeddings=512).embedder
    retriever.query_embedder = own
    retriever.save_pretrained(tmp_path / "two")
    again = RealmRetriever.from_pretrained(tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "embedder")  # nothing was read of it yet
    assert same_tower(again.query_embedder, own)


class _Model:
    def __init__(self, tower):
        self.embedder = tower


def test_a_query_tower_that_is_the_models_beside_is_not_saved_again(fine_tuning, tmp_path):
    run, model = fine_tuning
    asked = pipeline("open-domain-qa", model=str(run), device="cpu")
    asked.save_pretrained(tmp_path)

    assert not (tmp_path / "query_embedder").exists()
    assert same_tower(RealmRetriever.from_pretrained(tmp_path).query_embedder, model.embedder)

    RealmRetriever.from_pretrained(run).save_pretrained(tmp_path / "alone")
    assert (tmp_path / "alone" / "query_embedder").is_dir()
    assert same_tower(RealmRetriever.from_pretrained(tmp_path / "alone").query_embedder, model.embedder)


# Texts through a tower


def test_texts_of_any_order_and_length_get_the_embeddings_of_their_token_ids(embedder, tokenizer):
    texts = ["a road", "the river of the north is long and has many people " * 3, "", "island", "[MASK] lies north"]

    found = embedder.encode(texts, tokenizer=tokenizer, batch_size=2)

    assert found.dtype == np.float32 and found.shape == (5, 16)
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            expected = embedder(**tokenizer(text, return_tensors="pt")).projected_score[0]
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(embedder.encode(text, tokenizer=tokenizer), vector, atol=1e-5)


def test_texts_with_titles_get_the_embeddings_of_stored_passages(embedder, tokenizer, tiny_passages):
    rows = tiny_passages.rows

    found = embedder.encode(rows["text"][:], titles=rows["title"][:], tokenizer=tokenizer)

    np.testing.assert_allclose(found, embed_passages(embedder, tiny_passages), atol=1e-5)
    untitled = embedder.encode(["The road."], titles="", tokenizer=tokenizer)
    assert np.abs(untitled - embedder.encode(["The road."], tokenizer=tokenizer)).max() > 1e-3


def test_a_long_passage_is_cut_as_a_passage_store_cuts_it(embedder, tokenizer):
    from realm_hf.data.passages.in_memory import pack_passages

    text, title = "the river lies in the north and " * 20, "island " * 30
    packed = pack_passages([text], [title], tokenizer, 32)

    found = embedder.encode([text], titles=[title], tokenizer=tokenizer, max_length=32)

    np.testing.assert_allclose(found, embed_passages(embedder, packed), atol=1e-5)


def test_tensors_keep_the_device_and_training_mode_comes_back(embedder, tokenizer, capsys):
    embedder.train()
    found = embedder.encode(["a road", "b"], tokenizer=tokenizer, convert_to_numpy=False, show_progress_bar=True)

    assert embedder.training and isinstance(found, torch.Tensor) and found.device == embedder.device
    assert not found.requires_grad and "2/2" in capsys.readouterr().err
    assert embedder.encode([], tokenizer=tokenizer).shape == (0, 16)


def test_token_ids_are_embedded_as_before_by_position_and_by_name(embedder, tokenizer):
    inputs = tokenizer(["a road", "the long river"], padding=True, return_tensors="pt")
    expected = embedder(**inputs).projected_score

    torch.testing.assert_close(embedder.encode(inputs["input_ids"], inputs["attention_mask"]), expected)
    torch.testing.assert_close(embedder.encode(**inputs), expected)
    assert embedder.encode(**inputs).requires_grad


def test_the_tokenizer_is_that_of_the_towers_directory(embedder, tokenizer, tmp_path):
    expected = embedder.encode("the river", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="there is no tokenizer where this tower came from"):
        embedder.encode("the river")

    embedder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    np.testing.assert_allclose(RealmEmbedder.from_pretrained(tmp_path).encode("the river"), expected, atol=1e-6)


def test_what_is_no_text_is_refused(embedder, tokenizer):
    with pytest.raises(TypeError, match="A text is"):
        embedder.encode([[101, 102]], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="1 titles for 2 texts"):
        embedder.encode(["a", "b"], titles=["c"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="batch_size is 0"):
        embedder.encode(["a"], tokenizer=tokenizer, batch_size=0)


def test_questions_about_places_find_the_places(pretraining, world):
    retriever = RealmRetriever.from_pretrained(pretraining[0])
    asked = questions(world)[:20]

    found = retriever.search([example.question for example in asked], k=5)

    hits = [example.id in result.titles for example, result in zip(asked, found, strict=True)]
    assert np.mean(hits) > 0.5


def test_a_run_that_was_downloaded_is_not_believed(pretraining, tmp_path):
    """Its Arrow files and its index would be opened as they are."""
    here = tmp_path / "models--eve--run" / "snapshots" / "0123abcd"
    shutil.copytree(pretraining[0], here)

    for place in (here, here / "model", next((here / "index").glob("step-*"))):
        with pytest.raises(HubArtefactError, match="was downloaded"):
            RealmRetriever.from_pretrained(place)
