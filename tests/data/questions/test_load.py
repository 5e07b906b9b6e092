"""Questions come in from every benchmark's own columns, and a row that cannot be used is named."""

import json

import pytest
from datasets import Dataset

from realm_hf.data.questions.load import OpenQAExample, load_questions


def write_lines(folder, *rows):
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def test_json_lines_may_mix_a_string_a_list_and_a_mapping(tmp_path):
    path = write_lines(
        tmp_path,
        {"question": "who sings?", "answer": "Linda Davis"},
        {"question": "where?", "answer": ["Tunisia", "Tunisia", ""], "id": 77},
        {"question": "when?", "answers": {"text": ["1973", "October 1973"], "answer_start": [0, 3]}},
    )
    assert load_questions(path) == [
        OpenQAExample("who sings?", ("Linda Davis",), False, "0"),
        OpenQAExample("where?", ("Tunisia",), False, "77"),
        OpenQAExample("when?", ("1973", "October 1973"), False, "2"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_json_lines_end_at_line_feeds_and_nowhere_else(tmp_path, end):
    separators = "\u2028\u2029\x85\u000b\u000c\x1c"
    rows = [{"question": f"a{separators}b?", "answer": f"c{separators}d"}, {"question": "e?", "answer": "f"}]
    path = tmp_path / "questions.jsonl"
    # \v, \f and FS must be escaped in JSON, the others need not.
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    assert "\u2028".encode() in path.read_bytes() and "\x85".encode() in path.read_bytes()
    assert [(e.question, e.answers) for e in load_questions(path)] == [(r["question"], (r["answer"],)) for r in rows]
    path.write_bytes(path.read_bytes() + b"{")
    with pytest.raises(ValueError, match="line 3 is no JSON"):
        load_questions(path)


@pytest.fixture
def told(caplog):
    caplog.set_level("INFO", "realm_hf.data.questions.load")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_list_that_is_written_out_is_read_as_a_list_and_counted(told):
    written = ["['a', 'b']", " [\"the 'c'\"] ", "d", ["['e']"]]
    rows = [{"question": "?", "answer": answer} for answer in written]
    assert [e.answers for e in load_questions(rows)] == [("a", "b"), ("the 'c'",), ("d",), ("['e']",)]
    assert told() == [("INFO", "the given rows: 2 answers are written as lists and were read as such.")]


def test_an_answer_in_brackets_that_is_no_list_of_strings_is_left_alone_and_told(told):
    written = ["[Sandra Day O'Connor]", "['Ted Cruz', Beto O'Rourke]", "[1066]", "[" * 5000 + "]" * 5000]
    rows = [{"question": "?", "answer": answer} for answer in written]
    assert [e.answers for e in load_questions(rows)] == [(answer,) for answer in written]
    ((level, message),) = told()
    assert level == "WARNING" and "4 answers stand in brackets" in message and "Sandra" in message


def test_a_pattern_is_no_list(told):
    rows = [{"question": "?", "answer": "['a']", "regex": True}]
    assert load_questions(rows)[0].answers == ("['a']",) and told() == []


@pytest.mark.parametrize("kind", ["parquet", "csv", "dataset", "rows", "folder"])
def test_other_sources_give_the_same_questions(tmp_path, kind):
    rows = [{"question": f"what is {n}?", "answer": f"number {n}"} for n in range(3)]
    dataset = Dataset.from_list(rows)
    source = {"dataset": dataset, "rows": rows}.get(kind, tmp_path / f"questions.{kind}")
    if kind == "parquet":
        dataset.to_parquet(source)
    elif kind == "csv":
        dataset.to_csv(source)
    elif kind == "folder":
        dataset.save_to_disk(source)
    expected = [OpenQAExample(f"what is {n}?", (f"number {n}",), False, str(n)) for n in range(3)]
    assert load_questions(source) == expected


def test_squads_columns_in_a_dataset_are_read():
    rows = Dataset.from_dict({"question": ["q?"], "answers": [{"text": ["a", "b"], "answer_start": [1, 2]}]})
    assert load_questions(rows)[0].answers == ("a", "b")


def test_regular_expressions_are_marked_by_the_argument_or_by_the_row():
    rows = [{"question": "a?", "answer": r"\d+"}, {"question": "b?", "answer": "b", "regex": False}]
    assert [example.regex for example in load_questions(rows, regex=True)] == [True, False]
    assert [example.regex for example in load_questions(rows)] == [False, False]


def test_own_column_names_are_given():
    rows = [{"text": "a?", "gold": ["b"], "answer": "c"}]
    assert load_questions(rows, question_column="text", answer_column="gold")[0] == OpenQAExample("a?", ("b",), id="0")


def test_a_question_may_have_a_gold_passage_in_place_of_answers_where_that_is_allowed():
    row = {"question": "q", "passage": 7}
    (example,) = load_questions([row], gold_column="passage", need_answers=False)
    assert (example.answers, example.gold) == ((), (7,))
    (example,) = load_questions([{**row, "answer": ["", "a"]}], gold_column="passage", need_answers=False)
    assert example.answers == ("a",)
    with pytest.raises(ValueError, match="answers or answer are needed"):
        load_questions([row], gold_column="passage")
    with pytest.raises(ValueError, match="answers or answer are needed"):
        load_questions([{"question": "q", "passage": None}], gold_column="passage", need_answers=False)
    with pytest.raises(ValueError, match="holds no text"):
        load_questions([{"question": "q", "passage": None, "answer": ""}], gold_column="passage", need_answers=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a?", "answer": "b"}, r"row 1 has the columns \['answer', 'text'\]"),
        ({"question": "a?", "gold": "b"}, "answers or answer are needed"),
        ({"question": " ", "answer": "b"}, "row 1 has the question ' '"),
        ({"question": "a?", "answer": []}, r"row 1 \('a\?'\).*holds no text"),
        ({"question": "a?", "answer": None}, "holds no text"),
        ({"question": "a?", "answer": "[]"}, "holds no text"),
        ({"question": "a?", "answer": "(x", "regex": True}, r"row 1: the answer '\(x' is no valid regular"),
    ],
)
def test_unusable_row_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        load_questions([{"question": "fine?", "answer": "yes"}, row])


def test_damaged_line_missing_file_and_empty_source_are_told(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a?", "answer": "b"}\n{"question": \n')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        load_questions(path)
    path.write_text('["a?", "b"]\n')
    with pytest.raises(ValueError, match="line 1 holds a list"):
        load_questions(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no questions"):
        load_questions(path)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        load_questions(tmp_path / "none.jsonl")


def test_a_line_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes('{"question": "a", "answer": "b"}\n{"question": "caf\u00e9", "answer": "b"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2 is not UTF-8"):
        load_questions(path)
