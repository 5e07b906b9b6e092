"""`transformers.pipeline("open-domain-qa", model=..., retriever=...)`.

`import realm_hf` registers the task. Batches of questions go to a [`QuestionAnswerer`], which encodes, searches and
reads them together; the base class would take one question at a time, with a DataLoader that pads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, Pipeline

from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.registration import TASK

if TYPE_CHECKING:
    from realm_hf.retriever.retriever import RealmRetriever

__all__ = ["OpenQAPipeline"]


class OpenQAPipeline(Pipeline):
    """
    Open-domain question answering as a transformers pipeline.

    Args:
        model ([`RealmForOpenQA`]): The model; `pipeline` also takes its directory or Hub name.
        retriever ([`RealmRetriever`], `str` or `Path`, *optional*): The corpus, or its directory or Hub name. By
            default `model.retriever`, or the retriever in the directory or repository that the model came from.
        tokenizer (`PreTrainedTokenizerBase`, `str` or `Path`, *optional*): The retriever's by default.
        top_k (`int`, *optional*): Passages read a question; `config.reader_beam_size` by default. Also an argument of
            each call.
        batch_size (`int`, *optional*, defaults to 32): Questions read at once. Also an argument of each call.
        kwargs (*optional*): `device` and the other arguments of every [`~transformers.Pipeline`].

    Raises:
        FileNotFoundError: If there is no retriever.
        ValueError: If retriever and tokenizer do not belong together.

    Example:
    ```python
    >>> import realm_hf
    >>> from transformers import pipeline

    >>> answer = pipeline("open-domain-qa", model="runs/qa/model", retriever="runs/qa/retriever")
    >>> answer("What is the capital of Nicaragua?")["text"]
    'Managua'
    >>> [found["text"] for found in answer(["Who ...?", "When ...?"], top_k=10)]
    ```
    """

    # The tokenizer comes with the retriever; there is nothing else to load.
    _load_tokenizer: Any = False
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False

    def __init__(
        self, model: RealmForOpenQA, *, retriever: RealmRetriever | str | Path | None = None, **kwargs: Any
    ) -> None:
        from realm_hf.qa.answerer import QuestionAnswerer

        kwargs["batch_size"] = 32 if kwargs.get("batch_size") is None else kwargs["batch_size"]
        tokenizer: Any = kwargs.pop("tokenizer", None)
        if isinstance(tokenizer, str | Path):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        # Before the base class, which moves the model: where an argument is wrong, nothing has changed.
        self.answerer = QuestionAnswerer(model, _retriever(model, retriever), tokenizer)
        super().__init__(model, **{**kwargs, "tokenizer": self.answerer.tokenizer})

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Answer questions.

        Args:
            inputs (`str`, `dict`, list, tuple, generator or torch `Dataset` of them): Questions; a dictionary has its
                question under the key `question`.
            args (*optional*): Ignored with a warning, as in every pipeline.
            kwargs (*optional*): `top_k` and `batch_size`, see the class.

        Returns:
            `dict`: What [`Answer.to_dict`] gives; a list of them for a list or tuple, and an iterator, which answers
            `batch_size` questions at a time, for a generator or dataset.

        Raises:
            TypeError, ValueError: See [`QuestionAnswerer`].
        """
        if isinstance(inputs, list | tuple):
            return list(super().__call__(list(inputs), *args, **kwargs)) if len(inputs) else []
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, top_k: int | None = None, **unknown: Any) -> tuple[dict, dict, dict]:
        if unknown:
            raise TypeError(f"The {TASK} pipeline has no parameter {', '.join(unknown)}: it takes top_k, batch_size.")
        return {}, {} if top_k is None else {"top_k": top_k}, {}

    def preprocess(self, input_: Any, **_: Any) -> Any:
        """One question as a batch of one."""
        return [_question(input_)]

    def _forward(self, input_tensors: Any, **forward_parameters: Any) -> Any:
        return self.answerer(input_tensors, **forward_parameters, batch_size=len(input_tensors))

    def postprocess(self, model_outputs: Any, **_: Any) -> dict[str, Any]:
        """The first answer as a dictionary."""
        return model_outputs[0].to_dict()

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,  # noqa: ARG002  # there is nothing to load beside the questions themselves
        batch_size: int,
        preprocess_params: dict[str, Any],  # noqa: ARG002
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],  # noqa: ARG002
    ) -> Iterator[dict[str, Any]]:
        """Answers to a stream of questions, `batch_size` at a time; what every call but that for one question uses."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: at least 1 is needed.")
        # A torch Dataset may have a length and items, but no iterator of its own.
        items = inputs if isinstance(inputs, Iterable) else (inputs[number] for number in range(len(inputs)))
        questions = map(_question, items)
        while batch := list(islice(questions, batch_size)):
            for answer in self.forward(batch, **forward_params):
                yield answer.to_dict()

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """
        Save model, retriever and tokenizer, so that `pipeline("open-domain-qa", model=save_directory)` is this again.

        The base class would also copy this file and demand `trust_remote_code` for loading.

        Args:
            save_directory (`str` or `PathLike`): Made if need be.
            kwargs (*optional*): Arguments of the model's `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.answerer.retriever.save_pretrained(Path(save_directory))
        self.answerer.tokenizer.save_pretrained(save_directory)


def _retriever(model: RealmForOpenQA, retriever: RealmRetriever | str | Path | None) -> RealmRetriever | None:
    """The retriever meant: given, named, the model's, or beside the model."""
    from realm_hf.retriever.retriever import RealmRetriever

    if retriever is None and model.retriever is None and model.name_or_path:
        # From the Hub: the commit of the model, so that the two belong together whatever was pushed later.
        commit = getattr(model.config, "_commit_hash", None)
        found = RealmRetriever.from_pretrained(model.name_or_path, revision=commit)
        found.check_model(model)
        return found
    return RealmRetriever.from_pretrained(retriever) if isinstance(retriever, str | Path) else retriever


def _question(item: Any) -> str:
    return item["question"] if isinstance(item, dict) else item
