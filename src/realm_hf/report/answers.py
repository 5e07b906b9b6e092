"""The page of an evaluation: every question with its answer, the passages behind it, and where they hold the answer.

Like the run report it is made from files alone: `predictions.jsonl` and, if it is there, `metrics.json`. The filter is
radio buttons and style sheets, so that the page works where scripts are forbidden.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from realm_hf.report.document import document, tiles, write_page
from realm_hf.report.tables import NO_TITLE, Markup, bar, plain, table
from realm_hf.runs.records import parse_json

FILTERS = (
    ("all", "all"),
    ("right", "right"),
    ("wrong", "wrong"),
    ("misread", "wrong, though a passage holds an answer"),
    ("missed", "no passage holds an answer"),
)


def write_answer_report(
    directory: str | Path, output: str | Path | None = None, *, title: str | None = None, limit: int = 1000
) -> Path:
    """
    Write one HTML file with the figures and the questions of an evaluation.

    Args:
        directory (`str` or `Path`): Holds `predictions.jsonl`, and `metrics.json` for the figures above the questions.
        output (`str` or `Path`, *optional*, defaults to `answers.html` in the directory): The file to write; replaced
            in one step when it exists.
        title (`str`, *optional*, defaults to the directory's name): The heading.
        limit (`int`, *optional*, defaults to 1000): Questions shown; of more, as many are drawn at even distances, and
            the page says so.

    Returns:
        `Path`: The file written.

    Raises:
        FileNotFoundError: There is no `predictions.jsonl`.
        ValueError: It holds no prediction, or one of the files is damaged.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}: at least one question must be shown.")
    root = Path(directory)
    source = root / "predictions.jsonl"
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist: give the directory of an evaluation.")
    with source.open(encoding="utf-8") as file:
        predictions = [parse_json(line, f"{source}, line {number}") for number, line in enumerate(file, start=1)]
    if not predictions:
        raise ValueError(f"{source} holds no prediction.")
    metrics = root / "metrics.json"
    figures = parse_json(metrics.read_text(encoding="utf-8"), str(metrics)) if metrics.is_file() else {}
    target = Path(output) if output is not None else root / "answers.html"
    try:
        page = render(predictions, figures, title or root.resolve().name, limit)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{source} or {metrics} holds something else than an evaluation writes ({type(error).__name__}: {error}): "
            "evaluate again."
        ) from error
    write_page(page, target)
    return target


def render(predictions: Sequence[Mapping[str, Any]], figures: Mapping[str, Any], title: str, limit: int) -> str:
    """The whole page; it refers to no other file and no address."""
    shown = list(predictions)
    note = f"{len(shown):,} questions"
    if len(shown) > limit:
        shown = [shown[place * len(shown) // limit] for place in range(limit)]
        note = f"{limit:,} of {len(predictions):,} questions, drawn at even distances"
    counts = [sum(_belongs(prediction, name) for prediction in shown) for name, _ in FILTERS]
    filters = "".join(
        f'<input class="show" type="radio" name="show" id="show-{name}"{" checked" if name == "all" else ""}>'
        f'<label class="filter" for="show-{name}">{label} <span class="quiet">{count:,}</span></label>'
        for (name, label), count in zip(FILTERS, counts, strict=True)
    )
    questions = "\n".join(_question(prediction, place == 0) for place, prediction in enumerate(shown))
    body = (
        f"{_tiles(figures)}\n<h2>Questions</h2>\n"
        f'<p class="quiet">{note}. The answer is in <mark class="answer">colour</mark>, the best span of every other '
        'passage is <mark>pale</mark>, and right answers are <u class="place">underlined</u>.</p>\n'
        f'<section>{filters}<div class="questions">\n{questions}\n</div></section>'
    )
    about = "Open-domain question answering, reported by realm_hf"
    return document(f"{title}: answers", title, about, body, styles=("style.css", "answers.css"))


def _belongs(prediction: Mapping[str, Any], name: str) -> bool:
    right, held = bool(prediction.get("correct")), prediction.get("answer_rank") is not None
    members = {"all": True, "right": right, "wrong": not right, "misread": held and not right, "missed": not held}
    return members[name]


def _tiles(figures: Mapping[str, Any]) -> str:
    shares = [("exact_match", "exact or regex match"), ("token_f1", "token F1")]
    shown = [(label, f"{100 * figures[name]:.1f} %") for name, label in shares if figures.get(name) is not None]
    recall = figures.get("answer_recall") or {}
    shown += [(f"answer recall@{k}", f"{100 * share:.1f} %") for k, share in recall.items()]
    if figures.get("retrieval_utility") is not None:
        shown.append(("retrieval utility, points", f"{100 * figures['retrieval_utility']:+.1f}"))
    for name, label in (("latency_p50", "latency, p50"), ("latency_p99", "latency, p99")):
        if figures.get(name) is not None:
            shown.append((label, f"{1000 * figures[name]:.0f} ms"))
    if figures.get("questions_per_second") is not None:
        shown.append(("questions a second", f"{figures['questions_per_second']:.1f}"))
    return tiles(shown)


def _question(prediction: Mapping[str, Any], is_open: bool) -> str:
    right = bool(prediction.get("correct"))
    rank = prediction.get("answer_rank")
    said = plain(prediction.get("shown") or prediction["prediction"])
    given = f"<b>{escape(said)}</b>" if said else '<span class="quiet">no answer</span>'
    probability = prediction.get("probability")
    sure = f", p = {probability:.2f}" if said and probability is not None else ""
    wanted = ", ".join(map(str, prediction.get("answers", [])))
    kind = "expected, as a pattern" if prediction.get("regex") else "expected"
    found = f"Of the passages retrieved, number {escape(str(rank))} is the first to hold an answer."
    where = found if rank is not None else "No passage retrieved holds an answer."
    classes = f"question card {'right' if right else 'wrong'} {'missed' if rank is None else 'held'}"
    evidence = prediction.get("evidence", [])
    rows = [_passage(passage, prediction) for passage in evidence]
    shown = table(["share", "p(z|x)", "passage"], rows, kind="evidence") if rows else ""
    return (
        f'<details class="{classes}"{" open" if is_open else ""}><summary>'
        f'<span class="asked">{escape(plain(prediction["question"]))}</span>'
        f'<span class="said"><span class="verdict">{"✓ right" if right else "✗ wrong"}:</span> {given}'
        f'<span class="quiet">{sure}; {kind}: {escape(wanted)}</span></span></summary>'
        f'<p class="quiet">{where}</p>{shown}</details>'
    )


def _passage(passage: Mapping[str, Any], prediction: Mapping[str, Any]) -> list[str]:
    chosen = passage["row"] == prediction.get("row")
    source = prediction if chosen else passage
    span = tuple(source.get("shown_span") or (source["start_char"], source["end_char"]))
    text = highlighted(plain(passage["text"]), span, passage.get("answer_places", []), "answer" if chosen else "")
    share, retrieval = float(passage["share"]), float(passage["retrieval_probability"])
    title = escape(plain(passage["title"]) or NO_TITLE)
    return [bar(share, f"{share:.3f}"), bar(retrieval, f"{retrieval:.3f}"), Markup(f"<td><b>{title}</b> {text}</td>")]


def highlighted(text: str, span: tuple[int, int], places: Iterable[Sequence[int]], kind: str = "") -> str:
    """
    `text` as HTML.

    Args:
        text (`str`): A passage.
        span (`tuple[int, int]`): Characters that are marked; none if the two are equal.
        places (`Iterable`): Ranges of characters that are underlined; they may overlap the span.
        kind (`str`, *optional*): Class of the mark.
    """
    held = [(int(start), int(end)) for start, end in places]
    start, end = span
    before, inside, after = (_underlined(text, *part, held) for part in ((0, start), (start, end), (end, len(text))))
    name = f' class="{kind}"' if kind else ""
    return f"{before}<mark{name}>{inside}</mark>{after}" if inside else before + after


def _underlined(text: str, start: int, end: int, held: Sequence[tuple[int, int]]) -> str:
    """`text[start:end]` as HTML, what of it lies in `held` underlined."""
    parts, done = [], start
    for first, last in sorted(held):
        first, last = max(first, done), min(last, end)
        if first < last:
            parts.append(f'{escape(text[done:first])}<u class="place">{escape(text[first:last])}</u>')
            done = last
    return "".join(parts) + escape(text[done:end])
