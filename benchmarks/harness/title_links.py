"""Questions that name an article of a corpus which answers them: title-linked, without any label.

A question is linked to an article if

- the article's title, without what stands in parentheses, is in the question: as whole words, at most six of them, in
  any case; a single word of five letters or less is no name;
- an answer of the question is in the article's text, as whole words, in any case; answers of three characters or less
  do not count, for such numbers are everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.questions.matching import answer_tokens

_LONGEST_TITLE = 6  # words
_SHORTEST_ANSWER = 5  # characters, the spaces around it counted


class TitleLinks:
    """The articles of a corpus by their names.

    Args:
        articles: Text of each article by its title.
    """

    def __init__(self, articles: Mapping[str, str]):
        #: Texts as they are searched.
        self.bodies = {title: answer_tokens(text) for title, text in articles.items()}
        self._by_name: dict[str, list[str]] = {}
        for title in self.bodies:
            self._by_name.setdefault(_name(title), []).append(title)

    def named(self, text: str) -> list[str]:
        """Titles of the articles that a text names, in its order, the shorter of two names first."""
        return [title for run in _runs(answer_tokens(text).split()) for title in self._by_name.get(run, [])]

    def linked(self, question: str, answers: Sequence[str]) -> list[str]:
        """The articles that a question names and that hold one of its answers; titles, as [`named`] orders them."""
        looked_for = [answer_tokens(answer) for answer in long_enough(answers)]
        return [t for t in self.named(question) if any(answer in self.bodies[t] for answer in looked_for)]


@dataclass(frozen=True)
class LinkedQuestion:
    """A question with its article.

    Args:
        example: The question; of its answers those that are long enough to be looked for.
        title: Of the article: where several are linked, the one with the longest name.
    """

    example: OpenQAExample
    title: str


def linked_questions(examples: Iterable[OpenQAExample], links: TitleLinks) -> list[LinkedQuestion]:
    """Those of the questions that are linked to an article, each text once, in their order."""
    found: dict[str, LinkedQuestion] = {}
    for example in examples:
        titles = links.linked(example.question, example.answers)
        if titles and example.question not in found:
            asked = OpenQAExample(example.question, tuple(long_enough(example.answers)))
            longest = max(titles, key=lambda title: len(_name(title).split()))
            found[example.question] = LinkedQuestion(asked, longest)
    return list(found.values())


def long_enough(answers: Sequence[str]) -> list[str]:
    """The answers that are looked for."""
    return [answer for answer in answers if len(answer_tokens(answer)) > _SHORTEST_ANSWER]


def _name(title: str) -> str:
    return answer_tokens(re.sub(r"\(.*\)", "", title))


def _runs(words: list[str]) -> list[str]:
    """All runs of words that may be a name."""
    return [
        " " + " ".join(words[start:end]) + " "
        for start in range(len(words))
        for end in range(start + 1, min(len(words), start + _LONGEST_TITLE) + 1)
        if end - start > 1 or len(words[start]) > 5
    ]
