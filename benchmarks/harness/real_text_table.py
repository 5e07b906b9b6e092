"""The tables of benchmarks/real_text.py, from its lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .arms import arm_tables, measured_with
from .article_questions import in_article_table
from .held_out_masks import HELD_OUT_MASKS
from .results import Line
from .retrieval import figure, shown

UTILITY = ("retrieval_utility", "loss", "null_mass", "entropy")


def section(lines: list[Line], order: Sequence[str], compared: Sequence[tuple[str, str]]) -> str:
    """Markdown: all lines of one setting.

    Args:
        lines: They have the same `on`.
        order: The arms, in the order of the tables.
        compared: Pairs of arms: the first over the second.
    """
    on, arms = lines[0]["on"], [line for line in lines if not line["labels"]]
    parts = [
        f"### {on['weights'].split()[0]}, {on['max_steps']} steps of {on['batch_size']}{_measure(on)}",
        "",
        f"{_asked(on)} Warm start: {on['warm_start_steps']:,} steps of {on['warm_start_batch_size']}. {_realm(on)} "
        "Means over seeds, in brackets the 95 % interval, articles resampled; a difference is taken over the seeds "
        "that both arms have.",
        "",
        *arm_tables(arms, order, compared, "seconds"),
        "",
        *([*in_article_table(arms, order), ""] if "articles" in on else []),
        *_utility_table(arms, order),
        *_few_labels_table(lines, order),
        measured_with(lines[-1]),
    ]
    return "\n".join(parts)


def _realm(on: dict[str, Any]) -> str:
    """How both learned; what a line does not name was not there when it was measured."""
    of_bm25 = on.get("bm25_candidates")
    if of_bm25 is None:
        of_bm25 = (on["num_candidates"] - 1) // 2
    parts = [
        f"REALM: {on['max_steps']} steps of {on['batch_size']}",
        f"{on['masking']} masks",
        f"{on['num_candidates']} candidates, the null passage and {of_bm25} of BM25's among them",
        *(["the batch's others unread"] if on.get("in_batch_candidates") else []),
        *(["the encoder at rest"] if on.get("freeze_encoder") else []),
        f"towers at {on['retriever_learning_rate']:g}",
        f"refresh every {on['refresh_steps']} steps",
    ]
    return ", ".join(parts) + "."


def _measure(on: dict[str, Any]) -> str:
    if on["asked"].startswith(HELD_OUT_MASKS):
        return ", asked for what is masked"
    return ", asked of articles" if "articles" in on else ""


def _asked(on: dict[str, Any]) -> str:
    passages = f"{int(on['passages'].split()[0]):,} passages"
    if "articles" in on:
        return (
            f"{on['questions']:,} questions of {on['asked'].rpartition(' ')[0]}, linked to {on['articles']:,} "
            f"articles, asked of {passages}; recall of an answer."
        )
    if on["asked"].startswith(HELD_OUT_MASKS):
        return (
            f"{on['questions']:,} sentences that REALM never masked, one span masked, asked of {passages}, their own "
            "paragraph left out; recall of a passage that holds the span."
        )
    questions = f"{on['questions']:,} {on['asked'].split()[0]} questions"
    return f"{questions}, asked of {on['paragraphs']:,} paragraphs in {passages}."


def _utility_table(lines: list[Line], order: Sequence[str]) -> list[str]:
    """What a passage is worth at the end, held out: of the arms that read."""
    found = [line for line in lines if UTILITY[0] in line]
    if not found:
        return []
    parts = ["| arm, seed | utility, nats a span | loss, nats a span | null mass | entropy, nats |", "|---" * 5 + "|"]
    for line in sorted(found, key=lambda line: (order.index(line["arm"]), line["seed"])):
        figures = (f"{line[name]:.2f}" for name in UTILITY)
        parts.append(f"| {line['arm']}, {line['seed']} | {' | '.join(figures)} |")
    return [*parts, ""]


def _few_labels_table(lines: list[Line], order: Sequence[str]) -> list[str]:
    """Recall after fine-tuning on some train questions; means over seeds."""
    sums: dict[tuple[str, ...], list[Any]] = {}
    for line in sorted((line for line in lines if line["labels"]), key=lambda line: order.index(line["arm"])):
        names = (line["arm"], f"{line['labels']:,}", line["towers"], line["trained"])
        sums.setdefault(names, []).append(line["by_article"])
    if not sums:
        return []
    recalls = ("recall@1", "recall@5", "recall@20")
    parts = [f"| start | questions | trained | by | {' | '.join(recalls)} |", "|---" * 7 + "|"]
    for names, seeds in sums.items():
        parts.append(f"| {' | '.join(names)} | {' | '.join(shown(figure(seeds, each)) for each in recalls)} |")
    return [*parts, ""]
