"""`RealmForOpenQA`: a question in, an answer span out; names, keys and numbers of transformers 4.57.6.

The retriever is injected and holds passages and index. That port kept the index in a buffer `block_emb` of the model
(6.8 GB for Wikipedia) and took one question at a time.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.host_facts import ReaderFacts, RowFacts
from realm_hf.models.modeling_base import RealmPreTrainedModel
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.modeling_outputs import RealmForOpenQAOutput, RealmReaderOutput
from realm_hf.models.modeling_reader import RealmReader
from realm_hf.models.modeling_realm import RealmForPreTraining
from realm_hf.models.reading import Beam, BeamRetriever, ReadBeam, beam_relevance
from realm_hf.models.transfer import to_device


class RealmForOpenQA(RealmPreTrainedModel):
    r"""
    Open-domain question answering: retrieve a beam of passages, read the best, answer with the best span.

    Submodules: `embedder` (the query tower) and `reader`. Each may be assigned from another model of the same
    tokenizer, `model.reader = other.reader`; a new `embedder` must share its embedding space with the retriever's
    index. Weights are saved without the retriever.

    Args:
        config ([`RealmConfig`]): The configuration.
        retriever ([`RealmRetriever`], *optional*):
            Needed by `forward`; may be assigned later. Also an argument of `from_pretrained`.
    """

    parts = frozenset({"embedder", "encoder"})
    # The old index. `RealmRetriever.from_pretrained` of the same checkpoint maps it.
    _keys_to_ignore_on_load_unexpected = [r"^block_emb$"]  # noqa: RUF012

    def __init__(self, config: RealmConfig, retriever: BeamRetriever | None = None) -> None:
        super().__init__(config)
        self.embedder = RealmEmbedder(config)
        self.reader = RealmReader(config)
        self.retriever = retriever
        self.post_init()

    @classmethod
    def from_pretraining(
        cls,
        model: RealmForPreTraining | str | PathLike[str],
        retriever: BeamRetriever | None = None,
        *,
        seed: int = 0,
        **overrides: Any,
    ) -> Self:
        r"""
        Start fine-tuning from a pre-trained model: its query tower becomes the embedder, its encoder the reader's
        tower.

        Args:
            model ([`RealmForPreTraining`], `str` or `PathLike`): The model, or where it was saved.
            retriever ([`RealmRetriever`], *optional*): As for the class.
            seed (`int`, *optional*, defaults to 0): Seed of the span head, which pre-training does not know.
            overrides (*optional*): Fields of [`RealmConfig`], such as `reader_beam_size=5`.

        Returns:
            The model in evaluation mode. It shares no memory with `model`.

        Raises:
            `ValueError`: an override is no field of the config.

        Example:
        ```python
        >>> qa = RealmForOpenQA.from_pretraining("runs/pretraining/model", retriever, searcher_beam_size=100)
        ```
        """
        if not isinstance(model, RealmForPreTraining):
            model = RealmForPreTraining.from_pretrained(model)
        fields = model.config.to_dict()
        unknown = set(overrides) - set(fields)
        if unknown:
            raise ValueError(
                f"RealmConfig has no field {', '.join(sorted(unknown))}: check the spelling of the override."
            )
        config = RealmConfig.from_dict(fields | overrides | {"architectures": None})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            qa = cls(config, retriever)
        qa.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
        qa.embedder.load_state_dict(model.query_embedder.state_dict())
        qa.reader.load_state_dict(model.encoder.state_dict(), strict=False)
        qa.name_or_path = model.name_or_path
        return qa.eval()

    @property
    def searcher_beam_size(self) -> int:
        """Passages that are retrieved: `config.searcher_beam_size` in training, `config.reader_beam_size` else."""
        return self.config.searcher_beam_size if self.training else self.config.reader_beam_size

    def get_input_embeddings(self) -> nn.Module:
        """The reader's word embeddings."""
        return self.reader.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the reader's word embeddings."""
        self.reader.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize both towers; arguments as in `PreTrainedModel`. Returns the reader's word embeddings."""
        resized: nn.Embedding = self.reader.resize_token_embeddings(*args, **kwargs)
        self.embedder.resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = resized.num_embeddings
        return resized

    def embed_questions(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, facts: RowFacts | None = None
    ) -> torch.Tensor:
        """
        Embeddings of questions, to retrieve with and to score the beam with.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): `[CLS] question [SEP]`, padded on the right.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 at tokens, 0 at padding.
            facts ([`~host_facts.RowFacts`], *optional*): Of the questions, where the host knows them.

        Returns:
            `torch.Tensor` of shape `(B, D)`: The embeddings, with gradient, in at least float32.
        """
        return self.embedder.encode_tokens(input_ids, attention_mask, facts=facts, role="query")

    @property
    def reader_length(self) -> int:
        """Wordpieces of a joint input: `config.reader_seq_len`, as far as the reader has positions."""
        return min(self.config.reader_seq_len, self.reader.config.max_position_embeddings)

    def read_beam(
        self, queries: torch.Tensor, beam: Mapping[str, torch.Tensor], facts: ReaderFacts | None = None
    ) -> ReadBeam:
        """
        Score the passages of a beam, and all spans in those that are read.

        Training and answering come through here. `forward` takes the same steps with the port's padded inputs.

        Args:
            queries (`torch.Tensor` of shape `(B, D)`): What [`~RealmForOpenQA.embed_questions`] gave.
            beam (`Mapping[str, torch.Tensor]`): What [`Beam.to_device`] gave.
            facts ([`~host_facts.ReaderFacts`], *optional*): Of the joint inputs, where the host knows them.

        Returns:
            [`ReadBeam`]: Gradients flow into both towers.
        """
        relevance = beam_relevance(queries, beam, self.config.score_scale)
        spans = self.reader.score_spans(
            beam["input_ids"], beam["attention_mask"], beam["token_type_ids"], beam["block_mask"], facts=facts
        )
        return ReadBeam(spans, relevance, beam["question"], beam["rank"], beam["input_ids"].size(1))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        answer_ids: Any = None,
    ) -> RealmForOpenQAOutput:
        r"""
        Retrieve, read, answer. B = 1 gives the port's shapes, B > 1 a batch's; each question's numbers are the same.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): `[CLS] question [SEP]`, padded on the right.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): Segments; all 0 if not given.
            answer_ids (`list[list[int]]`, *optional*):
                Acceptable answers as token ids without special tokens; for B > 1 one such list for each question.
                With them losses are computed, over `searcher_beam_size` passages.
            kwargs (*optional*): `return_dict`.

        Returns:
            [`RealmForOpenQAOutput`]

        Raises:
            `ValueError`: there is no retriever, or `answer_ids` are not one list for each question.

        Example:
        ```python
        >>> retriever = RealmRetriever.from_pretrained("runs/qa/retriever")
        >>> model = RealmForOpenQA.from_pretrained("runs/qa/model", retriever=retriever)
        >>> output = model(**tokenizer(["Who wrote Faust?"], return_tensors="pt"))
        >>> tokenizer.decode(output.predicted_answer_ids)
        ```
        """
        if self.retriever is None:
            raise ValueError("The model has no retriever: pass `retriever=` or assign `model.retriever`.")
        batch_size = input_ids.size(0)
        answers: list[Any] = [answer_ids] if batch_size == 1 or answer_ids is None else list(answer_ids)
        answers = answers * batch_size if answer_ids is None else answers
        if len(answers) != batch_size:
            raise ValueError(f"`answer_ids` has {len(answers)} entries for {batch_size} questions: give each a list.")
        questions = self.embedder.encode_tokens(input_ids, attention_mask, token_type_ids, role="query")
        beam = Beam.retrieve(self.retriever, questions, self.searcher_beam_size, list(input_ids.cpu().numpy()))
        inputs = self._joint_inputs(beam.rows, input_ids, answers)
        sent = to_device({**beam.arrays(), **inputs}, questions.device)
        relevance = beam_relevance(questions, sent, self.config.score_scale)
        inputs = {name: sent[name] for name in inputs}
        if batch_size == 1:
            relevance, inputs = relevance[0], {name: value[0] for name, value in inputs.items()}
        output = self.reader(relevance_score=relevance, return_dict=True, **inputs)
        return RealmForOpenQAOutput(
            reader_output=output, predicted_answer_ids=_predicted_ids(inputs["input_ids"], output)
        )

    def _joint_inputs(self, rows: np.ndarray, input_ids: torch.Tensor, answers: list[Any]) -> dict[str, torch.Tensor]:
        """
        The reader's arguments as the port makes them, from texts, on the host.

        Of rows `[B, S]`: inputs `(B, R, L)` and, with answers, their positions `(B, R, A)` and `has_answers` `(B, S)`.
        """
        assert self.retriever is not None
        found = [
            self.retriever(torch.from_numpy(beam[beam >= 0]), ids[None].cpu(), answer, self.config.reader_seq_len)
            if (beam >= 0).any()
            else None
            for beam, ids, answer in zip(rows, input_ids, answers, strict=True)
        ]
        batch_size, beam_size = rows.shape
        read = min(self.config.reader_beam_size, beam_size)
        length = max((inputs["input_ids"].size(1) for *_, inputs in filter(None, found)), default=1)
        names = ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask")
        batch = {name: torch.zeros(batch_size, read, length, dtype=torch.long) for name in names}
        most = max((len(start[0]) for _, start, *_ in filter(None, found) if start), default=0)
        starts = torch.full((batch_size, read, most), -1)
        ends, has_answers = starts.clone(), torch.zeros(batch_size, beam_size, dtype=torch.bool)
        for question, result in enumerate(found):
            if result is None:
                continue
            has_answer, start, end, inputs = result
            for name in names:
                values = torch.as_tensor(inputs[name])[:read]
                batch[name][question, : values.size(0), : values.size(1)] = values
            if has_answer is not None:
                has_answers[question, : len(has_answer)] = torch.tensor(has_answer)
                for target, positions in ((starts, start), (ends, end)):
                    values = torch.tensor(positions[:read], dtype=torch.long)
                    target[question, : values.size(0), : values.size(1)] = values
        batch["block_mask"] = (batch.pop("special_tokens_mask") == 0) & (batch["token_type_ids"] != 0)
        if answers[0] is not None:
            batch |= {"start_positions": starts, "end_positions": ends, "has_answers": has_answers}
        return batch


def _predicted_ids(input_ids: torch.Tensor, output: RealmReaderOutput) -> torch.Tensor | list[torch.Tensor]:
    """Token ids of the best span in `(R, L)`, or of each question's in `(B, R, L)`."""
    best = (output.block_idx, output.start_pos, output.end_pos)
    block, start, end = (value.flatten().tolist() for value in best if value is not None)
    if input_ids.dim() == 2:
        return input_ids[block[0], start[0] : end[0] + 1]
    return [ids[b, s : e + 1] for ids, b, s, e in zip(input_ids, block, start, end, strict=True)]


__all__ = ["BeamRetriever", "RealmForOpenQA"]
