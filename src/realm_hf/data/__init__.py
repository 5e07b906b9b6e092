"""Documents -> passages, sentences with their salient spans, questions; how answers are compared.

Names are imported when they are first used. What training needs beside them (masks, collators, taggers one by one) is
in the modules.
"""

from typing import TYPE_CHECKING

from realm_hf.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from realm_hf.data.documents import load_documents
    from realm_hf.data.passages.build import build_passages, passages_from_rows
    from realm_hf.data.passages.recurring import RecurringSpans, articles_of, find_recurring_spans
    from realm_hf.data.passages.store import NULL_PASSAGE, PassageStore
    from realm_hf.data.questions.gold import find_gold_rows
    from realm_hf.data.questions.load import OpenQAExample, load_questions
    from realm_hf.data.questions.matching import answer_tokens, contains_answer, exact_match, regex_match, token_f1
    from realm_hf.data.sentences.build import build_sentences
    from realm_hf.data.sentences.recurring import RecurringMasks, find_recurring_masks
    from realm_hf.data.sentences.store import SentenceStore
    from realm_hf.data.taggers.names import tagger_from_name
    from realm_hf.data.taggers.spans import Span, Tagger
    from realm_hf.models.cut_lengths import MAX_PASSAGE_LENGTH, MAX_QUERY_LENGTH

__all__ = [
    "MAX_PASSAGE_LENGTH",
    "MAX_QUERY_LENGTH",
    "NULL_PASSAGE",
    "OpenQAExample",
    "PassageStore",
    "RecurringMasks",
    "RecurringSpans",
    "SentenceStore",
    "Span",
    "Tagger",
    "answer_tokens",
    "articles_of",
    "build_passages",
    "build_sentences",
    "contains_answer",
    "exact_match",
    "find_gold_rows",
    "find_recurring_masks",
    "find_recurring_spans",
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
        # A cut length belongs to the models' configuration: the reader's input has a default made of it.
        ".models.cut_lengths": ["MAX_PASSAGE_LENGTH", "MAX_QUERY_LENGTH"],
        "documents": ["load_documents"],
        "passages.build": ["build_passages", "passages_from_rows"],
        "passages.recurring": ["RecurringSpans", "articles_of", "find_recurring_spans"],
        "passages.store": ["NULL_PASSAGE", "PassageStore"],
        "questions.gold": ["find_gold_rows"],
        "questions.load": ["OpenQAExample", "load_questions"],
        "questions.matching": ["answer_tokens", "contains_answer", "exact_match", "regex_match", "token_f1"],
        "sentences.build": ["build_sentences"],
        "sentences.recurring": ["RecurringMasks", "find_recurring_masks"],
        "sentences.store": ["SentenceStore"],
        "taggers.names": ["tagger_from_name"],
        "taggers.spans": ["Span", "Tagger"],
    },
)
