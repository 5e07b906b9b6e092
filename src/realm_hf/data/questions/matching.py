"""When a predicted string is a right answer, and when a passage holds one.

The rules are facts of the benchmarks, so they are followed to the letter rather than improved:

- *Exact match* (NaturalQuestions-open, WebQuestions, SQuAD-open; ORQA's evaluation): both strings in Unicode form NFD
  and lower case, without ASCII punctuation, without the words a, an, the, with single spaces; then equal.
- *Regex match* (CuratedTREC): the pattern matches at the **start** of the prediction as it is (`match`, not `search`:
  ORQA's and DrQA's readers), ignoring case, `^` and `$` at every line. What follows the match does not matter.
- *Token F1* (SQuAD): overlap of the words of both normalised strings, as multisets.
- *Containment* (recall by answer string; DrQA's and DPR's retrievers): the answer's tokens stand in the passage in the
  same order without a gap; or the pattern is found **anywhere** in it (`search`).

Patterns run in the `regex` package, whose results are `re`'s here, because it alone can stop a pattern that backtracks
without end: after `PATTERN_SECONDS` such a match raises a `TimeoutError`.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import regex  # type: ignore[import-untyped]

PATTERN_SECONDS = 5.0

_Found = TypeVar("_Found")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Letters with their marks and digits in one token; every other visible character by itself.
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_FLAGS = re.IGNORECASE | re.UNICODE | re.MULTILINE


def normalize_answer(text: str) -> str:
    """
    The form in which answers are compared by exact match and token F1 (ORQA's).

    Args:
        text (`str`): A prediction or an answer.

    Returns:
        `str`: `text` in form NFD and lower case, without the characters of `string.punctuation` and the words a, an,
        the, with one space between words. Can be empty: of "The", for one.
    """
    bare = unicodedata.normalize("NFD", text).lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def answer_tokens(text: str) -> str:
    """
    The form in which a passage is searched for an answer (DrQA's and DPR's).

    Args:
        text (`str`): A passage or an answer.

    Returns:
        `str`: The tokens of `text` in form NFD and lower case, one space before, between and after them, so that `in`
        finds whole tokens only: `answer_tokens(answer) in answer_tokens(passage)`. Punctuation is kept, each character
        a token. Without any token, a single space.
    """
    tokens = _TOKEN.findall(unicodedata.normalize("NFD", text))
    return " ".join(["", *tokens, ""]).lower() if tokens else " "


@lru_cache(maxsize=65_536)
def compile_pattern(pattern: str) -> Any:
    """
    A regular expression of CuratedTREC, compiled with the flags of the released evaluation.

    Args:
        pattern (`str`): The expression, in the syntax of Python's `re`.

    Returns:
        A compiled `regex.Pattern`; its methods take `timeout=` in seconds.

    Raises:
        ValueError: `pattern` is no valid expression. The released evaluation calls such a question wrong without a
            word; here a fault of the data is not counted against the model.
    """
    try:
        re.compile(pattern, _FLAGS)  # `regex` accepts more than `re`, which the benchmark was made with
        return regex.compile(pattern, _FLAGS)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"the answer {pattern!r} is no valid regular expression ({error}): correct it, or compare it as a string."
        ) from error


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """
    Whether the prediction equals one of the answers after normalisation.

    Args:
        prediction (`str`): The predicted string.
        answers (`Sequence[str]`): The right answers, at least one.

    Returns:
        `bool`: True if [`normalize_answer`] of the prediction is that of an answer.

    Raises:
        ValueError: `answers` is empty.
        TypeError: `answers` is a single string.
    """
    normalised = normalize_answer(prediction)
    return any(normalised == normalize_answer(answer) for answer in _checked(answers))


def regex_match(prediction: str, patterns: Sequence[str], *, timeout: float = PATTERN_SECONDS) -> bool:
    """
    Whether one of the patterns matches from the start of the prediction.

    Args:
        prediction (`str`): The predicted string; it is not normalised.
        patterns (`Sequence[str]`): Regular expressions, at least one.
        timeout (`float`, *optional*, defaults to 5.0): Seconds of computing that one pattern may take.

    Returns:
        `bool`: True if a pattern matches, as `re.match` with IGNORECASE, UNICODE and MULTILINE does.

    Raises:
        ValueError: `patterns` is empty, or one of them is no valid expression.
        TypeError: `patterns` is a single string.
        TimeoutError: a pattern backtracked for longer than `timeout`.
    """
    return any(_run(compile_pattern(pattern).match, prediction, timeout, bool) for pattern in _checked(patterns))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """
    The harmonic mean of precision and recall of the prediction's words, for the answer where it is largest.

    Args:
        prediction (`str`): The predicted string.
        answers (`Sequence[str]`): The right answers, at least one.

    Returns:
        `float`: From 0 to 1, and 1 wherever [`exact_match`] holds. Where prediction or answer is empty after
        normalisation, 1 if both are, else 0 (SQuAD 2.0's rule; SQuAD 1.1's gives 0 even for "The" against "The").

    Raises:
        ValueError: `answers` is empty.
        TypeError: `answers` is a single string.
    """
    predicted = normalize_answer(prediction).split()
    return max(_f1(predicted, normalize_answer(answer).split()) for answer in _checked(answers))


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """
    Whether a passage holds one of the answers as a run of whole tokens (recall by answer string).

    Articles and punctuation count here, unlike in [`exact_match`]: "the U.S." is not in "a US state".

    Args:
        text (`str`): The passage.
        answers (`Sequence[str]`): The right answers, at least one. One without any visible character is in no text (in
            DPR's code it is in all).

    Returns:
        `bool`: True if an answer's [`answer_tokens`] are among those of `text`.

    Raises:
        ValueError: `answers` is empty.
        TypeError: `answers` is a single string.
    """
    tokens = answer_tokens(text)
    wanted = (answer_tokens(answer) for answer in _checked(answers))
    return any(answer in tokens for answer in wanted if answer != " ")


def contains_regex(text: str, patterns: Sequence[str], *, timeout: float = PATTERN_SECONDS) -> bool:
    """
    Whether one of the patterns is found anywhere in a passage (recall by answer string for CuratedTREC).

    Args:
        text (`str`): The passage; it and the patterns are compared in form NFD.
        patterns (`Sequence[str]`): Regular expressions, at least one.
        timeout (`float`, *optional*, defaults to 5.0): Seconds of computing that one pattern may take.

    Returns:
        `bool`: True if a pattern is found, as `re.search` with IGNORECASE, UNICODE and MULTILINE does.

    Raises:
        ValueError: `patterns` is empty, or one of them is no valid expression.
        TypeError: `patterns` is a single string.
        TimeoutError: a pattern backtracked for longer than `timeout`.
    """
    decomposed = unicodedata.normalize("NFD", text)
    compiled = (compile_pattern(_decomposed(pattern)) for pattern in _checked(patterns))
    return any(_run(pattern.search, decomposed, timeout, bool) for pattern in compiled)


def answer_places(text: str, answers: Sequence[str], *, regex: bool = False) -> list[tuple[int, int]]:
    """
    Where a passage holds the answers, for people to look at.

    Args:
        text (`str`): The passage.
        answers (`Sequence[str]`): The right answers, or regular expressions, at least one.
        regex (`bool`, *optional*, defaults to `False`): The answers are regular expressions.

    Returns:
        `list[tuple[int, int]]`: First character and the one after the last, in order, without overlap: of two that
        overlap the one that begins first, and the longer one if both do. There is one exactly where
        [`contains_answer`] or [`contains_regex`] holds, except for an expression that matches nothing but emptiness.

    Raises:
        ValueError, TypeError, TimeoutError: As for [`contains_answer`] and [`contains_regex`].
    """
    decomposed = unicodedata.normalize("NFD", text)
    origin = [place for place, character in enumerate(text) for _ in unicodedata.normalize("NFD", character)]
    found: list[tuple[int, int]] = []
    if regex:
        for pattern in _checked(answers):
            matches = _run(compile_pattern(_decomposed(pattern)).finditer, decomposed, PATTERN_SECONDS, list)
            found += [match.span() for match in matches if match.end() > match.start()]
    else:
        spans = [match.span() for match in _TOKEN.finditer(decomposed)]
        tokens = [decomposed[start:end].lower() for start, end in spans]
        for answer in _checked(answers):
            wanted = answer_tokens(answer).split()
            for first in range(len(tokens) - len(wanted) + 1) if wanted else ():
                if tokens[first : first + len(wanted)] == wanted:
                    found.append((spans[first][0], spans[first + len(wanted) - 1][1]))
    places: list[tuple[int, int]] = []
    for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
        if not places or origin[start] >= places[-1][1]:
            places.append((origin[start], origin[end - 1] + 1))
    return places


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str):
        raise TypeError(f"answers must be a list of strings, but got the string {answers!r}: put it into a list.")
    if not answers:
        raise ValueError("there is no answer to compare with: give at least one, or leave the question out.")
    return answers


def _decomposed(pattern: str) -> str:
    r"""In form NFD, where CuratedTREC's `\ñ` would be a line break and a tilde: such escapes say nothing, and go."""
    plain = _ESCAPE.sub(lambda escape: escape[0] if escape[1].isascii() else escape[1], pattern)
    return unicodedata.normalize("NFD", plain)


def _run(method: Any, text: str, timeout: float, collect: Callable[[Any], _Found]) -> _Found:
    """A method of a compiled pattern, called on `text`; `collect` makes of its result what is wanted."""
    try:
        return collect(method(text, timeout=timeout))
    except TimeoutError:
        raise TimeoutError(
            f"the pattern {method.__self__.pattern!r} was not done with a text of {len(text):,} characters after "
            f"{timeout:g} seconds: it backtracks without end; rewrite it without nested repetitions."
        ) from None


def _f1(predicted: list[str], answer: list[str]) -> float:
    if not predicted or not answer:
        return float(predicted == answer)
    common = (Counter(predicted) & Counter(answer)).total()
    return 2 * common / (len(predicted) + len(answer))
