"""Documents -> passages, sentences with their salient spans, questions; how answers are compared.

Names are imported when they are first used. What training needs beside them (masks, collators, taggers one by one) is
in the modules.
"""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .answer_matching import answer_tokens, contains_answer, exact_match, regex_match, token_f1
    from .documents import load_documents
    from .factbook import FactbookQuestion, factbook_passages, factbook_questions, factbook_statements
    from .open_qa import OpenQAExample, load_questions
    from .passage_store import NULL_PASSAGE, PassageStore
    from .passages import build_passages, passages_from_rows
    from .salient_spans import tagger_from_name
    from .sentence_store import SentenceStore
    from .sentences import build_sentences
    from .spans import Span, Tagger

__all__ = [
    "NULL_PASSAGE",
    "FactbookQuestion",
    "OpenQAExample",
    "PassageStore",
    "SentenceStore",
    "Span",
    "Tagger",
    "answer_tokens",
    "build_passages",
    "build_sentences",
    "contains_answer",
    "exact_match",
    "factbook_passages",
    "factbook_questions",
    "factbook_statements",
    "load_documents",
    "load_questions",
    "passages_from_rows",
    "regex_match",
    "tagger_from_name",
    "token_f1",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "answer_matching": ["answer_tokens", "contains_answer", "exact_match", "regex_match", "token_f1"],
        "documents": ["load_documents"],
        "factbook": ["FactbookQuestion", "factbook_passages", "factbook_questions", "factbook_statements"],
        "open_qa": ["OpenQAExample", "load_questions"],
        "passage_store": ["NULL_PASSAGE", "PassageStore"],
        "passages": ["build_passages", "passages_from_rows"],
        "salient_spans": ["tagger_from_name"],
        "sentence_store": ["SentenceStore"],
        "sentences": ["build_sentences"],
        "spans": ["Span", "Tagger"],
    },
)
