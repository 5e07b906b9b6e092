"""Sentence boundaries: the ordinary ones, and the full stops that are none."""

import pytest

from realm_hf.data.splitter import split_sentences


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rained. We left.", ["It rained.", "We left."]),
        ("Was it so? Yes! Then go.", ["Was it so?", "Yes!", "Then go."]),
        ("He met Dr. Smith and Mrs. Jones. They left.", ["He met Dr. Smith and Mrs. Jones.", "They left."]),
        ("J. R. R. Tolkien wrote it. He was old.", ["J. R. R. Tolkien wrote it.", "He was old."]),
        ("It is 3.5 km long. See Fig. 5 and No. 7 there.", ["It is 3.5 km long.", "See Fig. 5 and No. 7 there."]),
        ("He said no. Then he left.", ["He said no.", "Then he left."]),
        ("The U.S. Army came. It left the U.S. The end.", ["The U.S. Army came.", "It left the U.S.", "The end."]),
        ("It was World War I. The cost was high.", ["It was World War I.", "The cost was high."]),
        (
            "At 5 p.m. on Jan. 3 it began. At 6 p.m. He came.",
            ["At 5 p.m. on Jan. 3 it began.", "At 6 p.m.", "He came."],
        ),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ('She asked "Why?" and left.', ['She asked "Why?" and left.']),
        ("It grew ... and then stopped. Well.", ["It grew ... and then stopped.", "Well."]),
        ("Many things, e.g. the sea, i.e. water. Done.", ["Many things, e.g. the sea, i.e. water.", "Done."]),
        ("1. First item. 2. Second item.", ["1. First item.", "2. Second item."]),
        ("A heading\n\nThe text. And\nmore of it.", ["A heading", "The text.", "And\nmore of it."]),
        ("no full stop at all", ["no full stop at all"]),
        ("  \n\n ", []),
        ("", []),
    ],
)
def test_boundaries(text, expected):
    assert sentences(text) == expected


def test_spans_cover_all_but_white_space_in_order():
    text = "  One. Two (three)!  \n\n Four? «Five.» Six e.g. seven. "
    spans = split_sentences(text)
    outside = text
    for start, end in reversed(spans):
        assert text[start:end] == text[start:end].strip() != ""
        outside = outside[:start] + outside[end:]
    assert outside.strip() == ""
    assert spans == sorted(spans)
