"""A run that is to be estimated, and the rates of what it runs on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from realm_hf.estimate.index_costs import DTYPE_BYTES
from realm_hf.estimate.shapes import ModelShape
from realm_hf.runs.snapshot_schedule import SnapshotSchedule

__all__ = ["ENCODE_DTYPES", "Plan", "Rates", "packaged_rates"]

ENCODE_DTYPES = ("float32", "bfloat16")
"""In which passages are embedded, of those that `--encode_dtype` of a run knows and rates are measured for."""


@dataclass(frozen=True)
class Rates:
    """
    What a device does in a second, as measured.

    Args:
        train_tflops (`float`): Of a training step, forward and backward, counted operations only.
        encode_tflops (`float`): Of embedding passages, in float32 where the rates ship with the package.
        index_tflops (`float`): Of the products that train and fill an index, on one core of the processor.
        disk_gigabytes (`float`): A second, written with a hash.
        source (`str`): Where the figures come from.
        bfloat16_encode_tflops (`float`, *optional*): Of embedding in bfloat16, where that was measured.
        gigascores (`float`, *optional*): Billions of scores among which a search in shards chooses the best, in a
            second; where it was not measured, choosing counts nothing.
    """

    train_tflops: float
    encode_tflops: float
    index_tflops: float
    disk_gigabytes: float
    source: str
    bfloat16_encode_tflops: float | None = None
    gigascores: float | None = None


def packaged_rates() -> dict[str, Rates]:
    """The measurements that ship with the package, by the name of the device."""
    content = json.loads(files("realm_hf.estimate").joinpath("rates.json").read_text(encoding="utf-8"))
    return {name: Rates(**rates) for name, rates in content.items()}


@dataclass(frozen=True)
class Plan:
    """
    A run that is to be estimated.

    Args:
        passages (`int`): N.
        steps (`int`): Optimizer steps.
        shape ([`ModelShape`]): Of each tower.
        rates ([`Rates`]): Of one training device, and of one builder.
        devices (`int`): That train.
        builders (`int`): That build beside them; 0: the training devices build ("sync").
        index_cores (`int`): Of the process that trains and fills the index, which is one, however many embed.
        batch_size (`int`): Queries of a step, over all devices.
        candidates (`int`): K, the null passage counted.
        distinct_candidates (`float`, *optional*): Passages that a step embeds, those that several of its queries share
            once; a run's log.jsonl has them. If not given, no two queries share one: `batch_size * (candidates - 1)`.
        candidate_tokens (`float`, *optional*): Mean length of a candidate, which log.jsonl has, too: what is retrieved
            may be shorter than the others, or longer. `passage_tokens` if not given.
        query_tokens (`float`): Mean length of a query.
        passage_tokens (`float`): Mean length of a passage.
        masked_tokens (`float`): Masked wordpieces of a query.
        refresh_steps (`int`): A snapshot every so many steps.
        refresh_schedule (`str`, *optional*): As `--refresh_schedule`, in place of `refresh_steps`.
        encoder_shape ([`ModelShape`], *optional*): Of the encoder that reads, where it differs from the embedder.
        dimension (`int`): D.
        dtype (`str`, *optional*): Of stored embeddings; as a run stores them by default: float16 for "exact-sharded",
            else float32.
        factory (`str`): As `--index_factory`.
        device_gigabytes (`float`, *optional*): Memory of a training device that is an accelerator: by it "auto" may
            choose "exact-sharded".
        keep_generations (`int`): As `--keep_generations`.
        bm25 (`bool`): Some candidates are found by their words: `--candidate_mix` names bm25.
        freeze_encoder (`bool`): As `--freeze_encoder`: reading has no backward pass, and the encoder no moments.
        encode_dtype (`str`): "float32", or "bfloat16" at the rate that was measured for it.
    """

    passages: int
    steps: int
    shape: ModelShape
    rates: Rates
    devices: int = 1
    builders: int = 1
    index_cores: int = 1
    batch_size: int = 8
    candidates: int = 8
    query_tokens: float = 40.0
    passage_tokens: float = 200.0
    masked_tokens: float = 3.0
    refresh_steps: int = 500
    dimension: int = 128
    dtype: str | None = None
    factory: str = "auto"
    keep_generations: int = 2
    bm25: bool = False
    freeze_encoder: bool = False
    refresh_schedule: str | None = None
    device_gigabytes: float | None = None
    encoder_shape: ModelShape | None = None
    encode_dtype: str = "float32"
    distinct_candidates: float | None = None
    candidate_tokens: float | None = None

    @property
    def encode_tflops(self) -> float:
        """Rate of embedding passages, by one device."""
        if self.encode_dtype == "float32":
            return self.rates.encode_tflops
        if self.rates.bfloat16_encode_tflops is None:
            raise ValueError(
                "encode_dtype is bfloat16, for which no rate is known: measure it and give encode_tflops."
            )
        return self.rates.bfloat16_encode_tflops

    @property
    def embedded_candidates(self) -> float:
        """Passages that a step embeds."""
        if self.distinct_candidates is None:
            return self.batch_size * (self.candidates - 1)
        return self.distinct_candidates

    @property
    def tokens_a_candidate(self) -> float:
        """Mean length of what is retrieved."""
        return self.passage_tokens if self.candidate_tokens is None else self.candidate_tokens

    @property
    def reading_shape(self) -> ModelShape:
        """Of the encoder that reads."""
        return self.encoder_shape or self.shape

    @property
    def schedule(self) -> SnapshotSchedule:
        """When snapshots are taken."""
        if self.refresh_schedule is not None:
            return SnapshotSchedule.parse(self.refresh_schedule)
        return SnapshotSchedule.every(self.refresh_steps)

    def __post_init__(self) -> None:
        counts = ("passages", "steps", "devices", "index_cores", "batch_size", "candidates", "refresh_steps")
        for name in (*counts, "dimension"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        for name in ("train_tflops", "encode_tflops", "index_tflops", "disk_gigabytes"):
            if not getattr(self.rates, name) > 0:
                raise ValueError(f"{name} is {getattr(self.rates, name)}, but is a rate: give a positive number.")
        self.schedule  # noqa: B018 - an error in it comes here
        if self.builders < 0:
            raise ValueError(
                f"builders is {self.builders}: give 0 for none beside the trainer, or how many there are."
            )
        if not 0 <= self.embedded_candidates <= self.batch_size * (self.candidates - 1):
            raise ValueError(
                f"distinct_candidates is {self.distinct_candidates:g}, but {self.batch_size} queries of "
                f"{self.candidates} candidates, the null passage one of them, have at most "
                f"{self.batch_size * (self.candidates - 1)} passages."
            )
        if self.encode_dtype not in ENCODE_DTYPES:
            raise ValueError(f"encode_dtype is {self.encode_dtype!r}. Choose {' or '.join(ENCODE_DTYPES)}.")
        self.encode_tflops  # noqa: B018 - it may be unknown
        if self.dtype is not None and self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype is {self.dtype!r}. Choose float16 or float32.")
