"""Taggers with weights: a token-classification model (the paper's was BERT on CoNLL-2003), or a spaCy pipeline."""

import hashlib
from importlib.metadata import version

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, pipeline

from realm_hf.data.taggers.spans import Span
from realm_hf.data.vocabulary import tokenizer_fingerprint


class HubTagger:
    """
    Tags with a token-classification model through the `transformers` pipeline, in batches.

    Wordpiece labels are joined to whole words (aggregation "first") and sentences longer than the model are read in
    overlapping windows. Entities only: combine it with [`~realm_hf.data.DateTagger`] for dates.

    Args:
        model (`str`): Hub id or directory of a token-classification model with a fast tokenizer.
        batch_size (`int`, *optional*, defaults to 32): Sentences a forward pass.
        device (`str`, *optional*): `torch` device; the pipeline's own choice by default.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Raises:
        ValueError: If the model names no entity labels (a head that was never trained).
    """

    def __init__(
        self, model: str, *, batch_size: int = 32, device: str | None = None, revision: str | None = None
    ) -> None:
        self.batch_size = batch_size
        network = AutoModelForTokenClassification.from_pretrained(model, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        labels: dict[int, str] = network.config.id2label
        if all(label.startswith("LABEL_") for label in labels.values()):
            raise ValueError(
                f"{model} has labels {list(labels.values())}: they say nothing about entities; choose a model "
                "that was fine-tuned for named entities, such as one on CoNLL-2003"
            )
        tokenizer.model_max_length = min(tokenizer.model_max_length, network.config.max_position_embeddings)
        self._pipeline = pipeline("token-classification", model=network, tokenizer=tokenizer, device=device)
        self._stride = min(64, tokenizer.model_max_length // 4)
        self.fingerprint = f"hub-{_weights_fingerprint(network)}-{tokenizer_fingerprint(tokenizer)}"

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Spans of each sentence, labelled with the model's classes."""
        # The pipeline refuses an empty text.
        filled = [index for index, text in enumerate(texts) if text.strip()]
        spans: list[list[Span]] = [[] for _ in texts]
        answers = self._pipeline(
            [texts[index] for index in filled],
            aggregation_strategy="first",
            stride=self._stride,
            batch_size=self.batch_size,
        )
        for index, entities in zip(filled, answers, strict=True):
            spans[index] = [
                Span(int(entity["start"]), int(entity["end"]), str(entity["entity_group"])) for entity in entities
            ]
        return spans


class SpacyTagger:
    """
    Tags with the named-entity component of an installed spaCy pipeline. Bare numbers (CARDINAL, ORDINAL) are left out.

    Args:
        name (`str`, *optional*, defaults to `"en_core_web_sm"`): An installed pipeline, or a directory with one.
        batch_size (`int`, *optional*, defaults to 256): Texts a batch.

    Raises:
        ImportError: If spaCy is not installed.
        OSError: If the pipeline is not installed.
        ValueError: If the pipeline finds no entities.
    """

    def __init__(self, name: str = "en_core_web_sm", *, batch_size: int = 256) -> None:
        try:
            import spacy
        except ImportError as error:
            raise ImportError(
                "SpacyTagger needs spaCy, which is not installed: run `pip install spacy`, or use RuleTagger"
            ) from error
        try:
            self._pipeline = spacy.load(name)
        except OSError as error:
            raise OSError(
                f"spaCy has no pipeline {name!r}: run `python -m spacy download {name}`, give a directory, or use "
                "RuleTagger"
            ) from error
        if not {"ner", "entity_ruler"} & set(self._pipeline.pipe_names):
            raise ValueError(
                f"the spaCy pipeline {name!r} has components {self._pipeline.pipe_names}, none of which finds "
                "entities: choose one with `ner`"
            )
        self.batch_size = batch_size
        content = hashlib.sha256(self._pipeline.to_bytes()).hexdigest()[:16]
        self.fingerprint = f"spacy-{version('spacy')}-{content}"

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Spans of each sentence, labelled with the pipeline's classes."""
        return [
            [
                Span(entity.start_char, entity.end_char, entity.label_)
                for entity in document.ents
                if entity.label_ not in ("CARDINAL", "ORDINAL")
            ]
            for document in self._pipeline.pipe(texts, batch_size=self.batch_size)
        ]


def _weights_fingerprint(network: PreTrainedModel) -> str:
    """Hash of the weights and labels themselves: a directory may change under one name."""
    digest = hashlib.sha256(str(network.config.id2label).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
