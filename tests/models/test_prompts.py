"""Prompts: put before every query and passage that is embedded, by the tower itself, and nowhere else."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import tiny_bert
from tiny_worlds import tiny_tokenizer

from realm_hf import (
    RealmConfig,
    RealmEmbedder,
    RealmForOpenQA,
    RealmForPreTraining,
    RealmRetriever,
    RealmScorer,
    build_index,
    embed_passages,
)
from realm_hf.data import passages_from_rows
from realm_hf.data.collators import PreTrainingCollator
from realm_hf.data.masking import mask_example
from realm_hf.generations.projection import fit_projection
from realm_hf.generations.tower_check import tower_movements
from realm_hf.hub.published_tower import read_tower_configuration
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.prompts import add_prompt, room_beside_prompt
from realm_hf.models.tower_files import same_tower, tower_of_weights
from realm_hf.retriever.beam_embeddings import NullEmbedding
from realm_hf.runs.snapshots import copy_embedder_state
from realm_hf.training.prefetch import encode_queries

PROMPTS = {"query_prompt": "find the river : ", "document_prompt": "people say : "}
OWN_READING = {"pooling_mode": "mean", "projection": "none", "normalize": True}
TEXTS = ["The river runs north to the sea.", "Copper.", "Many people speak two languages and some speak three."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    # Weights large enough that a prompt moves an embedding by far more than rounding does.
    return tiny_bert(tmp_path_factory.mktemp("bert"), max_position_embeddings=64, initializer_range=0.2)


@pytest.fixture(scope="module")
def model(bert):
    return RealmForPreTraining.from_bert(bert, **OWN_READING, **PROMPTS)


@pytest.fixture(scope="module")
def plain(bert):
    return RealmForPreTraining.from_bert(bert, **OWN_READING)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = {
        "title": ["Nile", "Copper"] * 20,
        "text": [f"They {'sell ' * (n % 20)}number {n} here." for n in range(40)],
    }
    folder = tmp_path_factory.mktemp("p") / "s"
    return passages_from_rows(Dataset.from_dict(rows), tiny_tokenizer(), folder, max_length=64)


def by_hand(tower, prompt, texts, titles=None):
    """What texts embed to with the prompt as a part of the text, one at a time, through `forward`."""
    tokenizer, found = tiny_tokenizer(), []
    for number, text in enumerate(texts):
        pair = (prompt + text,) if titles is None else (prompt + titles[number], text)
        with torch.no_grad():
            found.append(tower(**tokenizer(*pair, return_tensors="pt")).projected_score[0].numpy())
    return np.stack(found)


def test_texts_are_embedded_as_if_their_prompt_stood_before_them(model):
    tower, tokenizer = model.embedder, tiny_tokenizer()
    assert tower.config.query_prompt_ids == tokenizer("find the river :", add_special_tokens=False)["input_ids"]
    queries = tower.encode(TEXTS, tokenizer=tokenizer)
    np.testing.assert_allclose(queries, by_hand(tower, PROMPTS["query_prompt"], TEXTS), atol=1e-5)
    passages = tower.encode(TEXTS, titles=["Nile", "", "Copper"], tokenizer=tokenizer)
    wanted = by_hand(tower, PROMPTS["document_prompt"], TEXTS, ["Nile", "", "Copper"])
    np.testing.assert_allclose(passages, wanted, atol=1e-5)
    assert np.abs(passages - by_hand(tower, "", TEXTS, ["Nile", "", "Copper"])).max() > 0.01, "the prompt counts"


def test_an_encoder_of_another_kind_has_prompts_too(bert):
    tower = RealmEmbedder.from_encoders(embedder=bert, score_scale="auto", retriever_proj_size=16, **PROMPTS)
    assert tower.config.score_scale == 0.25
    queries = tower.encode(TEXTS, tokenizer=tiny_tokenizer())
    np.testing.assert_allclose(queries, by_hand(tower, PROMPTS["query_prompt"], TEXTS), atol=1e-4)
    assert np.abs(queries - by_hand(tower, "", TEXTS)).max() > 0.01


def test_every_way_to_a_query_embedding_has_the_prompt(model, bert):
    tokenizer = tiny_tokenizer()
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    wanted = by_hand(model.embedder, PROMPTS["query_prompt"], TEXTS)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    np.testing.assert_allclose(encode_queries(model.query_embedder, [np.array(r) for r in rows]), wanted, atol=1e-5)
    qa = RealmForOpenQA.from_pretraining(model)
    with torch.no_grad():
        questions = qa.embed_questions(tokens["input_ids"], tokens["attention_mask"])
        scorer = RealmScorer(model.config)
        scorer.embedder.load_state_dict(model.embedder.state_dict())
        scorer.query_embedder.load_state_dict(model.embedder.state_dict())
        scored = scorer.eval()(**tokens, candidate_input_ids=tokens["input_ids"][:, None])
    np.testing.assert_allclose(questions.numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(scored.query_score.numpy(), wanted, atol=1e-5)


def test_every_way_to_a_passage_embedding_has_the_prompt(model, store):
    titles = [store.title(row) for row in range(len(store))]
    texts = [store.text(row) for row in range(len(store))]
    wanted = by_hand(model.embedder, PROMPTS["document_prompt"], texts, titles)
    np.testing.assert_allclose(embed_passages(model.embedder, store), wanted, atol=1e-5)
    assert tower_movements(model.embedder, store, wanted).max() < 1e-4
    null = NullEmbedding().of(model.embedder, store.special_tokens)
    special = store.special_tokens
    ids = [special.cls, *model.config.document_prompt_ids, special.sep, special.sep]
    with torch.no_grad():
        segments = torch.tensor([[0] * (len(ids) - 1) + [1]])
        alone = model.embedder(torch.tensor([ids]), token_type_ids=segments).projected_score[0]
    np.testing.assert_allclose(null, alone.numpy(), atol=1e-5)


def test_pretraining_scores_with_prompts_and_reads_without(model, plain, store):
    tokenizer = tiny_tokenizer()
    collator = PreTrainingCollator(store, tokenizer, 16, 32, config=model.config)
    sentence = np.array(tokenizer("many people sell copper in the north", add_special_tokens=False)["input_ids"])
    query = mask_example(
        sentence,
        np.array([[2, 4]]),
        special_tokens=store.special_tokens,
        rng=np.random.default_rng(0),
        max_query_length=12,
    )
    batch = collator([(query, np.array([3, 4]))])
    assert set(batch) == set(PreTrainingCollator(store, tokenizer, 16, 32)([(query, np.array([3, 4]))]))
    with torch.no_grad():
        ours, theirs = model(**batch), plain(**batch)
        queries = encode_queries(model.query_embedder, [query.input_ids])
    np.testing.assert_allclose(ours.query_score.numpy(), queries, atol=1e-5)
    assert not torch.allclose(ours.retrieval_score, theirs.retrieval_score, atol=1e-3)
    torch.testing.assert_close(ours.gold_log_probs, theirs.gold_log_probs)


def test_the_projection_is_fitted_on_passages_with_their_prompt(bert, store):
    reading = {"pooling_mode": "mean", "projection": "linear", "retriever_proj_size": 4}
    tower = RealmEmbedder.from_bert(bert, **reading, **PROMPTS)
    fit_projection(tower, store)
    np.testing.assert_allclose(embed_passages(tower, store).mean(axis=0), 0.0, atol=1e-5)


def test_a_prompt_is_saved_published_and_part_of_the_fingerprint(model, plain, tmp_path):
    model.save_pretrained(tmp_path / "model")
    model.embedder.save_pretrained(tmp_path / "tower")
    again = RealmForPreTraining.from_pretrained(tmp_path / "model").embedder
    alone = RealmEmbedder.from_pretrained(tmp_path / "tower")
    snapshot = tower_of_weights(model.embedder.config.to_dict(), copy_embedder_state(model.embedder))
    wanted = model.embedder.encode(TEXTS, tokenizer=tiny_tokenizer())
    for tower in (again, alone, snapshot):
        assert same_tower(tower, model.embedder)
        np.testing.assert_array_equal(tower.encode(TEXTS, tokenizer=tiny_tokenizer()), wanted)
    prints = {state_fingerprint(tower.state_dict()) for tower in (model.embedder, again, alone)}
    assert len(prints) == 1 and state_fingerprint(plain.embedder.state_dict()) not in prints
    assert not same_tower(model.embedder, plain.embedder)


def test_a_published_configuration_may_have_prompts_of_numbers_only(model, tmp_path):
    model.embedder.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    assert read_tower_configuration(config).query_prompt_ids == model.config.query_prompt_ids
    for wrong in (["5"], [[5]], {"5": 5}):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"query_prompt_ids": wrong}))
        with pytest.raises(ValueError, match="query_prompt_ids is"):
            read_tower_configuration(config)


def test_an_index_of_another_prompt_is_refused_by_whoever_asks_whose_it_is(model, plain, store):
    embeddings = embed_passages(model.embedder, store)
    assert tower_movements(plain.embedder, store, embeddings).min() > 0.06
    common = {"index": build_index(embeddings), "embeddings": embeddings}
    retriever = RealmRetriever(store, tiny_tokenizer(), embedder=plain.embedder, **common)
    with pytest.raises(ValueError, match="is not the one that made the index"):
        retriever.add_passages(["They sell tea."], titles=["Chad"])
    retriever = RealmRetriever(store, tiny_tokenizer(), embedder=model.embedder, **common)
    retriever.add_passages(["They sell tea."], titles=["Chad"])


def test_no_prompt_adds_no_weight(plain):
    assert not [name for name in plain.state_dict() if "prompt" in name]


def test_lengths_count_the_prompt(model, store):
    tower, tokenizer = model.embedder, tiny_tokenizer()
    config, text = model.config, "they sell copper " * 10
    count = len(config.query_prompt_ids)
    assert room_beside_prompt(config, "query", 16) == 16 - count
    cut = tower.encode([text], tokenizer=tokenizer, max_length=16)
    ids = tokenizer(PROMPTS["query_prompt"] + text, max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(cut, tower(**ids).projected_score.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match=r"7 wordpieces have no room .* give at least 9"):
        room_beside_prompt(config, "query", 7)


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4), count=st.integers(0, 4), longest=st.integers(8, 12)
)
@settings(max_examples=60, deadline=None)
def test_rows_with_a_prompt_are_those_with_it_written_out_and_cut_before_their_last_token(lengths, count, longest):
    prompt = list(range(90, 90 + count))
    rows = [[1, *range(10 + 10 * n, 8 + 10 * n + length), 2] for n, length in enumerate(lengths)]
    width = max(lengths)
    padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    given = {"input_ids": padded, "attention_mask": mask, "token_type_ids": None}
    made, facts = add_prompt(prompt, longest, given, RowFacts.of(padded, mask))
    exact = RowFacts.of(made["input_ids"], made["attention_mask"])
    for number, row in enumerate(rows):
        wanted = [*row[:1], *prompt, *row[1:]]
        wanted = wanted if len(wanted) <= longest or not prompt else [*wanted[: longest - 1], 2]
        ids = made["input_ids"][number]
        assert ids[made["attention_mask"][number] == 1].tolist() == wanted
        assert facts.lengths.ends[number] == exact.lengths.ends[number] == len(wanted)
        assert facts.lengths.tokens[number] == exact.lengths.tokens[number]
    assert set(exact.words) <= set(facts.words) and made["token_type_ids"] is None


def test_prompts_that_cannot_be_are_refused(bert):
    small = {"hidden_size": 32, "num_attention_heads": 2, "vocab_size": 100, "max_position_embeddings": 16}
    with pytest.raises(ValueError, match=r"query_prompt is 'query: ', and query_prompt_ids are \[\]"):
        RealmEmbedder(RealmConfig(**small, query_prompt="query: "))
    with pytest.raises(ValueError, match="beyond a vocabulary of 100"):
        RealmEmbedder(RealmConfig(**small, document_prompt="a", document_prompt_ids=[100]))
    with pytest.raises(ValueError, match="13 token ids"):
        RealmEmbedder(RealmConfig(**small, document_prompt="a", document_prompt_ids=[5] * 13))


@pytest.mark.parametrize(
    ("reading", "scale"),
    [
        ({"retriever_proj_size": 16}, 0.25),
        ({"retriever_proj_size": 16, "normalize": True}, 20.0),
        ({"pooling_mode": "mean", "projection": "none"}, 1.0),
    ],
)
def test_a_score_scale_that_fits_is_taken_where_it_is_asked_for(bert, reading, scale):
    assert RealmEmbedder.from_bert(bert, score_scale="auto", **reading).config.score_scale == scale
    unsaid = 20.0 if reading.get("normalize") else 1.0
    assert RealmEmbedder.from_bert(bert, **reading).config.score_scale == unsaid
