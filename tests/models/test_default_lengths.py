"""Where texts are cut by default: one constant each for queries and passages, and every default follows from it."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import realm_hf
from realm_hf import QuestionAnswerer, RealmConfig
from realm_hf.data import MAX_PASSAGE_LENGTH, MAX_QUERY_LENGTH, build_passages, build_sentences, passages_from_rows
from realm_hf.data.collators import InverseClozeCollator, PreTrainingCollator
from realm_hf.data.masking import mask_example
from realm_hf.training import (
    InverseClozeTrainingArguments,
    OpenQATrainingArguments,
    RealmTrainingArguments,
    RetrievalQuestions,
)

SOURCE = Path(realm_hf.__file__).parent
ROOT = SOURCE.parents[1]
USERS = [
    (RealmTrainingArguments, "max_query_length", MAX_QUERY_LENGTH),
    (RealmTrainingArguments, "max_candidate_length", MAX_PASSAGE_LENGTH),
    (InverseClozeTrainingArguments, "max_query_length", MAX_QUERY_LENGTH),
    (OpenQATrainingArguments, "max_query_length", MAX_QUERY_LENGTH),
    (PreTrainingCollator, "max_query_length", MAX_QUERY_LENGTH),
    (PreTrainingCollator, "max_candidate_length", MAX_PASSAGE_LENGTH),
    (InverseClozeCollator, "max_query_length", MAX_QUERY_LENGTH),
    (InverseClozeCollator, "max_candidate_length", MAX_PASSAGE_LENGTH),
    (QuestionAnswerer, "max_question_length", MAX_QUERY_LENGTH),
    (build_passages, "max_length", MAX_PASSAGE_LENGTH),
    (passages_from_rows, "max_length", MAX_PASSAGE_LENGTH),
    (build_sentences, "max_query_length", MAX_QUERY_LENGTH),
    (mask_example, "max_query_length", MAX_QUERY_LENGTH),
    (RetrievalQuestions, "max_length", MAX_QUERY_LENGTH),
]


def default_of(user, name):
    if dataclasses.is_dataclass(user):
        return {field.name: field.default for field in dataclasses.fields(user)}[name]
    return inspect.signature(user).parameters[name].default


@pytest.mark.parametrize(("user", "name", "length"), USERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_default_is_the_constant(user, name, length):
    assert default_of(user, name) == length


def test_the_lengths_are_the_papers_and_the_readers_input_holds_a_passage_and_a_question():
    assert (MAX_QUERY_LENGTH, MAX_PASSAGE_LENGTH) == (64, 288)
    assert RealmConfig().reader_seq_len == MAX_PASSAGE_LENGTH + 32


@pytest.mark.parametrize("folder", [SOURCE, ROOT / "examples"], ids=["src", "examples"])
def test_no_default_is_written_as_a_number(folder):
    lengths = "|".join(map(str, (MAX_QUERY_LENGTH, MAX_PASSAGE_LENGTH)))
    pattern = rf"_length\b[^\n=]*= *(?:field\(\s*default=)?(?:{lengths})\b"
    found = [str(path) for path in sorted(folder.rglob("*.py")) if re.search(pattern, path.read_text())]
    # The demo chooses the length of its own queries.
    assert found == [str(path) for path in [ROOT / "examples" / "demo.py"] if path.is_relative_to(folder)]
