"""Scores of made-up pairs by the reference implementations: writes tests/fixtures/reference_scores.jsonl.

    python tests/data/make_reference_scores.py --orqa eval_utils.py --squad squad_metrics.py \
        --dpr qa_validation.py --dpr_tokenizers tokenizers.py

- google-research/language at 208f8523, language/orqa/utils/eval_utils.py: exact match, regex match
- facebookresearch/DPR at 10ca7200, dpr/data/qa_validation.py and dpr/utils/tokenizers.py: passages that hold answers
- transformers 4.57.6, transformers/data/metrics/squad_metrics.py: token F1

Their functions are taken out of the files, so that what these import need not be installed.
"""

import argparse
import ast
import importlib
import json
import logging
import random
import unicodedata
from pathlib import Path
from types import SimpleNamespace

OUTPUT = Path(__file__).parents[1] / "fixtures" / "reference_scores.jsonl"

NAMES = [
    *("Beyoncé", "Guðrún Ósvífursdóttir", "St. John's", "O'Neill", "the Beatles", "The The", "A-ha", "Côte d'Ivoire"),
    *("U.S.", "US", "Łódź", "İzmir", "ΟΔΥΣΣΕΥΣ", "Straße", "naïve art", "Ångström", "fiancé", "mid-1990s", "1,000"),
    *("1000", "3.5 million", "$20", "50 %", "100°C", "July 4 , 1776", "4 July 1776", "581 ( second edition )", "½"),
    *("“Guernica”", "Guernica", "an apple a day", "AN", "a", "the", "A.", "No. 5", "n/a", "H2O", "C++", "C#", "AC/DC"),
    *("² ³", "٣٤", "東京", "Москва", "e.g. this", "rock 'n' roll", "semi-final", "semi\u2010final", "x≠y", "the end"),
    *("to be or not to be", "be to or", "end", "Tab\there", "two\nlines", "...", "à la carte"),
]

# A pattern, and two strings that it was made for.
PATTERNS = [
    (r"Feb(ruary)?\.?\s+2", "February 2", "FEB. 2"),
    (r"(19)?68|sixty-eight", "1968", "sixty-eight"),
    (r"\b1,?000\b", "1,000", "1000"),
    (r"(5,?778|6,?000)\s*K", "5778K", "6,000 K"),
    (r"New\s?York|NYC", "New York", "newyork"),
    (r"^Ohio$", "Ohio", "first\nOhio"),
    (r"Guð?r[uú]n", "Guðrún", "Gurun"),
    (r"Beyonc(é|e)", "Beyoncé", "beyonce"),
    (r"U\.?S\.?(A\.?)?", "U.S.A.", "us"),
    (r"(?:Mt\.?|Mount)\s+Everest", "Mt. Everest", "Mount  Everest"),
    (r"colou?r", "color", "COLOUR"),
    (r"[3-5] (m|met(er|re)s?)", "4 metres", "3 m"),
    (r".*river", "the long river", "RIVER"),
    (r"(?i)rome", "Rome", "rome"),
    (r"Jan\.?|1st month", "Jan", "1st month"),
    (r"straße", "Straße", "straße"),
    (r"50\s*(%|per\s*cent)", "50%", "50 per cent"),
    (r"\d{4}", "1984", "٣٤٥٦"),
    (r"(John|J\.)\s(F\.\s)?Kennedy", "J. F. Kennedy", "John Kennedy"),
    (r"a|b\b", "a", "bc"),
    (r"", "", "anything"),
    (r"(the )?(United )?Kingdom", "the United Kingdom", "kingdom"),
    (r"wo(man|men)", "woman", "Women"),
    (r"x{2,3}", "xx", "xxxx"),
    (r"caf[eé]s?", "cafés", "cafe"),
    (r"(unclosed", "unclosed", "(unclosed"),
    (r"*star", "star", "*star"),
]


def functions_of(path: Path) -> SimpleNamespace:
    """The functions and classes of a file, with those of its imports that are installed."""
    space: dict[str, object] = {"logger": logging.getLogger("reference")}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            exec(compile(ast.Module([node], []), str(path), "exec"), space)
        elif isinstance(node, ast.Import):
            for name in node.names:
                try:
                    space[name.asname or name.name] = importlib.import_module(name.name)
                except ModuleNotFoundError:
                    continue
    return SimpleNamespace(**space)


def variants(text: str, other: str) -> list[str]:
    """What a model might have said instead."""
    return [
        text,
        text.upper(),
        text.lower(),
        f"the {text}",
        f"{text}.",
        f" {text}  ",
        f"'{text}'",
        text.replace(" ", "  "),
        text.replace("-", " "),
        unicodedata.normalize("NFD", text),
        unicodedata.normalize("NFC", text),
        text[:-1],
        text[1:],
        f"{text} and {other}",
        f"so {text}",
        f"first\n{text}",
        other,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("orqa", "squad", "dpr", "dpr_tokenizers"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    orqa, squad, dpr = functions_of(args.orqa), functions_of(args.squad), functions_of(args.dpr)
    tokenizer = functions_of(args.dpr_tokenizers).SimpleTokenizer()
    choose = random.Random(0)

    rows = []
    for name in NAMES:
        for text in variants(name, choose.choice(NAMES)):
            answers = [*choose.sample(NAMES, choose.choice([0, 0, 1, 3])), name]
            # The reference's F1 knows no NFD; in that form, both have the same words.
            decomposed = [unicodedata.normalize("NFD", string) for string in (text, *answers)]
            rows.append(
                {
                    "text": text,
                    "answers": answers,
                    "exact_match": bool(orqa.is_correct(answers, text, False)),
                    "token_f1": max(float(squad.compute_f1(answer, decomposed[0])) for answer in decomposed[1:]),
                    "contains": dpr.has_answer(answers, f"It is {text}, they say.", tokenizer, "string"),
                }
            )
    for pattern, *examples in PATTERNS:
        for text in examples:
            rows += [
                {
                    "text": said,
                    "patterns": [pattern],
                    "regex_match": bool(orqa.is_correct([pattern], said, True)),
                    "contains": dpr.has_answer([pattern], f"It is {said}, they say.", tokenizer, "regex"),
                }
                for said in variants(text, choose.choice(NAMES)) + choose.sample(NAMES, 10)
            ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    OUTPUT.write_text("".join(lines), encoding="utf-8")
    print(len(lines), "pairs;", sum("patterns" in row for row in rows), "of them with patterns")


if __name__ == "__main__":
    main()
