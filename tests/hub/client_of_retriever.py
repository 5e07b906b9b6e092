"""Calls that publish a retriever and load it again, each in a process of its own."""

from pathlib import Path

import numpy as np
from datasets import load_dataset
from huggingface_hub import HfApi

from realm_hf import RealmEmbedder, RealmRetriever
from realm_hf.data.passages.build import PassageStore
from realm_hf.hub.commit import HubCommit
from realm_hf.hub.export import ExportSettings
from realm_hf.hub.retriever import add_retriever, owned_by_retriever
from realm_hf.index.faiss_index import build_index


def retriever_of(folder: str) -> RealmRetriever:
    """What a test left in `folder`: passages, embeddings, tokenizer, passage tower."""
    from transformers import AutoTokenizer

    root = Path(folder)
    embeddings = np.load(root / "embeddings.npy")
    factory = (root / "factory").read_text()
    return RealmRetriever(
        PassageStore.load(root / "passages"),
        AutoTokenizer.from_pretrained(root / "tokenizer"),
        index=build_index(embeddings, factory),
        embeddings=embeddings,
        generation_name="step-5-0123abcd",
        embedder=RealmEmbedder.from_pretrained(root / "tower").eval(),
    )


def push(folder: str, repo_id: str, **arguments) -> str:
    return retriever_of(folder).push_to_hub(repo_id, **arguments)


def load_and_search(name: str, out: str, queries: str, **arguments) -> dict:
    """Everything that can be compared with the original goes into `out`."""
    retriever = RealmRetriever.from_pretrained(name, **arguments)
    store = retriever.passages
    save_arrays(retriever, out, queries)
    return {
        "fingerprint": store.fingerprint,
        "texts": store.rows["text"][:3],
        "titles": store.rows["title"][:3],
        "generation": retriever.generation_name,
        "index": retriever.index.kind,
        "mapped": isinstance(retriever.embeddings, np.memmap),
        "tokens": retriever.tokenizer("the river")["input_ids"],
        "fingerprints": sorted(retriever.fingerprints),
    }


def original(folder: str, out: str, queries: str) -> None:
    save_arrays(retriever_of(folder), out, queries)


def save_arrays(retriever: RealmRetriever, out: str, queries: str) -> None:
    """What is found for queries, and the arrays that it is found in."""
    batch = retriever.retrieve(np.load(queries), k=5)
    store = retriever.passages
    np.savez(
        out,
        rows=batch.rows,
        scores=batch.scores,
        embeddings=retriever.embeddings,
        body=store.body_tokens.values,
        body_offsets=store.body_tokens.offsets,
        duplicates=store.duplicate_groups,
        documents=store.documents,
        null=retriever.null_embedding(),
    )


def load(name: str, **arguments) -> dict:
    """Load, and say which files of the repository are in the cache then."""
    retriever = RealmRetriever.from_pretrained(name, **arguments)
    return {"rows": len(retriever), "has index": retriever._knowledge is not None}


def rows_of_dataset(name: str, **arguments) -> dict:
    dataset = load_dataset(name, split="train", **arguments)
    first = dataset[0]
    return {
        "columns": dataset.column_names,
        "rows": len(dataset),
        "title": first["title"],
        "dimension": len(first["embeddings"]),
    }


def tag(repo_id: str, name: str, repo_type: str = "dataset") -> None:
    HfApi().create_tag(repo_id, tag=name, repo_type=repo_type)


def head(repo_id: str, repo_type: str = "dataset") -> str:
    return HfApi().repo_info(repo_id, repo_type=repo_type).sha


def push_in_parts(folder: str, repo_id: str, part_bytes: int) -> None:
    _push_as(retriever_of(folder), repo_id, ExportSettings(part_bytes=part_bytes))


def push_with_variants(folder: str, repo_id: str) -> None:
    retriever = retriever_of(folder)
    variants = {
        "graph": build_index(retriever.embeddings, "HNSW8"),
        "lists": build_index(retriever.embeddings, "IVF2,Flat"),
    }
    _push_as(retriever, repo_id, ExportSettings(variants=variants))


def _push_as(retriever: RealmRetriever, repo_id: str, settings: ExportSettings) -> None:
    push = HubCommit(repo_id, "dataset")
    add_retriever(push, retriever, settings)
    push.commit("Upload", owns=owned_by_retriever)
