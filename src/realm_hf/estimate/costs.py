"""What a run takes, from counted floating-point operations and bytes and a few measured rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from realm_hf.estimate.index_costs import (
    DTYPE_BYTES,
    bm25_bytes,
    built_bm25_bytes,
    built_index_bytes,
    index_bytes,
    index_operations,
    search_operations,
)
from realm_hf.estimate.plan import Plan
from realm_hf.index.default_index import EXACT_SHARDED, SearchDevices, plan_index

__all__ = [
    "Estimate",
    "estimate_run",
    "time_in_words",
]

_ADAM_BYTES, _WEIGHT_BYTES = 16, 4  # a parameter's weight, gradient and two moments, fp32 each; the weight alone
_SEARCHED = (
    "search: each device multiplies all queries of the step with its rows at the rate of embedding (a GPU twice, in "
    "float16), on the step's path; {choosing}what the devices send each other is not counted"
)
_TEXT_BYTES = 5.0  # of UTF-8 a wordpiece of English, with its space
_TASK_ROWS = 16_384  # realm_hf.refresh.build.TASK_ROWS, which takes torch to import


@dataclass(frozen=True)
class Estimate:
    """
    What a plan comes to.

    Args:
        factory (`str`): The index, "auto" resolved.
        dtype (`str`): Of stored embeddings.
        step_seconds (`float`): Of one optimizer step, the search on its path included.
        search_seconds (`float`): Of a step's search that all devices make together ("exact-sharded"): on the step's
            path. Other indexes are searched beside the steps, which counts nothing here.
        embed_seconds (`float`): Embedding all passages.
        index_seconds (`float`): Training and filling the index.
        write_seconds (`float`): Writing a generation.
        staleness_steps (`float`): Mean age of the served generation, in steps.
        longest_staleness_steps (`float`): Its age just before a swap.
        refreshes (`int`): Generations after the first.
        total_seconds (`float`): The first and the last index, all steps, and the builds that training waits for.
        device_bytes (`float`): On each training device, without activations: the model and, of an "exact-sharded"
            index, its share.
        share_bytes (`float`): That share, twice: while a new index is swapped in, there are two.
        builder_bytes (`float`): Embeddings and index while they are built.
        serving_bytes (`float`): Of a generation, mapped by each host that trains.
        disk_bytes (`float`): Passages, kept generations and the one being written, and the BM25 index.
        bm25_bytes (`float`): Of the BM25 index, mapped by each host that trains; 0 without one.
        built_bm25_bytes (`float`): The same in the process that builds it, once, before the first step.
        assumed (`list[str]`): In words.
    """

    factory: str
    dtype: str
    step_seconds: float
    search_seconds: float
    embed_seconds: float
    index_seconds: float
    write_seconds: float
    staleness_steps: float
    longest_staleness_steps: float
    refreshes: int
    total_seconds: float
    device_bytes: float
    share_bytes: float
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
    chosen = plan_index(plan.factory, plan.passages, devices=_search_devices(plan))
    rates, team = plan.rates, plan.builders or plan.devices
    is_sharded = chosen.factory == EXACT_SHARDED
    dtype = plan.dtype or ("float16" if is_sharded else "float32")
    rows = -(-plan.passages // plan.devices) if is_sharded else 0
    share = rows * plan.dimension
    search_seconds = share * search_operations(plan.batch_size, plan.device_gigabytes) / (rates.encode_tflops * 1e12)
    if rates.gigascores is not None:
        search_seconds += rows * plan.batch_size / (rates.gigascores * 1e9)
    step_seconds = search_seconds + _step_operations(plan) / (plan.devices * rates.train_tflops * 1e12)
    embed_seconds = _embed_seconds(plan, team)
    operations = index_operations(plan.passages, plan.dimension, chosen.factory, chosen.train_size)
    index_seconds = operations / (plan.index_cores * rates.index_tflops * 1e12)
    embeddings = plan.passages * plan.dimension * DTYPE_BYTES[dtype]
    share_bytes = 2.0 * share * DTYPE_BYTES[dtype]
    index = index_bytes(plan.passages, plan.dimension, chosen.factory)
    built = built_index_bytes(plan.passages, plan.dimension, chosen.factory, chosen.train_size)
    write_seconds = (embeddings + index) / (rates.disk_gigabytes * 1e9)
    build = embed_seconds + index_seconds + write_seconds
    ages = _ages(plan, step_seconds, build)
    tokens = plan.passages * plan.passage_tokens
    by_words = tokens if plan.bm25 else 0.0
    return Estimate(
        factory=chosen.factory,
        dtype=dtype,
        step_seconds=step_seconds,
        search_seconds=search_seconds,
        embed_seconds=embed_seconds,
        index_seconds=index_seconds,
        write_seconds=write_seconds,
        staleness_steps=ages.mean,
        longest_staleness_steps=ages.longest,
        refreshes=ages.refreshes,
        # The training devices build the first index and that of the final weights, whoever builds the others.
        total_seconds=2 * (build - embed_seconds + _embed_seconds(plan, plan.devices))
        + plan.steps * step_seconds
        + (0.0 if plan.builders else ages.refreshes * build),
        device_bytes=plan.shape.parameters * _ADAM_BYTES
        + plan.reading_shape.parameters * (_WEIGHT_BYTES if plan.freeze_encoder else _ADAM_BYTES)
        + share_bytes,
        share_bytes=share_bytes,
        builder_bytes=embeddings + built + 4 * plan.shape.parameters,
        serving_bytes=embeddings + index,
        disk_bytes=tokens * (2 + _TEXT_BYTES)
        + (plan.keep_generations + 1) * (embeddings + index)
        + bm25_bytes(by_words),
        bm25_bytes=bm25_bytes(by_words),
        built_bm25_bytes=built_bm25_bytes(by_words),
        assumed=_assumed(plan, chosen.factory, dtype),
    )


def _embed_seconds(plan: Plan, team: int) -> float:
    """Of all passages by so many, who claim tasks: the one with most of them decides."""
    tasks = -(-plan.passages // _TASK_ROWS)
    rows = min(plan.passages, -(-tasks // team) * _TASK_ROWS)
    return rows * plan.shape.forward_operations(plan.passage_tokens) / (plan.encode_tflops * 1e12)


def _search_devices(plan: Plan) -> SearchDevices | None:
    if plan.device_gigabytes is None:
        return None
    return SearchDevices(plan.devices, int(plan.device_gigabytes * 1e9), plan.dimension)


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
    """Forward and backward (twice the forward) of one step over all devices; of an encoder at rest the forward."""
    shape, reading = plan.shape, plan.reading_shape
    joint = plan.query_tokens + plan.tokens_a_candidate
    read = (
        (plan.candidates - 1) * reading.forward_operations(joint)
        + reading.forward_operations(plan.query_tokens)  # beside the null passage
        + plan.candidates * reading.head_operations(plan.masked_tokens)
    )
    passages = plan.embedded_candidates * shape.forward_operations(plan.tokens_a_candidate)
    embedded = plan.batch_size * shape.forward_operations(plan.query_tokens) + passages
    return 3 * embedded + (1 if plan.freeze_encoder else 3) * plan.batch_size * read


def _assumed(plan: Plan, factory: str, dtype: str) -> list[str]:
    shape, rates = plan.shape, plan.rates
    where = f"{plan.builders} builder(s) beside them" if plan.builders else "built by the training devices (sync)"
    return [
        f"model: {shape.num_hidden_layers} layers of {shape.hidden_size}, {shape.parameters / 1e6:.0f} million "
        "parameters a tower, two towers, AdamW in fp32; activations are not counted",
        *_other_reader(plan),
        f"a step: {plan.batch_size} queries of {plan.query_tokens:g} tokens, {plan.candidates} candidates of "
        f"{plan.tokens_a_candidate:g}, {plan.masked_tokens:g} masked; {plan.embedded_candidates:g} passages are "
        f"embedded{_unshared(plan)}; no padding is computed{', the encoder is at rest' * plan.freeze_encoder}",
        f"each of {plan.devices} device(s): {rates.train_tflops:g} TFLOP/s training, {plan.encode_tflops:g} "
        f"embedding; index at {rates.index_tflops:g} on each of {plan.index_cores} core(s), "
        f"disk at {rates.disk_gigabytes:g} GB/s ({rates.source})",
        *([f"a snapshot by the schedule {plan.schedule}"] if plan.refresh_schedule is not None else []),
        f"index {factory} over {dtype} embeddings of dimension {plan.dimension}; {where}, on cores or cards of "
        "their own",
        *([_searched(plan)] if factory == EXACT_SHARDED else []),
    ]


def _unshared(plan: Plan) -> str:
    return ", as if no two queries shared one" if plan.distinct_candidates is None else ""


def _searched(plan: Plan) -> str:
    choosing = (
        "choosing the best and " if plan.rates.gigascores is None else "the best are chosen as fast as measured; "
    )
    return _SEARCHED.format(choosing=choosing)


def _other_reader(plan: Plan) -> list[str]:
    shape = plan.encoder_shape
    if shape is None or shape == plan.shape:
        return []
    return [
        f"the second tower, which reads: {shape.num_hidden_layers} layers of {shape.hidden_size}, "
        f"{shape.parameters / 1e6:.0f} million parameters"
    ]
