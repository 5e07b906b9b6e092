"""What a run takes, from counted floating-point operations and bytes and a few measured rates."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from importlib.resources import files

from realm_hf.estimate.index_costs import (
    DTYPE_BYTES,
    bm25_bytes,
    built_bm25_bytes,
    built_index_bytes,
    index_bytes,
    index_operations,
)
from realm_hf.estimate.shapes import ModelShape
from realm_hf.index.default_index import plan_index
from realm_hf.runs.snapshot_schedule import SnapshotSchedule

__all__ = [
    "Estimate",
    "Plan",
    "Rates",
    "estimate_run",
    "packaged_rates",
    "time_in_words",
]

_ADAM_BYTES = 16  # a parameter's weight, gradient and two moments, fp32 each
_TEXT_BYTES = 5.0  # of UTF-8 a wordpiece of English, with its space


@dataclass(frozen=True)
class Rates:
    """
    What a device does in a second, as measured.

    Args:
        train_tflops (`float`): Of a training step, forward and backward, counted operations only.
        encode_tflops (`float`): Of embedding passages.
        index_tflops (`float`): Of the products that train and fill an index, on one core of the processor.
        disk_gigabytes (`float`): A second, written with a hash.
        source (`str`): Where the figures come from.
    """

    train_tflops: float
    encode_tflops: float
    index_tflops: float
    disk_gigabytes: float
    source: str


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
        query_tokens (`float`): Mean length of a query.
        passage_tokens (`float`): Mean length of a passage.
        masked_tokens (`float`): Masked wordpieces of a query.
        refresh_steps (`int`): A snapshot every so many steps.
        refresh_schedule (`str`, *optional*): As `--refresh_schedule`, in place of `refresh_steps`.
        encoder_shape ([`ModelShape`], *optional*): Of the encoder that reads, where it differs from the embedder.
        dimension (`int`): D.
        dtype (`str`): Of stored embeddings.
        factory (`str`): As `--index_factory`.
        keep_generations (`int`): As `--keep_generations`.
        bm25 (`bool`): Some candidates are found by their words: `--candidate_mix` names bm25.
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
    dtype: str = "float32"
    factory: str = "auto"
    keep_generations: int = 2
    bm25: bool = False
    refresh_schedule: str | None = None
    encoder_shape: ModelShape | None = None

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
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype is {self.dtype!r}. Choose float16 or float32.")


@dataclass(frozen=True)
class Estimate:
    """
    What a plan comes to.

    Args:
        factory (`str`): The index, "auto" resolved.
        step_seconds (`float`): Of one optimizer step.
        embed_seconds (`float`): Embedding all passages.
        index_seconds (`float`): Training and filling the index.
        write_seconds (`float`): Writing a generation.
        staleness_steps (`float`): Mean age of the served generation, in steps.
        longest_staleness_steps (`float`): Its age just before a swap.
        refreshes (`int`): Generations after the first.
        total_seconds (`float`): The first and the last index, all steps, and the builds that training waits for.
        device_bytes (`float`): On each training device, without activations.
        builder_bytes (`float`): Embeddings and index while they are built.
        serving_bytes (`float`): Of a generation, mapped by each host that trains.
        disk_bytes (`float`): Passages, kept generations and the one being written, and the BM25 index.
        bm25_bytes (`float`): Of the BM25 index, mapped by each host that trains; 0 without one.
        built_bm25_bytes (`float`): The same in the process that builds it, once, before the first step.
        assumed (`list[str]`): In words.
    """

    factory: str
    step_seconds: float
    embed_seconds: float
    index_seconds: float
    write_seconds: float
    staleness_steps: float
    longest_staleness_steps: float
    refreshes: int
    total_seconds: float
    device_bytes: float
    builder_bytes: float
    serving_bytes: float
    disk_bytes: float
    bm25_bytes: float
    built_bm25_bytes: float
    assumed: list[str] = field(default_factory=list)

    @property
    def refresh_seconds(self) -> float:
        """From a snapshot to its generation."""
        return self.embed_seconds + self.index_seconds + self.write_seconds


def time_in_words(seconds: float) -> str:
    """
    Args:
        seconds (`float`): A duration.

    Returns:
        `str`: "90 s", "19 min", "94 days".
    """
    for limit, unit, size in ((120.0, "s", 1.0), (7200.0, "min", 60.0), (172_800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:,.3g} days"


def estimate_run(plan: Plan) -> Estimate:
    """
    Work out what a run takes.

    Args:
        plan ([`Plan`]): The run.

    Returns:
        [`Estimate`]
    """
    chosen = plan_index(plan.factory, plan.passages)
    rates, team = plan.rates, plan.builders or plan.devices
    step_seconds = _step_operations(plan) / (plan.devices * rates.train_tflops * 1e12)
    per_passage = plan.shape.forward_operations(plan.passage_tokens)
    embed_seconds = plan.passages * per_passage / (team * rates.encode_tflops * 1e12)
    operations = index_operations(plan.passages, plan.dimension, chosen.factory, chosen.train_size)
    index_seconds = operations / (plan.index_cores * rates.index_tflops * 1e12)
    embeddings = plan.passages * plan.dimension * DTYPE_BYTES[plan.dtype]
    index = index_bytes(plan.passages, plan.dimension, chosen.factory)
    built = built_index_bytes(plan.passages, plan.dimension, chosen.factory, chosen.train_size)
    write_seconds = (embeddings + index) / (rates.disk_gigabytes * 1e9)
    build = embed_seconds + index_seconds + write_seconds
    ages = _ages(plan, step_seconds, build)
    tokens = plan.passages * plan.passage_tokens
    by_words = tokens if plan.bm25 else 0.0
    return Estimate(
        factory=chosen.factory,
        step_seconds=step_seconds,
        embed_seconds=embed_seconds,
        index_seconds=index_seconds,
        write_seconds=write_seconds,
        staleness_steps=ages.mean,
        longest_staleness_steps=ages.longest,
        refreshes=ages.refreshes,
        # The training devices build the first index and that of the final weights, whoever builds the others.
        total_seconds=2 * (build + embed_seconds * (team / plan.devices - 1))
        + plan.steps * step_seconds
        + (0.0 if plan.builders else ages.refreshes * build),
        device_bytes=(plan.shape.parameters + plan.reading_shape.parameters) * _ADAM_BYTES,
        builder_bytes=embeddings + built + 4 * plan.shape.parameters,
        serving_bytes=embeddings + index,
        disk_bytes=tokens * (2 + _TEXT_BYTES)
        + (plan.keep_generations + 1) * (embeddings + index)
        + bm25_bytes(by_words),
        bm25_bytes=bm25_bytes(by_words),
        built_bm25_bytes=built_bm25_bytes(by_words),
        assumed=_assumed(plan, chosen.factory),
    )


@dataclass(frozen=True)
class _Ages:
    """How old the served index is, in steps, and how often it is renewed."""

    mean: float
    longest: float
    refreshes: int


def _ages(plan: Plan, step_seconds: float, build: float) -> _Ages:
    """Over the parts of the schedule; `build` is in seconds."""
    means, longest, refreshes = [], 0.0, 0
    for place, (length, interval, snapshots) in enumerate(plan.schedule.parts(plan.steps)):
        if plan.builders:
            # The newest snapshot waits for the build before it; then it is built, and serves until the next one is.
            between = interval * step_seconds
            period = max(between, build)
            fresh, oldest = build / step_seconds, (build + period) / step_seconds
            left = length * step_seconds - (between + build if place == 0 else 0.0)
            refreshes += max(0, math.floor(left / period) + (place == 0))
        else:
            fresh, oldest = 0.0, float(interval)
            refreshes += snapshots
        means.append((length, (fresh + oldest) / 2))
        longest = max(longest, oldest)
    if not plan.builders and plan.schedule.is_due(plan.steps):
        refreshes -= 1  # the last index, which is built in any case
    return _Ages(sum(n * mean for n, mean in means) / sum(n for n, _ in means), longest, refreshes)


def _step_operations(plan: Plan) -> float:
    """Forward and backward (twice the forward) of one step over all devices."""
    shape, reading = plan.shape, plan.reading_shape
    joint = plan.query_tokens + plan.passage_tokens
    query = (
        shape.forward_operations(plan.query_tokens)
        + (plan.candidates - 1) * (shape.forward_operations(plan.passage_tokens) + reading.forward_operations(joint))
        + reading.forward_operations(plan.query_tokens)  # beside the null passage
        + plan.candidates * reading.head_operations(plan.masked_tokens)
    )
    return 3 * plan.batch_size * query


def _assumed(plan: Plan, factory: str) -> list[str]:
    shape, rates = plan.shape, plan.rates
    where = f"{plan.builders} builder(s) beside them" if plan.builders else "built by the training devices (sync)"
    return [
        f"model: {shape.num_hidden_layers} layers of {shape.hidden_size}, {shape.parameters / 1e6:.0f} million "
        "parameters a tower, two towers, AdamW in fp32; activations are not counted",
        *_other_reader(plan),
        f"a step: {plan.batch_size} queries of {plan.query_tokens:g} tokens, {plan.candidates} candidates of "
        f"{plan.passage_tokens:g}, {plan.masked_tokens:g} masked; no padding is computed",
        f"each of {plan.devices} device(s): {rates.train_tflops:g} TFLOP/s training, {rates.encode_tflops:g} "
        f"embedding; index at {rates.index_tflops:g} on each of {plan.index_cores} core(s), "
        f"disk at {rates.disk_gigabytes:g} GB/s ({rates.source})",
        *([f"a snapshot by the schedule {plan.schedule}"] if plan.refresh_schedule is not None else []),
        f"index {factory} over {plan.dtype} embeddings of dimension {plan.dimension}; {where}, on cores or cards of "
        "their own",
    ]


def _other_reader(plan: Plan) -> list[str]:
    shape = plan.encoder_shape
    if shape is None or shape == plan.shape:
        return []
    return [
        f"the second tower, which reads: {shape.num_hidden_layers} layers of {shape.hidden_size}, "
        f"{shape.parameters / 1e6:.0f} million parameters"
    ]
