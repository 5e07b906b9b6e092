"""A page that answers questions, shows what the answers rest on, and lets its visitors change the knowledge.

    pip install -e ".[app]"
    python examples/app.py                              # the small world of small_world.py
    python examples/app.py --model runs/qa/model        # a fine-tuned model with its retriever

It opens on http://127.0.0.1:7860, for this computer only. Every visitor edits a knowledge of his own: an edit lies
beside the corpus in memory and is gone with the visit. The page asks no other server for anything: no fonts, no
statistics.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

# Read when Gradio is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import transformers
from fastapi.middleware import Middleware

from realm_hf import Answer, Evidence, QuestionAnswerer, RealmForOpenQA, RealmRetriever

ADDRESS = "127.0.0.1"
TITLE = "REALM: ask, look behind the answer, change the knowledge"

CSS = """
.gradio-container { max-width: 60rem !important; margin: 0 auto !important; }
.answer { font-size: 1.6rem; font-weight: 600; }
.small { opacity: 0.7; font-size: 0.85rem; }
.passage { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 0.7rem 0.9rem;
           margin: 0.6rem 0; }
.passage.best { border-color: var(--primary-500); border-width: 2px; }
.passage p { margin: 0.4rem 0 0; overflow-wrap: anywhere; }
.passage mark { background: #fde68a; color: #1c1917; padding: 0 0.15em; border-radius: 3px; }
.passage.best mark { background: #86efac; }
.weights { display: grid; grid-template-columns: 9.5rem 1fr 3.6rem; gap: 0.15rem 0.6rem; align-items: center;
           font-size: 0.8rem; margin-top: 0.4rem; }
.bar { background: var(--border-color-primary); border-radius: 4px; height: 0.55rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--primary-500); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


class OwnServerOnly:
    """ASGI middleware: tells browsers to load nothing from other servers, such as the script that Gradio's page names.

    Args:
        app: The application behind it.
    """

    POLICY = (
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:"
    )

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Add the header to what the application answers."""

        async def with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", self.POLICY)]
            await send(message)

        await self.app(scope, receive, with_policy)


def answer_html(answer: Answer | None) -> str:
    """The answer with its probabilities. All texts are escaped."""
    if answer is None:
        return ""
    if answer.row is None:
        return '<div class="answer">No answer</div><div class="small">Nothing was asked, or nothing was found.</div>'
    return (
        f'<div class="answer">{escape(answer.shown)}</div><div class="small">from “{escape(answer.title)}”, passage '
        f"{answer.row} · probability of this span {answer.probability:.1%} · of all spans with these words "
        f"{answer.string_probability:.1%}</div>"
    )


def evidence_html(answer: Answer | None) -> str:
    """The passages that were read, their spans and weights, and the null passage's weight."""
    if answer is None or not answer.evidence:
        return ""
    blocks = [passage_html(passage, passage.row == answer.row) for passage in answer.evidence]
    null = answer.null_probability
    weight = weight_html("retriever", null) if null is not None else "unknown: the retriever has no passage tower"
    blocks.append(
        '<div class="passage null"><b>The null passage</b> <span class="small">what the retriever gives to no passage '
        f'at all; no answer stands in it</span><div class="weights">{weight}</div></div>'
    )
    return "\n".join(blocks)


def passage_html(passage: Evidence, best: bool) -> str:
    """One passage with its best span marked."""
    (start, end), text = passage.shown_span, passage.text
    marked = f"{escape(text[:start])}<mark>{escape(text[start:end])}</mark>{escape(text[end:])}"
    kind, title = "passage best" if best else "passage", escape(passage.title) or "(no title)"
    return (
        f'<div class="{kind}" data-row="{passage.row}"><b>{title}</b> '
        f'<span class="small">passage {passage.row}</span><p>{marked}</p><div class="weights">'
        f"{weight_html('retriever', passage.retrieval_probability)}{weight_html('answer', passage.share)}</div></div>"
    )


def weight_html(name: str, weight: float) -> str:
    """A bar for one probability."""
    words = {"retriever": "retriever, p(z|x)", "answer": "share of the answer"}[name]
    number = "&lt; 0.1%" if 0 < weight < 0.0005 else f"{weight:.1%}"
    return (
        f'<span>{words}</span><span class="bar"><i style="width:{100 * weight:.2f}%"></i></span>'
        f'<span class="number">{number}</span>'
    )


def knowledge_words(retriever: RealmRetriever) -> str:
    """How many passages there are, and what this visitor changed."""
    edits = retriever.edits
    changed = f"{edits.added} added, {edits.replaced} replaced, {edits.removed} removed"
    return (
        f"{len(retriever):,} passages. Yours: {changed}."
        if any(vars(edits).values())
        else f"{len(retriever):,} passages."
    )


class Visit:
    """What the page does for one visitor: his questions and his knowledge.

    Args:
        model: Query tower and reader, shared by all visitors.
        retriever: The knowledge; its edits reach nobody else.
    """

    def __init__(self, model: RealmForOpenQA, retriever: RealmRetriever):
        self.original = retriever
        self.answerer = QuestionAnswerer(model, retriever.snapshot())

    def ask(self, question: str) -> tuple[Answer | None, str]:
        """The answer, and a word about it."""
        if not question.strip():
            return None, "Ask something first."
        started = time.perf_counter()
        answer = self.answerer(question)[0]
        return answer, f"Answered in {1000 * (time.perf_counter() - started):.0f} ms."

    def add(self, title: str, text: str) -> str:
        """Add a passage."""
        row = self._retriever.add_passages(text, title)[0]
        return f"Added as passage {row}."

    def replace(self, row: float | None, title: str, text: str) -> str:
        """Give a passage another title and text."""
        self._retriever.replace_passages(_row(row), text, title)
        return f"Passage {_row(row)} replaced."

    def remove(self, row: float | None) -> str:
        """Remove a passage."""
        self._retriever.remove_passages(_row(row))
        return f"Passage {_row(row)} removed."

    def reset(self) -> str:
        """Forget all edits."""
        self.answerer = QuestionAnswerer(self.answerer.model, self.original.snapshot())
        return "The knowledge is what it was."

    @property
    def _retriever(self) -> RealmRetriever:
        return self.answerer.retriever

    @property
    def words(self) -> str:
        """See [`knowledge_words`]."""
        return knowledge_words(self._retriever)


def _row(row: float | None) -> int:
    if row is None or row != int(row):
        raise ValueError("Give the number of a passage: it stands beside its title.")
    return int(row)


def build_page(model: RealmForOpenQA, retriever: RealmRetriever, examples: Sequence[str] = ()) -> gr.Blocks:
    """The page.

    Args:
        model: Answers.
        retriever: What it knows, at first, for every visitor.
        examples: Questions to choose from.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        visit = gr.State(lambda: Visit(model, retriever))
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            question = gr.Textbox(label="Question", elem_id="question", scale=5, autofocus=True)
            ask = gr.Button("Ask", variant="primary", elem_id="ask", scale=1)
        if examples:
            gr.Examples([[example] for example in examples], [question], cache_examples=False)
        answered = gr.HTML(elem_id="answer")
        evidence = gr.HTML(elem_id="evidence")
        gr.Markdown("## Change the knowledge, and ask again")
        with gr.Row():
            row = gr.Number(label="Passage", elem_id="row", precision=0, minimum=0, scale=1)
            title = gr.Textbox(label="Title", elem_id="title", scale=3)
        text = gr.Textbox(label="Text", elem_id="text", lines=3)
        with gr.Row():
            replace = gr.Button("Replace", elem_id="replace")
            add = gr.Button("Add", elem_id="add")
            remove = gr.Button("Remove", elem_id="remove")
            reset = gr.Button("Undo all", elem_id="reset")
        status = gr.Markdown(f"{len(retriever):,} passages.", elem_id="status")

        def asked(visit: Visit, question: str) -> tuple[Any, ...]:
            answer, words = visit.ask(question)
            found = answer is not None and answer.row is not None
            filled = (answer.row, answer.title, visit.answerer.retriever.texts([answer.row])[0]) if found else ()
            return (
                answer_html(answer),
                evidence_html(answer),
                f"{words} {visit.words}",
                *(filled or (gr.skip(), gr.skip(), gr.skip())),
            )

        def edited(edit: Callable[..., str]) -> Callable[..., tuple[Any, ...]]:
            def change(visit: Visit, question: str, *fields: Any) -> tuple[Any, ...]:
                try:
                    words = edit(visit, *fields)
                except (ValueError, IndexError, TypeError) as error:
                    raise gr.Error(escape(str(error)), title="Not done", print_exception=False) from error
                answer = visit.ask(question)[0]
                return answer_html(answer), evidence_html(answer), f"{words} {visit.words}"

            return change

        shown = [answered, evidence, status]
        # One at a time: two visitors' questions would only share the cores.
        gr.on(
            [ask.click, question.submit], asked, [visit, question], [*shown, row, title, text], concurrency_id="model"
        )
        for button, edit, fields in (
            (replace, Visit.replace, [row, title, text]),
            (add, Visit.add, [title, text]),
            (remove, Visit.remove, [row]),
            (reset, Visit.reset, []),
        ):
            button.click(edited(edit), [visit, question, *fields], shown, concurrency_id="model")
    return page


def launch(page: gr.Blocks, port: int | None = None, **options: Any) -> Any:
    """Serve the page on this computer only, with system fonts and without a word to other servers."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
        # White on the theme's own orange is too pale to read for some.
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    return page.launch(
        server_name=ADDRESS,
        server_port=port,
        share=False,
        ssr_mode=False,
        theme=theme,
        css=CSS,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(OwnServerOnly)]},
        **options,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a fine-tuned model with its retriever (default: the small world's)")
    parser.add_argument("--retriever", help="the retriever, where it is not beside the model")
    parser.add_argument("--examples", nargs="*", default=[], help="questions to offer")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    if args.model is None:
        from small_world import QUESTIONS, TRAINED_TOWNS, make_towns, small_world

        args.model = small_world()
        towns = make_towns()[TRAINED_TOWNS:]
        args.examples = [forms[0].format(town=t.name) for t, forms in zip(towns, QUESTIONS.values(), strict=False)]
    retriever = RealmRetriever.from_pretrained(args.retriever or args.model)
    model = RealmForOpenQA.from_pretrained(args.model)
    launch(build_page(model, retriever, args.examples), args.port)


if __name__ == "__main__":
    main()
