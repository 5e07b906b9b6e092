"""Which masks BM25's best passages answer, by hand on a few sentences."""

import sys
from pathlib import Path

from datasets import Dataset
from spans_by_hand import PASSAGES, WordTagger
from tiny_worlds import tiny_tokenizer

from realm_hf.data import build_sentences, find_recurring_masks, passages_from_rows
from realm_hf.knowledge.bm25 import build_bm25

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from harness.answered_masks import find_answered_masks

SENTENCES = {
    "Managua is the capital of Nicaragua.": ["Managua", "Nicaragua"],
    "They trade copper with Honduras.": ["copper", "Honduras"],
    "A lake.": ["lake"],
}


def test_a_mask_is_answered_where_the_best_passages_for_the_masked_sentence_hold_it(tmp_path):
    tokenizer = tiny_tokenizer()
    rows = Dataset.from_dict({"title": [""] * len(PASSAGES), "text": PASSAGES})
    passages = passages_from_rows(rows, tokenizer, tmp_path / "passages", max_length=96)
    options = {"heldout_fraction": 0.0, "cache_dir": tmp_path / "cache"}
    sentences = build_sentences(list(SENTENCES), tokenizer, WordTagger(SENTENCES), tmp_path / "sentences", **options)
    masks = find_recurring_masks(sentences, passages, tokenizer)
    bm25 = build_bm25(passages, tokenizer)

    def answered(room):
        found = find_answered_masks(masks, sentences, passages, bm25, depth=2, room=room)
        counts = {}
        for row, sentence in enumerate(sentences):
            counts |= dict(zip(SENTENCES[sentence.text], found.counts[found.offsets[row] :].tolist(), strict=False))
        return counts

    # Row 0 holds the first sentence and is left out. Of rows 1 and 3, found by "capital" and "Nicaragua", one says
    # "Managua"; row 3 alone is found by "Managua" and "capital", and Nicaragua is not in it. Without the lake there is
    # no word to look for.
    assert answered(60) == {"Managua": 1, "Nicaragua": 0, "copper": 1, "Honduras": 1, "lake": 0}
    assert answered(1)["Honduras"] == 0, "a span behind the end of the query is not masked"
