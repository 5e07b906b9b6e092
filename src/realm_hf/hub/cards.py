"""Cards of what is published: metadata for the Hub, and what a reader must know. Every figure comes from a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from realm_hf.hub.manifest import HubManifest
from realm_hf.knowledge.saved_source import in_words
from realm_hf.runs.records import EVALUATION_PREFIX, RunRecord, retrieval_figure, stage_name
from realm_hf.untrusted.checks import human_bytes

__all__ = ["CardFacts", "dataset_card", "model_card", "retriever_card"]

_CONFIGS = [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}]
"""Where the Hub's viewer and `load_dataset` find the rows."""

_SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M", 1e8: "10M<n<100M"}


@dataclass(frozen=True)
class CardFacts:
    """
    What a card says beside what the run recorded.

    Args:
        license (`str`, *optional*): Of the model, e.g. `"apache-2.0"`.
        dataset_license (`str`, *optional*): Of the passages.
        language (`str` or list, *optional*): E.g. `"en"`.
        base_model (`str`, *optional*): The Hub id of the weights that training started from.
        datasets (sequence of `str`): Hub ids of what it was trained on.
        corpus (`str`, *optional*): One sentence: what the passages are, and where they come from.
        results (sequence of `EvalResult`): Measured figures, for model-index.
        training (`Mapping[str, Any]`): Settings, e.g. the arguments of the training script.
        limits (sequence of `str`): Sentences for the section of that name.
    """

    license: str | None = None
    dataset_license: str | None = None
    language: str | list[str] | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    corpus: str | None = None
    results: Sequence[EvalResult] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    limits: Sequence[str] = ()


def model_card(
    repo_id: str,
    model: Any,
    manifest: HubManifest,
    facts: CardFacts,
    run: RunRecord | None,
    *,
    retriever_place: str,
    recall_against_exact: float | None,
    is_one_repository: bool,
) -> ModelCard:
    """
    The card of a model's repository.

    Args:
        repo_id (`str`): The repository.
        model (`PreTrainedModel`): [`RealmForOpenQA`] or [`RealmForPreTraining`].
        manifest ([`HubManifest`]): Of the retriever.
        facts ([`CardFacts`]): What the publisher says.
        run ([`RunRecord`], *optional*): The training run.
        retriever_place (`str`): Where the retriever lies, in words with its commit.
        recall_against_exact (`float`, *optional*): Measured when it was published.
        is_one_repository (`bool`): Whether the retriever lies in the model's own repository.

    Raises:
        ValueError: If the metadata is not valid.
    """
    run = run or RunRecord(Path())  # of which nothing is known
    kind = type(model).__name__
    answers = kind == "RealmForOpenQA"
    name = repo_id.split("/")[-1]
    data = ModelCardData(
        library_name="realm_hf",
        pipeline_tag="question-answering" if answers else "fill-mask",
        tags=["realm", "retrieval", "open-domain-qa"],
        license=facts.license,
        language=facts.language,
        base_model=facts.base_model or run.base_model,
        datasets=list(facts.datasets) or None,
        metrics=sorted({result.metric_type for result in facts.results}) or None,
        eval_results=list(facts.results) or None,
        model_name=name,
    )
    example = _answer_example(repo_id) if answers else _pretraining_example(repo_id)
    about = "answers questions from" if answers else "predicts masked words with"
    corpus = f" {facts.corpus}" if facts.corpus else ""
    text = f"""---
{data.to_yaml()}
---

# {name}

A REALM model ({kind}) that {about} {manifest.rows:,} passages, which it retrieves by itself.{corpus}

```python
{example}
```

The package is installed from its source, `pip install .` in a checkout. Nothing that is downloaded is run as code.

## What belongs together

{_table([("part", "fingerprint"), *_fingerprints(manifest)])}

The retriever is {retriever_place}. A model or tokenizer whose fingerprint differs is refused.

## Training

{_training(facts, run)}

## Index

{_index(manifest, run, recall_against_exact)}

## Results

{_results(facts, run)}

## Limits

{_limits(model, facts, manifest, answers)}
"""
    if is_one_repository:
        text += "\nThe passages lie in `retriever/data/*.parquet`.\n"
    return ModelCard(text)


def dataset_card(repo_id: str, model_id: str, manifest: HubManifest, facts: CardFacts) -> DatasetCard:
    """
    The card of the passages' repository; the viewer and `load_dataset` read its `configs`.

    Args:
        repo_id (`str`): The repository.
        model_id (`str`): The model's.
        manifest ([`HubManifest`]): What is published.
        facts ([`CardFacts`]): What the publisher says.
    """
    data = DatasetCardData(
        license=facts.dataset_license,
        language=facts.language,
        task_categories=["question-answering"],
        size_categories=next((size for most, size in _SIZES.items() if manifest.rows < most), "n>100M"),
        pretty_name=repo_id.split("/")[-1],
        tags=["realm", "retrieval", "faiss"],
        configs=_CONFIGS,
    )
    name = repo_id.split("/")[-1]
    indexes = [
        (f"`{index}`", record.kind, human_bytes(record.bytes), "yes" if index == manifest.default_index else "")
        for index, record in manifest.indexes.items()
    ]
    return DatasetCard(f"""---
{data.to_yaml()}
---

# {name}

{manifest.rows:,} passages, their embeddings ({manifest.dimension} numbers, {manifest.dtype}) and a FAISS index: the
corpus that [{model_id}](https://huggingface.co/{model_id}) retrieves from. {facts.corpus or ""}

```python
from realm_hf import RealmRetriever

retriever = RealmRetriever.from_pretrained("{repo_id}")
```

The rows alone, without this package: `load_dataset("{repo_id}")`.

| column | type | |
|---|---|---|
| `title` | string | of the document |
| `text` | string | the passage |
| `embeddings` | {manifest.dimension} x float32 | by the passage tower; scores are inner products |

## Indexes

{_table([("name", "FAISS", "size", "default"), *indexes])}

Candidates are found by {in_words(manifest.candidate_source)}.

## What belongs together

{_table([("part", "fingerprint"), *_fingerprints(manifest)])}
""")


def retriever_card(repo_id: str, manifest: HubManifest, tags: list[str] | None) -> str:
    """
    The card of a retriever that was pushed alone: what lies there, and how to load it.

    Args:
        repo_id (`str`): The repository.
        manifest ([`HubManifest`]): What is published.
        tags (`list[str]`, *optional*): Further tags.
    """
    metadata: dict[str, Any] = {
        "tags": sorted({"realm_hf", "retrieval", *(tags or [])}),
        "task_categories": ["question-answering"],
        "configs": _CONFIGS,
    }
    title = repo_id.split("/")[1]
    search = 'retriever.search("a question", k=5)\n' if "query_tower" in manifest.fingerprints else ""
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False)}---

# {title}

{manifest.rows:,} passages with embeddings of {manifest.dimension} numbers and a FAISS index. Candidates are found by
{in_words(manifest.candidate_source)}.

```python
from realm_hf import RealmRetriever

retriever = RealmRetriever.from_pretrained("{repo_id}")
{search}```

The rows alone: `load_dataset("{repo_id}")`.
"""


def _answer_example(repo_id: str) -> str:
    return f"""import realm_hf
from transformers import pipeline

answer = pipeline("open-domain-qa", model="{repo_id}")
print(answer("Who wrote it?")["text"])"""


def _pretraining_example(repo_id: str) -> str:
    return f"""from realm_hf import RealmForPreTraining, RealmRetriever

model = RealmForPreTraining.from_pretrained("{repo_id}")
retriever = RealmRetriever.from_pretrained("{repo_id}")"""


def _fingerprints(manifest: HubManifest) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), f"`{value[:16]}`") for name, value in sorted(manifest.fingerprints.items())]


def _training(facts: CardFacts, run: RunRecord) -> str:
    rows: list[tuple[str, str]] = []
    if base := facts.base_model or run.base_model or run.local_start:
        rows.append(("started from", base))
    if run.steps_taken is not None:
        rows.append(("optimizer steps", f"{run.steps_taken:,}"))
    if run.examples_per_step is not None:
        rows.append(("batch size, over all processes", f"{run.examples_per_step:,}"))
    if (learning_rate := run.largest("lr")) is not None:
        rows.append(("largest learning rate", f"{learning_rate:.3g}"))
    rows += _declared(run.arguments)
    rows += [(name.replace("_", " "), str(value)) for name, value in run.hardware.items()]
    rows += [(f"seconds: {phase}", f"{seconds:,.0f}") for phase, seconds in run.seconds.items()]
    rows += [(name, str(value)) for name, value in facts.training.items()]
    rows += [(name, version) for name, version in run.packages.items()]
    return _table([("setting", "value"), *rows]) if rows else "No run was recorded."


def _declared(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the learning rate rose, and how the index was renewed."""
    rows = []
    if "warmup_steps" in arguments:
        rows.append(("warm-up steps", f"{arguments['warmup_steps']:,}"))
    if "refresh" in arguments:
        mode = str(arguments["refresh"])
        when = arguments.get("refresh_schedule") or f"every {arguments.get('refresh_steps')} steps"
        rows.append(("index refresh", mode if mode == "off" else f"{mode}, {when}"))
    return rows


def _index(manifest: HubManifest, run: RunRecord, recall: float | None) -> str:
    assert manifest.default_index is not None
    record = manifest.indexes[manifest.default_index]
    rows = [("kind", record.kind), ("rows", f"{manifest.rows:,}"), ("size", human_bytes(record.bytes))]
    rows.append(("candidates are found by", in_words(manifest.candidate_source)))
    if manifest.generation_name:
        rows.append(("generation", f"`{manifest.generation_name}`"))
    found = next((one for one in run.generations if one.get("name") == manifest.generation_name), None)
    if found and run.steps_taken is not None and run.trained_passage_tower:
        behind = run.steps_taken - int(found["snapshot_step"])
        rows.append(("staleness", f"built from the weights of step {found['snapshot_step']}, {behind} steps behind"))
    if recall is not None:
        rows.append(("recall@10 against exact search", f"{100 * recall:.1f} % (256 passages as queries)"))
    return _table([("index", "value"), *rows])


def _results(facts: CardFacts, run: RunRecord) -> str:
    parts = []
    if facts.results:
        measured: list[tuple[str, ...]] = [("data", "split", "metric", "value")]
        for one in facts.results:
            metric = one.metric_name or one.metric_type
            measured.append((one.dataset_name, one.dataset_split or "", metric, str(one.metric_value)))
        parts.append(_table(measured))
    if run.recall:
        ks = sorted({k for figures in run.recall.values() for k in figures}, key=int)
        recall: list[tuple[str, ...]] = [("stage", *(f"recall@{k}" for k in ks))]
        for stage, figures in run.recall.items():
            recall.append((stage_name(stage), *(f"{figures[k]:.1f}" if k in figures else "" for k in ks)))
        parts.append("Recall of the gold passage, in percent:\n\n" + _table(recall))
    parts += _retrieval(run)
    held_out = {name: value for name, value in run.evaluation.items() if retrieval_figure(name) is None}
    if held_out:
        last: list[tuple[str, ...]] = [("figure", "value")]
        for name, value in held_out.items():
            last.append((name.removeprefix(EVALUATION_PREFIX).replace("_", " "), f"{value:.4g}"))
        parts.append("Held out, after the last step:\n\n" + _table(last))
    return "\n\n".join(parts) if parts else "None were recorded."


def _retrieval(run: RunRecord) -> list[str]:
    """The retrieval of questions at the first and the last step where it was measured."""
    if not (measured := run.retrieval()):
        return []
    first, last = min(measured), max(measured)
    rows = [(f"{step:,}", *(f"{value:.1f}" for value in measured[step].values())) for step in {first: 0, last: 0}]
    return ["Retrieval of the evaluation questions, in percent:\n\n" + _table([("step", *measured[last]), *rows])]


def _limits(model: Any, facts: CardFacts, manifest: HubManifest, answers: bool) -> str:
    sentences = list(facts.limits)
    if answers:
        sentences += [
            f"An answer is a span of at most {model.config.max_span_width} wordpieces of one passage.",
            "Every question gets an answer, also where no passage has one: look at its probability.",
        ]
    sentences.append(f"It knows what the {manifest.rows:,} passages say, right or wrong, and what its weights hold.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
