"""The report's page: which sections there are, and the file they go into."""

from collections.abc import Callable
from pathlib import Path

from realm_hf.report.charts import Chart, draw, short_number
from realm_hf.report.document import document, tiles, write_page
from realm_hf.report.setup import settings, setup
from realm_hf.report.tables import answers, examples, recall, refreshes, step_times
from realm_hf.runs.records import RunRecord, read_run

# (name in the log, heading, how to read it, the axis starts at zero)
CURVES = (
    ("loss", "Loss", "-log p(y|x), nats a masked token (or a span)", False),
    ("retrieval_utility", "Retrieval utility", "log p(y|x) - log p(y|null,x), nats: above 0, passages help", True),
    ("null_mass", "Null mass", "probability that p(z|x) gives the null passage", True),
    ("entropy", "Entropy of p(z|x)", "nats; 0: one passage has everything", True),
    ("staleness_steps", "Staleness", "steps since the snapshot behind the served index", True),
    ("step_seconds", "Step time", "seconds", True),
    ("search_seconds", "Search time", "seconds a step", True),
    ("grad_norm", "Gradient norm", "before clipping", True),
    ("lr", "Learning rate", "of the optimizer step", True),
)

# What fine-tuning measures on held-out questions, as shares of 1: (name in the log, heading, how to read it)
ANSWERING = (
    ("exact_match", "Exact match", "of the held-out questions, percent"),
    ("answer_recall", "Answer in a passage read", "of the held-out questions, percent"),
)

# Noisy from step to step; a schedule or a count is not.
SMOOTHED = ("loss", "retrieval_utility", "null_mass", "entropy", "step_seconds", "search_seconds", "grad_norm")

_KINDS = {False: "REALM pre-training", True: "Fine-tuning on questions"}

KEY = """<p class="key quiet">
<span><svg viewBox="0 0 14 8"><line class="line" x1="0" x2="14" y1="4" y2="4"/></svg>training, running mean</span>
<span><svg viewBox="0 0 14 8"><line class="raw" x1="0" x2="14" y1="4" y2="4"/></svg>as measured, with its range</span>
<span><svg viewBox="0 0 14 8"><circle class="held-out" cx="7" cy="4" r="3.5"/></svg>held out</span>
<span><svg viewBox="0 0 14 8"><rect class="build" width="14" height="8"/></svg>an index is being built</span>
<span><svg viewBox="0 0 14 8"><line class="swap" x1="7" x2="7" y1="0" y2="8"/></svg>a new generation is served</span>
</p>"""


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """
    Write the report of a run, finished or not.

    Args:
        run_dir (`str` or `Path`): The run directory. `log.jsonl` must be there; `summary.json`, `run.json` and
            `examples.json` add sections.
        output (`str` or `Path`, *optional*, defaults to `report.html` in the run directory): The file to write;
            replaced in one step when it exists.

    Returns:
        `Path`: The file written.

    Raises:
        FileNotFoundError: None of a run's files is there.
        ValueError: The log holds no training record, or a file of the run is damaged.
    """
    record = read_run(run_dir)
    if not record.steps:
        raise ValueError(f"{record.root / 'log.jsonl'} holds no training record (one with `step` and `loss`) yet.")
    target = Path(output) if output is not None else record.root / "report.html"
    try:
        page = render(record)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"a file of {record.root} holds something else than a run writes ({type(error).__name__}: {error})."
        ) from error
    write_page(page, target)
    return target


def render(record: RunRecord) -> str:
    """The whole page; it refers to no other file and no address."""
    name = record.root.resolve().name
    sections: tuple[Callable[[RunRecord], str], ...] = (
        _tiles,
        setup,
        recall,
        answers,
        _curves,
        step_times,
        refreshes,
        examples,
        settings,
    )
    body = "\n".join(part for part in (section(record) for section in sections) if part)
    return document(f"{name}: REALM run", name, f"{_KINDS[record.answers_questions]}, reported by realm_hf", body)


def _tiles(record: RunRecord) -> str:
    last = record.steps[-1]
    figures = [("steps", short_number(float(last["step"])))]
    tail = max(1, len(record.steps) // 20)
    for name, label in (("loss", "loss"), ("retrieval_utility", "retrieval utility"), ("null_mass", "null mass")):
        values = [value for _, value in record.series(name)][-tail:]
        if values:
            figures.append(
                (f"{label}, last {len(values)} steps" if tail > 1 else label, _tile_number(sum(values) / len(values)))
            )
    for name, title, _ in ANSWERING:
        if measured := record.evaluation_series(name):
            figures.append(
                (f"{title.lower()}, held out, step {measured[-1][0]:,.0f}", f"{100 * measured[-1][1]:.1f} %")
            )
    figures.append(("index refreshes", str(len(record.swap_steps()))))
    seconds = sum(value for _, value in record.series("step_seconds"))
    if seconds:
        figures.append(("training time", f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"))
    return tiles(figures)


def _tile_number(value: float) -> str:
    """Without an exponent: what is that small is nothing to its reader."""
    return "< 0.001" if 0 < value < 0.001 else short_number(value)


def _curves(record: RunRecord) -> str:
    cards = [_measured_curve(record, title, note, points) for title, note, points in _measured(record)]
    for name, title, note, from_zero in CURVES:
        points = record.series(name)
        if not points or (name == "staleness_steps" and not record.trained_passage_tower):
            continue
        held_out = record.evaluation_series(name)
        smooth = name in SMOOTHED
        chart = Chart(title, note, points, held_out, record.build_intervals(), record.swap_steps(), from_zero, smooth)
        cards.append(f'<div class="card"><h3>{title}</h3><p class="quiet">{note}</p>{draw(chart)}</div>')
    return f'<h2>Curves</h2>\n{KEY}\n<div class="charts">{"".join(cards)}</div>'


def _measured(record: RunRecord) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """Heading, note and points, in percent, of what is measured on questions now and then."""
    answering = [
        (title, note, [(step, 100 * share) for step, share in record.evaluation_series(name)])
        for name, title, note in ANSWERING
    ]
    found = record.retrieval()
    retrieval = [
        (
            title,
            "of the questions over the served index, percent",
            [(float(step), figures[title]) for step, figures in found.items() if title in figures],
        )
        for title in dict.fromkeys(title for figures in found.values() for title in figures)
    ]
    return [curve for curve in (*answering, *retrieval) if curve[2]]


def _measured_curve(record: RunRecord, title: str, note: str, points: list[tuple[float, float]]) -> str:
    """A figure at each evaluation: between two of them nothing is known."""
    chart = Chart(title, note, points, points, record.build_intervals(), record.swap_steps(), from_zero=True)
    return f'<div class="card"><h3>{title}</h3><p class="quiet">{note}</p>{draw(chart)}</div>'
