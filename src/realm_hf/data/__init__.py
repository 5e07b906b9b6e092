"""Documents -> passages, salient spans, masked sentences and batches."""

from .answers import AnswerFinder, AnswerSpans
from .collators import InverseClozeCollator, PreTrainingCollator
from .documents import load_documents
from .inverse_cloze import InverseClozeDataset, InverseClozeExample, split_rows
from .masking import MaskedQuery, Skip, example_rng, mask_example
from .open_qa import OpenQAExample, load_questions
from .passages import NULL_PASSAGE, PassageStore, build_passages, passages_from_rows
from .salient_spans import (
    CombinedTagger,
    DateTagger,
    HubTagger,
    RuleTagger,
    SpacyTagger,
    Span,
    Tagger,
    merge_spans,
    tagger_from_name,
)
from .sentence_splitter import split_sentences
from .sentences import Sentence, SentenceStore, build_sentences
from .vocabulary import SpecialTokens, tokenizer_fingerprint

__all__ = [
    "NULL_PASSAGE",
    "AnswerFinder",
    "AnswerSpans",
    "CombinedTagger",
    "DateTagger",
    "HubTagger",
    "InverseClozeCollator",
    "InverseClozeDataset",
    "InverseClozeExample",
    "MaskedQuery",
    "OpenQAExample",
    "PassageStore",
    "PreTrainingCollator",
    "RuleTagger",
    "Sentence",
    "SentenceStore",
    "Skip",
    "SpacyTagger",
    "Span",
    "SpecialTokens",
    "Tagger",
    "build_passages",
    "build_sentences",
    "example_rng",
    "load_documents",
    "load_questions",
    "mask_example",
    "merge_spans",
    "passages_from_rows",
    "split_rows",
    "split_sentences",
    "tagger_from_name",
    "tokenizer_fingerprint",
]
