"""The report's tables: recall, step times, refreshes, and masked sentences with their passages."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from realm_hf.report.charts import short_number
from realm_hf.runs.records import RunRecord, stage_name

ANSWER_NAMES = {
    "realm": "fine-tuned",
    "shuffled_retrieval": "with another question's passages",
    "null_passage": "with the null passage alone",
    "majority": "the commonest answer",
}
EXAMPLE_FACTS = (("answer", "answer"), ("filling", "filled in"))
PASSAGE_CHARACTERS = 320
NO_TITLE = "(no title)"


class Markup(str):
    """A table cell that is HTML already, its text escaped by whoever made it."""

    __slots__ = ()


def table(head: Sequence[str], rows: Iterable[Sequence[str]], about: str = "", kind: str = "figures") -> str:
    """
    An HTML table. A cell of type [`Markup`] is taken as it is; every other one is text, and is escaped.

    Args:
        head (sequence of `str`): The columns' titles.
        rows (iterable of sequences): Their cells.
        about (`str`, *optional*): A line above the table, which stays where it is when the table is scrolled.
        kind (`str`, *optional*, defaults to `"figures"`): The table's class. One of figures does not break its lines,
            and is scrolled where the screen is narrow, by keyboard too.
    """
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    note = f'<p class="quiet">{escape(about)}</p>' if about else ""
    focus = ' tabindex="0"' if kind == "figures" else ""
    inner = f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return f'{note}<div class="scroll"{focus}><table class="{kind}">{inner}</table></div>'


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else f"<td>{escape(text)}</td>"


def plain(value: object) -> str:
    """A value of a file as text; nothing where it has none (`null`)."""
    return "" if value is None else str(value)


def bar(share: float, text: str) -> Markup:
    """A cell with a bar behind its text; `share` is the bar's length, from 0 to 1."""
    return Markup(f'<td class="bar" style="--share: {100 * min(max(share, 0.0), 1.0):.1f}%">{escape(text)}</td>')


def recall(record: RunRecord) -> str:
    """Recall@k of held-out questions at each stage, from `summary.json`."""
    stages = record.recall
    if not stages:
        return ""
    cutoffs = list(dict.fromkeys(cutoff for values in stages.values() for cutoff in values))
    rows = []
    for stage, values in stages.items():
        cells = [bar(values[k] / 100, f"{values[k]:.1f} %") if k in values else "" for k in cutoffs]
        rows.append([stage_name(stage), *cells])
    head = ["stage", *(f"recall@{cutoff}" for cutoff in cutoffs)]
    about = "share of the held-out questions whose passage is among the first k"
    return f'<h2>Retrieval</h2><div class="card">{table(head, rows, about)}</div>'


def answers(record: RunRecord) -> str:
    """Exact match of the questions that the fine-tuned model answered, beside its baselines, from `summary.json`."""
    matched: Mapping[str, float] = record.summary.get("exact_match") or {}
    if not matched:
        return ""
    rows = [[ANSWER_NAMES.get(name, name), bar(value / 100, f"{value:.1f} %")] for name, value in matched.items()]
    shown = table(["answers", "exact match"], rows, "of the held-out questions")
    return f'<h2>Answers</h2><div class="card">{shown}</div>'


def quantile(values: Sequence[float], share: float) -> float:
    """The value at `share` of the sorted `values`, interpolated linearly between neighbours."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def step_times(record: RunRecord) -> str:
    """Step time outside and during index builds, as the 50th and 99th percentile."""
    groups: dict[str, list[float]] = {"idle": [], "building an index": []}
    for step in record.steps:
        if isinstance(step.get("step_seconds"), int | float):
            groups["building an index" if step.get("building") else "idle"].append(float(step["step_seconds"]))
    rows = [
        [
            name,
            str(len(values)),
            *(f"{quantile(values, share):.3f} s" for share in (0.5, 0.99)),
            f"{max(values):.3f} s",
        ]
        for name, values in groups.items()
        if values
    ]
    if not rows:
        return ""
    return f'<h2>Step time</h2><div class="card">{table(["builder", "steps", "p50", "p99", "longest"], rows)}</div>'


# Figures of a refresh: (name in a swap event, heading)
REFRESH_COLUMNS = (
    ("snapshot_step", "snapshot"),
    ("swapped_at_step", "served from"),
    ("staleness_steps", "staleness then"),
    ("build_seconds", "build, s"),
    ("open_seconds", "opening, s"),
    ("churn", "churn"),
    ("stale_recall", "stale recall"),
    ("most_retrieved_share", "most retrieved"),
    ("builder_pid", "builder pid"),
)


def refreshes(record: RunRecord) -> str:
    """One row for each generation that was served, with what was measured at its swap."""
    rows = record.swaps()
    if not rows:
        return ""
    found = record.retrieval()
    rows = [{**row, **found.get(row.get("swapped_at_step", -1), {})} for row in rows]
    measured = dict.fromkeys(title for figures in found.values() for title in figures)
    known = [*REFRESH_COLUMNS, *((title, f"{title}, %") for title in measured)]
    columns = [(name, title) for name, title in known if any(row.get(name) is not None for row in rows)]
    cells = [
        [
            Markup(f"<td><code>{escape(plain(row.get('name')))}</code></td>"),
            *(_figure(name, row.get(name)) for name, _ in columns),
        ]
        for row in rows
    ]
    head = ["generation", *(title for _, title in columns)]
    about = (
        "staleness: steps since the snapshot; churn: share of the candidates that changed; stale recall: share of "
        "the new candidates that the old index finds; most retrieved: share of queries with the same best passage"
        + ("; recall and nDCG: of the questions, asked by the tower of that step" if measured else "")
    )
    return f'<h2>Index refreshes</h2><div class="card">{table(head, cells, about)}</div>'


def _figure(name: str, value: Any) -> str:
    if isinstance(value, int | float) and name != "builder_pid":
        return str(value) if isinstance(value, int) else short_number(value)
    return plain(value)


def examples(record: RunRecord) -> str:
    """Masked sentences, each with its candidates, their p(z|x) and their utility."""
    if not record.examples:
        return ""
    return "<h2>What it retrieves</h2>" + "".join(_example(example) for example in record.examples)


def _example(example: Mapping[str, Any]) -> str:
    rows = []
    for candidate in example.get("candidates", []):
        probability = float(candidate["probability"])
        utility = candidate.get("utility")
        rows.append(
            [
                bar(probability, f"{probability:.3f}"),
                "" if utility is None else f"{float(utility):+.2f}",
                _passage(candidate),
            ]
        )
    sentence = escape(plain(example["text"])).replace("[MASK]", "<mark>[MASK]</mark>")
    facts = [f"{name}: {example[key]}" for key, name in EXAMPLE_FACTS if key in example]
    answer = f'<p class="quiet">{escape("; ".join(facts))}</p>' if facts else ""
    candidates = table(["p(z|x)", "utility", "passage"], rows, kind="candidates")
    return f'<div class="card example"><p>{sentence}</p>{answer}{candidates}</div>'


def _passage(candidate: Mapping[str, Any]) -> Markup:
    title, text = plain(candidate.get("title")), plain(candidate.get("text"))
    if not title and not text:
        return Markup('<td class="quiet">null passage</td>')
    if len(text) > PASSAGE_CHARACTERS:
        text = text[:PASSAGE_CHARACTERS].rsplit(" ", 1)[0] + " ..."
    return Markup(f"<td><b>{escape(title or NO_TITLE)}</b> {escape(text)}</td>")
