"""The app, in a real browser: what a visitor sees, does and gets, and that nothing leaves this computer."""

import importlib
import sys

import pytest

pytest.importorskip("gradio", reason="the app needs gradio: pip install -e '.[app]'")

import torch
from chromium import AXE, NAMES, Browser, browser_path
from datasets import Dataset
from example_programs import EXAMPLES
from tiny_worlds import bag_of_words_start, tiny_model

from realm_hf import RealmForOpenQA, RealmRetriever
from realm_hf.data.passages.build import passages_from_rows
from realm_hf.generations.embedding import embed_passages
from realm_hf.qa.answerer import QuestionAnswerer

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(browser_path() is None, reason=f"no browser is installed (looked for {', '.join(NAMES)})"),
]

TOWNS = {
    "Altona": "Altona lies on the river. Its mayor is Erna.",
    "Bode": "Bode lies in the north. Its mayor is Karl.",
    "Cale": "Cale lies in the forest. Its mayor is Rosa.",
}
NASTY = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> ${6*7} {{6*7}} & `more`"


@pytest.fixture(scope="module")
def answerer(tokenizer, tmp_path_factory) -> QuestionAnswerer:
    rows = Dataset.from_dict({"title": list(TOWNS), "text": list(TOWNS.values())})
    # Room for NASTY as title and as text.
    store = passages_from_rows(rows, tokenizer, tmp_path_factory.mktemp("towns") / "store", max_length=128)
    towers = bag_of_words_start(tiny_model())
    retriever = RealmRetriever(
        store, tokenizer, embeddings=embed_passages(towers.embedder, store), embedder=towers.embedder
    )
    torch.manual_seed(0)
    return QuestionAnswerer(RealmForOpenQA.from_pretraining(towers, reader_beam_size=5), retriever)


@pytest.fixture(scope="module")
def address(answerer):
    sys.path.insert(0, str(EXAMPLES))
    try:
        app = importlib.import_module("app")
    finally:
        sys.path.remove(str(EXAMPLES))
    page = app.build_page(answerer.model, answerer.retriever, ["Who is the mayor of Bode?"])
    _, address, _ = app.launch(page, prevent_thread_lock=True, quiet=True)
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    page = browser.open(address)
    page.wait("!!document.querySelector('#question textarea')")
    page.wait("document.querySelector('#status').innerText.includes('passages')")
    yield page
    assert not page.errors()
    page.send("Page.close")


def ask(page, question: str) -> None:
    page.type("#question textarea", question)
    page.click("#ask")
    page.wait("document.querySelector('#status').innerText.includes('Answered')")


def passages(page) -> dict[str, str]:
    """Texts of the passages shown, by row."""
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#evidence .passage[data-row]')]"
        ".map(e => [e.dataset.row, e.querySelector('p').textContent]))"
    )


@pytest.mark.skipif(not AXE.is_file(), reason=f"axe-core is not there ({AXE}): npm pack axe-core")
def test_nothing_serious_is_found_at_a_desk_or_on_a_phone(page):
    ask(page, "Who is the mayor of Bode?")
    for width in (1100, 390):
        page.resize(width)
        assert page.faults() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_an_answer_is_shown_with_its_span_and_all_weights(page, answerer):
    expected = answerer("Who is the mayor of Bode?")[0]
    ask(page, "Who is the mayor of Bode?")
    assert page.text(".answer") == expected.shown
    assert f"{expected.probability:.1%}" in page.text("#answer") and expected.title in page.text("#answer")
    assert passages(page) == {str(passage.row): passage.text for passage in expected.evidence}
    assert page.texts("#evidence mark") == [e.text[slice(*e.shown_span)] for e in expected.evidence]
    assert page.text(".passage.best mark") == expected.shown
    numbers = page.texts("#evidence .number")
    weights = [w for e in expected.evidence for w in (e.retrieval_probability, e.share)]
    shown = [*weights, expected.null_probability]
    assert numbers == ["< 0.1%" if weight < 0.0005 else f"{weight:.1%}" for weight in shown]
    assert "null passage" in page.text("#evidence .null").lower()
    widths = page.evaluate("[...document.querySelectorAll('#evidence .bar i')].map(e => parseFloat(e.style.width))")
    assert widths == pytest.approx([100 * w for w in [*weights, expected.null_probability]], abs=0.01)
    # The passage of the answer is ready to be edited.
    assert page.evaluate("document.querySelector('#row input').value") == str(expected.row)
    assert page.evaluate("document.querySelector('#text textarea').value") == TOWNS[expected.title]


def test_enter_asks_and_an_offered_question_can_be_taken(page):
    offered = "[...document.body.querySelectorAll('*')].find(e => !e.children.length && e.innerText == '{}')"
    offered = offered.format("Who is the mayor of Bode?")
    page.wait(f"!!{offered}")
    page.evaluate(f"{offered}.click()")
    page.wait("document.querySelector('#question textarea').value.includes('Bode')")
    page.click("#question textarea")
    page.press_enter()
    page.wait("document.querySelector('#status').innerText.includes('Answered')")
    assert page.text(".answer")


def test_knowledge_is_replaced_added_removed_and_put_back(page, answerer):
    ask(page, "Who is the mayor of Bode?")
    page.type("#row input", "1")
    page.type("#title input, #title textarea", "Bode")
    page.type("#text textarea", "Bode lies in the north. Its mayor is Wilma Zander.")
    page.click("#replace")
    page.wait("document.querySelector('#status').innerText.includes('Passage 1 replaced')")
    assert "3 passages. Yours: 0 added, 1 replaced, 0 removed." in page.text("#status")
    assert passages(page)["1"] == "Bode lies in the north. Its mayor is Wilma Zander."
    mine = answerer.retriever.snapshot()
    mine.replace_passages(1, "Bode lies in the north. Its mayor is Wilma Zander.")
    assert page.text(".answer") == QuestionAnswerer(answerer.model, mine)("Who is the mayor of Bode?")[0].shown

    page.type("#title input, #title textarea", "Dorn")
    page.type("#text textarea", "Dorn is new.")
    page.click("#add")
    page.wait("document.querySelector('#status').innerText.includes('Added as passage 3')")
    assert passages(page)["3"] == "Dorn is new."

    page.type("#row input", "0")
    page.click("#remove")
    page.wait("document.querySelector('#status').innerText.includes('Passage 0 removed')")
    assert set(passages(page)) == {"1", "2", "3"}
    assert "Yours: 1 added, 1 replaced, 1 removed." in page.text("#status")

    page.click("#reset")
    page.wait("document.querySelector('#status').innerText.includes('what it was')")
    assert passages(page) == {str(row): text for row, text in enumerate(TOWNS.values())}


def test_a_visitor_does_not_see_anothers_edits(page, browser, address, answerer):
    ask(page, "Where is Cale?")
    page.type("#row input", "2")
    page.type("#text textarea", "Cale is gone.")
    page.click("#replace")
    page.wait("document.querySelector('#status').innerText.includes('Passage 2 replaced')")
    other = browser.open(address)
    other.wait("!!document.querySelector('#question textarea')")
    ask(other, "Where is Cale?")
    assert passages(other)["2"] == TOWNS["Cale"] and answerer.retriever.texts([2]) == [TOWNS["Cale"]]
    other.send("Page.close")


def test_what_is_refused_is_said(page):
    ask(page, "Where is Cale?")
    page.type("#row input", "77")
    page.click("#remove")
    page.wait("document.body.innerText.includes('row 77 is out of range: rows are 0 to 2')")
    page.type("#text textarea", " ")
    page.click("#add")
    page.wait("document.body.innerText.includes('holds nothing to read')")
    # What was said lies over the button until it goes.
    page.wait("!document.body.innerText.includes('holds nothing to read')")
    page.type("#question textarea", " ")
    page.click("#ask")
    page.wait("document.querySelector('#status').innerText.includes('Ask something first')")
    assert page.text(".answer") == ""


def test_text_is_text_and_no_markup(page):
    ask(page, "more")
    page.type("#title input, #title textarea", NASTY)
    page.type("#text textarea", NASTY)
    page.click("#add")
    page.wait("document.querySelector('#status').innerText.includes('Added as passage 3')")
    assert passages(page)["3"] == NASTY
    assert NASTY in page.text(".passage[data-row='3']")
    assert page.evaluate("window.hacked === undefined && !document.querySelector('#evidence img')")


def test_nothing_is_asked_of_other_servers(page, address):
    ask(page, "Who is the mayor of Altona?")
    requested = page.requested()
    assert len(requested) > 5  # it does record
    assert [url for url in requested if not url.startswith((address, "data:", "blob:", "about:"))] == []
    assert address.startswith("http://127.0.0.1:")
    fonts = page.evaluate("getComputedStyle(document.querySelector('#question textarea')).fontFamily")
    assert "system-ui" in fonts
