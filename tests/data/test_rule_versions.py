"""Whoever changes the answers of the rules raises their version: cached sentences and tags are looked up by it.

`ANSWERS` holds a hash of what each version answers to the sample. It is a hash of answers and not of source: files may
be moved and renamed, and rules be written more clearly.
"""

import hashlib
import json
from collections.abc import Iterable
from types import ModuleType

import pytest
from tiny_worlds import FIXTURES

from realm_hf.data import splitter
from realm_hf.data.common_words import COMMON_ENDINGS
from realm_hf.data.splitter import SPLITTER_VERSION, split_sentences
from realm_hf.data.taggers import rules
from realm_hf.data.taggers.dates import DateTagger
from realm_hf.data.taggers.rules import RuleTagger

# Never change a line: add one. What was cached under an earlier version must not be found for a later one.
ANSWERS = {
    "dates-9321ec8ba8e2d6c9": "16730f42fb7d9ac3",
    "rules-394e4e74e8b045bc": "9c76c30c87b41acd",
    "sentences-4257d7dde37d9323": "0c1c9f0bcf5b7fef",
}


def lists_in(module: ModuleType) -> list[str]:
    """Every word in the lists of a rule: whoever adds or removes one changes the sample, too."""
    lists = [value for value in vars(module).values() if isinstance(value, frozenset)]
    return sorted({word for words in lists for word in words})


def sample(words: Iterable[str] = ()) -> list[str]:
    """Real prose; what is made up so that every branch of the patterns decides something; words in their places."""
    lines = (FIXTURES / "countries.jsonl").read_text(encoding="utf-8").splitlines()
    made_up = json.loads((FIXTURES / "rule_sample.json").read_text(encoding="utf-8"))
    texts = [json.loads(line)["text"] for line in lines] + made_up["prose"] + ["\n\n".join(made_up["prose"])]
    for date in made_up["dates"]:
        texts.append(f"It began on {date} and {date.capitalize()}, ended.")
    for month in made_up["months"]:
        texts.append(f"In 3 {month} 1914, {month} 1914, 3 {month}, {month} 3 and {month} it came.")
    for unit in made_up["units"]:
        texts.append(f"It had 1914 {unit}, 2,500 {unit} and 3.5 {unit}.")
    for word in words:
        texts.append(f"{word.capitalize()} left. {word.capitalize()} Paris. A {word} of {word} Egypt {word} Rome.")
        texts.append(f"He saw {word}. Smith and {word.capitalize()}. 5 then {word}. The end. {word}. so.")
    return texts


def splits(texts: list[str]) -> list[list[tuple[int, int]]]:
    return [split_sentences(text) for text in texts]


@pytest.mark.parametrize(
    ("version", "answers", "words", "constant"),
    [
        (DateTagger.fingerprint, DateTagger(), [], "DATES_VERSION"),
        (RuleTagger.fingerprint, RuleTagger(), [*lists_in(rules), *COMMON_ENDINGS], "RULES_VERSION"),
        (f"sentences-{SPLITTER_VERSION}", splits, lists_in(splitter), "SPLITTER_VERSION"),
    ],
    ids=["dates", "rules", "sentences"],
)
def test_other_answers_have_another_version(version, answers, words, constant):
    found = hashlib.sha256(json.dumps(answers(sample(words))).encode()).hexdigest()[:16]

    assert version in ANSWERS, f"{version} is new: add to ANSWERS the line {version!r}: {found!r}"
    assert ANSWERS[version] == found, (
        f"The answers to the sample are not those of {version}. If that is meant, raise {constant} and add a line to "
        "ANSWERS, or what was cached under the old version is taken for the new. If only the sample was changed, put "
        "it back."
    )


def test_the_sample_has_spans_of_every_kind_and_many_sentences():
    found = [span.label for spans in RuleTagger()(sample()) for span in spans]

    assert all(found.count(label) > 200 for label in ("ENTITY", "DATE", "QUANTITY"))
    assert sum(map(len, splits(sample()))) > 500
