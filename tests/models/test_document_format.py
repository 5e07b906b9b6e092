"""`document_format="joined"`: title and body are embedded as one text, by the tower itself, and nowhere else."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import tiny_bert
from tiny_encoders import TEXT, save_encoder, train_tokenizer
from tiny_worlds import tiny_tokenizer

from realm_hf import RealmConfig, RealmEmbedder, RealmForPreTraining, embed_passages
from realm_hf.data import passages_from_rows
from realm_hf.data.collators import PreTrainingCollator
from realm_hf.data.masking import mask_example
from realm_hf.generations.tower_check import tower_movements
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.prompts import join_pairs
from realm_hf.models.tower_files import same_tower
from realm_hf.retriever.beam_embeddings import NullEmbedding

FIELDS = {
    "pooling_mode": "mean",
    "projection": "none",
    "document_format": "joined",
    "document_prompt": "people say : ",
}
TITLES = ["Nile", "", "Copper"] * 4
TEXTS = [f"They {'sell ' * (n % 20)}number {n} here." for n in range(12)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"), max_position_embeddings=64, initializer_range=0.2)


@pytest.fixture(scope="module")
def model(bert):
    return RealmForPreTraining.from_bert(bert, **FIELDS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = Dataset.from_dict({"title": TITLES, "text": TEXTS})
    return passages_from_rows(rows, tiny_tokenizer(), tmp_path_factory.mktemp("p") / "s", max_length=56)


def one_text_each(tower, texts, tokenizer):
    with torch.no_grad():
        rows = [tower(**tokenizer(text, return_tensors="pt")).projected_score[0].numpy() for text in texts]
    return np.stack(rows)


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=5),
    separators=st.integers(1, 2),
    with_mask=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_joined_row_is_title_and_body_between_the_special_tokens(rows, separators, with_mask):
    if not with_mask:
        rows = rows[:1]
    cls, sep, pad = 1, 2, 0
    wanted = [[cls, *range(10, 10 + title), *range(20, 20 + body), sep] for title, body in rows]
    pairs = [
        [*row[: 1 + title], *[sep] * separators, *row[1 + title :]]
        for row, (title, _) in zip(wanted, rows, strict=True)
    ]
    width = max(map(len, pairs))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in pairs])
    segments = torch.tensor(
        [[0] * (1 + title + separators) + [1] * (body + 1) + [0] * (width - len(row))
         for row, (title, body) in zip(pairs, rows, strict=True)]
    )  # fmt: skip
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in pairs])
    made, facts = join_pairs(
        {"input_ids": ids, "attention_mask": mask if with_mask else None, "token_type_ids": segments}
    )
    assert [ids[on == 1].tolist() for ids, on in zip(made["input_ids"], made["attention_mask"], strict=True)] == wanted
    assert facts.lengths.ends.tolist() == facts.lengths.tokens.tolist() == [len(row) for row in wanted]
    assert made["input_ids"].shape[1] == max(map(len, wanted)) and not made["token_type_ids"].any()
    assert set(np.unique(made["input_ids"])) <= set(facts.words)


def test_rows_of_one_text_stay_as_they_are():
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
    mask = (ids != 0).long()
    for segments in (None, torch.zeros_like(ids)):
        made, facts = join_pairs({"input_ids": ids, "attention_mask": mask, "token_type_ids": segments})
        assert torch.equal(made["input_ids"], ids) and torch.equal(made["attention_mask"], mask)
        assert facts.lengths.ends.tolist() == RowFacts.of(ids, mask).lengths.ends.tolist()


def test_every_way_to_a_passage_embedding_joins(model, store):
    tower, tokenizer = model.embedder, tiny_tokenizer()
    wanted = one_text_each(tower, [f"people say : {a} {b}" for a, b in zip(TITLES, TEXTS, strict=True)], tokenizer)
    np.testing.assert_allclose(tower.encode(TEXTS, titles=TITLES, tokenizer=tokenizer), wanted, atol=1e-5)
    np.testing.assert_allclose(embed_passages(tower, store), wanted, atol=1e-5)
    assert tower_movements(tower, store, wanted).max() < 1e-4
    null = NullEmbedding().of(tower, store.special_tokens)
    np.testing.assert_allclose(null, one_text_each(tower, ["people say :"], tokenizer)[0], atol=1e-5)
    padded = store.pad_candidates(np.arange(len(store)))
    with torch.no_grad():
        candidates = tower.encode_tokens(
            *(torch.from_numpy(padded[n]) for n in ("input_ids", "attention_mask", "token_type_ids"))
        )
    np.testing.assert_allclose(candidates.numpy(), wanted, atol=1e-5)


def test_queries_and_the_reader_read_as_before(model, bert, store):
    plain = RealmForPreTraining.from_bert(bert, **FIELDS | {"document_format": "pair"})
    tokenizer = tiny_tokenizer()
    np.testing.assert_array_equal(
        model.embedder.encode(TEXTS, tokenizer=tokenizer), plain.embedder.encode(TEXTS, tokenizer=tokenizer)
    )
    sentence = np.array(tokenizer("many people sell copper in the north", add_special_tokens=False)["input_ids"])
    rng = np.random.default_rng(0)
    query = mask_example(
        sentence, np.array([[2, 4]]), special_tokens=store.special_tokens, rng=rng, max_query_length=12
    )
    batch = PreTrainingCollator(store, tokenizer, 16, 48, config=model.config)([(query, np.array([3, 5]))])
    with torch.no_grad():
        ours, theirs = model(**batch), plain(**batch)
    torch.testing.assert_close(ours.gold_log_probs, theirs.gold_log_probs)
    joined = torch.from_numpy(embed_passages(model.embedder, store)[[3, 5]])
    torch.testing.assert_close(ours.retrieval_score[0, 1:], joined @ ours.query_score[0], atol=1e-4, rtol=1e-5)
    assert not torch.allclose(ours.retrieval_score, theirs.retrieval_score, atol=1e-3)


def test_it_is_saved_and_towers_that_differ_in_it_are_two(model, bert, store, tmp_path):
    model.save_pretrained(tmp_path)
    again = RealmEmbedder.from_pretrained(tmp_path)
    assert again.config.document_format == "joined" and same_tower(again, model.embedder)
    plain = RealmEmbedder.from_bert(bert, **FIELDS | {"document_format": "pair"})
    assert not same_tower(plain, model.embedder)
    assert tower_movements(plain, store, embed_passages(model.embedder, store)).max() > 0.06
    assert not [name for name in plain.state_dict() if "joined" in name]
    assert json.loads((tmp_path / "config.json").read_text())["document_format"] == "joined"
    with pytest.raises(StrictDataclassError, match="document_format"):
        RealmConfig(document_format="both")


def test_two_separators_are_taken_out_and_byte_level_bpe_is_refused(tmp_path):
    for family in ("mpnet", "roberta"):
        save_encoder(tmp_path / family, family)
    fields = {"retriever_proj_size": 8, "document_format": "joined"}
    tokenizer = train_tokenizer("mpnet")
    tower = RealmEmbedder.from_encoders(embedder=tmp_path / "mpnet", **fields)
    rows = Dataset.from_dict({"title": ["Paris", ""], "text": TEXT[:2]})
    passages = passages_from_rows(rows, tokenizer, tmp_path / "passages", max_length=64)
    wanted = one_text_each(tower, [f"Paris {TEXT[0]}", TEXT[1]], tokenizer)
    np.testing.assert_allclose(embed_passages(tower, passages), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="cuts a word into other tokens behind a space"):
        RealmEmbedder.from_encoders(embedder=tmp_path / "roberta", **fields)
