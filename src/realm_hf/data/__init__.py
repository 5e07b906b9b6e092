"""Documents -> passages, salient spans, masked sentences and batches."""

from .collators import InverseClozeCollator, PreTrainingCollator
from .documents import load_documents
from .inverse_cloze import InverseClozeDataset, InverseClozeExample, in_batch_accuracy, split_rows
from .masking import MaskedQuery, Skip, example_rng, mask_example
from .passages import NULL_PASSAGE, PassageStore, build_passages, passages_from_rows
from .sentence_splitter import split_sentences
from .vocabulary import SpecialTokens, tokenizer_fingerprint

__all__ = [
    "NULL_PASSAGE",
    "InverseClozeCollator",
    "InverseClozeDataset",
    "InverseClozeExample",
    "MaskedQuery",
    "PassageStore",
    "PreTrainingCollator",
    "Skip",
    "SpecialTokens",
    "build_passages",
    "example_rng",
    "in_batch_accuracy",
    "load_documents",
    "mask_example",
    "passages_from_rows",
    "split_rows",
    "split_sentences",
    "tokenizer_fingerprint",
]
