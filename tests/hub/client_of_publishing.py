"""Calls that publish a model with its retriever and load them again, each in a process of its own."""

import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard
from tiny_worlds import tiny_model
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline

from realm_hf import RealmForPreTraining, RealmRetriever
from realm_hf.data.passages.build import PassageStore
from realm_hf.hub.cards import CardFacts
from realm_hf.hub.publish import publish
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.registration import register_pipeline

QUESTIONS = ["How many people has island number 2?", "Where lies the harbour?", "What?", "road"]


def made(folder: str, seed: int = 0, answers: bool = True):
    """A model and its retriever over the passages in `folder`; equal for equal seeds, in every process: float64 rounds
    to the same float32 wherever the weights lie.
    """
    root = Path(folder)
    store = PassageStore.load(root / "passages")
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    model = tiny_model(seed=seed).eval()
    batch = {name: torch.as_tensor(array) for name, array in store.pad_candidates(np.arange(len(store))).items()}
    with torch.no_grad():
        tower = deepcopy(model.embedder).double()
        vectors = tower.encode(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).float()
    retriever = RealmRetriever(store, tokenizer, embeddings=vectors.numpy(), embedder=model.embedder)
    if not answers:
        return model, retriever
    qa = RealmForOpenQA.from_pretraining(model, retriever, reader_beam_size=3, max_span_width=4)
    with torch.no_grad():  # fine-tuning moves the query tower, not the index
        qa.embedder.cls.dense.weight.add_(0.01)
    return qa, retriever


def answers_of(model, retriever) -> list[dict]:
    return [answer.to_dict() for answer in QuestionAnswerer(model, retriever)(QUESTIONS)]


def publish_it(folder: str, repo_id: str, seed: int = 0, answers: bool = True, **arguments) -> dict:
    model, retriever = made(folder, seed, answers)
    facts = CardFacts(license="apache-2.0", language="en", corpus="48 places that do not exist.")
    found = publish(model, retriever, repo_id, facts=facts, **arguments)
    return {**vars(found), "answers": answers_of(model, retriever) if answers else None}


def answer(name: str, revision: str | None = None, **hub) -> list[dict]:
    model = RealmForOpenQA.from_pretrained(name, revision=revision, **hub)
    retriever = RealmRetriever.from_pretrained(name, revision=revision, **hub)
    retriever.check_model(model)
    return answers_of(model, retriever)


def answer_as(user_token: str, name: str) -> list[dict]:
    """The same for another user, whose token the library reads at each call."""
    os.environ["HF_TOKEN"] = user_token
    return answer(name)


def answer_by_pipeline(name: str, revision: str | None = None) -> list[dict]:
    register_pipeline()
    return pipeline("open-domain-qa", model=name, revision=revision)(QUESTIONS)


def load_by_auto_classes(name: str, passages: str) -> dict:
    model = AutoModel.from_pretrained(name)
    dataset = load_dataset(passages, split="train")
    return {
        "config": type(AutoConfig.from_pretrained(name)).__name__,
        "model": type(model).__name__,
        "tokenizer": type(AutoTokenizer.from_pretrained(name)).__name__,
        "columns": dataset.column_names,
        "rows": len(dataset),
    }


def search(name: str, queries: list[str], **arguments) -> list:
    return [
        [result.titles, result.rows.tolist(), np.round(result.scores, 3).tolist()]
        for result in RealmRetriever.from_pretrained(name, **arguments).search(queries, k=3)
    ]


def search_at_home(folder: str, queries: list[str], answers: bool = True) -> list:
    model, retriever = made(folder, answers=answers)
    retriever.query_embedder = model.embedder
    return [
        [result.titles, result.rows.tolist(), np.round(result.scores, 3).tolist()]
        for result in retriever.search(queries, k=3)
    ]


def push_retriever(folder: str, repo_id: str) -> None:
    model, retriever = made(folder)
    retriever.query_embedder = model.embedder
    retriever.push_to_hub(repo_id)


def load_as_one_that_answers(name: str) -> None:
    RealmForOpenQA.from_pretrained(name)


def pretraining_scores(name: str | None, folder: str) -> list:
    if name is None:
        model, retriever = made(folder, answers=False)
    else:
        model, retriever = RealmForPreTraining.from_pretrained(name), RealmRetriever.from_pretrained(name)
        retriever.check_model(model)
    with torch.no_grad():
        queries = model.embedder.encode(**retriever.tokenizer(QUESTIONS, padding=True, return_tensors="pt"))
    batch = retriever.retrieve(queries, k=4)
    return [batch.rows.tolist(), np.nan_to_num(batch.scores).tolist()]


def cards(repo_id: str, dataset_repo_id: str) -> dict:
    model, data = ModelCard.load(repo_id), DatasetCard.load(dataset_repo_id, repo_type="dataset")
    model.validate(repo_type="model")
    data.validate(repo_type="dataset")
    return {"model": model.data.to_dict(), "data": data.data.to_dict(), "text": model.text}


def replace_weights(name: str, seed: int) -> None:
    """What somebody does who trains on and pushes the model alone."""
    model = RealmForOpenQA.from_pretrained(name)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.embedder.cls.dense.weight.add_(torch.randn_like(model.embedder.cls.dense.weight))
    model.push_to_hub(name)


def answer_all_the_same(name: str) -> list[str]:
    model = RealmForOpenQA.from_pretrained(name)
    retriever = RealmRetriever.from_pretrained(name)
    retriever.check_model(model, force=True)
    return [answer["text"] for answer in answers_of(model, retriever)]


def publish_a_strangers_index(folder: str, repo_id: str, force: bool) -> None:
    """The index of other weights than the model's tower."""
    model, _ = made(folder, seed=0, answers=False)
    _, retriever = made(folder, seed=1, answers=False)
    retriever.embedder = model.embedder
    publish(model, retriever, repo_id, force=force)


def head(repo_id: str, repo_type: str = "model") -> str:
    return HfApi().repo_info(repo_id, repo_type=repo_type).sha
