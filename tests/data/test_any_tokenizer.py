"""The data of pre-training and of reading with tokenizers that are no WordPiece, or have another template."""

import re

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import FAMILIES, TEXT, save_encoder, train_tokenizer

from realm_hf import RealmEmbedder, embed_passages
from realm_hf.data import build_passages, build_sentences
from realm_hf.data.collators import InverseClozeCollator, PreTrainingCollator
from realm_hf.data.inverse_cloze import InverseClozeExample
from realm_hf.data.masked_lm import MaskedLMDataset
from realm_hf.data.masking import example_rng, mask_example
from realm_hf.data.passages.recurring import find_recurring_spans
from realm_hf.data.questions.answer_finder import AnswerFinder
from realm_hf.data.reader_batch import encode_questions, make_reader_batch
from realm_hf.data.taggers.spans import Span
from realm_hf.data.vocabulary import SpecialTokens, encode_texts
from realm_hf.data.word_edges import WordEdges
from realm_hf.qa.evidence import SpanTexts

every_family = pytest.mark.parametrize("family", FAMILIES)
TOKENIZERS = {family: train_tokenizer(family) for family in FAMILIES}
DOCUMENTS = [
    {"title": "Paris", "text": " ".join(TEXT[:3])},
    {"title": "Lakes (of America)", "text": " ".join(TEXT[3:])},
]


class Names:
    """Tags words that begin with a capital, and numbers."""

    fingerprint = "capitals-and-numbers"

    def __call__(self, texts):
        return [[Span(*m.span(), "X") for m in re.finditer(r"\b(?:[A-ZÅ]\w+|\d+)\b", text)] for text in texts]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    made = {}
    for family, tokenizer in TOKENIZERS.items():
        documents = Dataset.from_list(DOCUMENTS)
        passages = build_passages(documents, tokenizer, folder / family / "passages", max_length=64)
        sentences = build_sentences(
            documents, tokenizer, Names(), folder / family / "sentences", heldout_fraction=0, cache_dir=folder / family
        )
        made[family] = passages, sentences
    return made


def trimmed(array, mask):
    return [row[used.astype(bool)].tolist() for row, used in zip(np.asarray(array), np.asarray(mask), strict=True)]


@every_family
def test_inputs_are_in_the_tokenizers_own_template(stores, family):
    tokenizer, (passages, _) = TOKENIZERS[family], stores[family]
    special = passages.special_tokens
    assert special.separators == (2 if family in ("roberta", "mpnet") else 1)
    rows = np.arange(len(passages))
    texts = [passages.rows[int(row)] for row in rows]
    candidates = passages.pad_candidates(rows)
    of_store = trimmed(candidates["input_ids"], candidates["attention_mask"])
    assert [len(ids) for ids in of_store] == passages.lengths.tolist()
    assert of_store == [passages.candidate_ids(int(row)).tolist() for row in rows]
    pairs = [tokenizer(row["title"], row["text"])["input_ids"] for row in texts]
    assert of_store == pairs
    null = passages.pad_candidates(np.array([-1]))["input_ids"][0].tolist()
    assert null == [special.cls, *[special.sep] * special.separators, special.sep]

    question = encode_questions(["Where is it?"], tokenizer, special, 32)
    assert question[0].tolist() == tokenizer("Where is it?")["input_ids"]
    batch = make_reader_batch(
        question, np.array([[0]]), lambda r: (passages.body_tokens.values, *passages.body_extents(r)), special, 64
    )
    assert batch.input_ids[0].tolist() == tokenizer("Where is it?", texts[0]["text"])["input_ids"]
    assert batch.input_ids[batch.block_mask].tolist() == passages.body_ids(0).tolist()

    query = mask_example(
        question[0][1:-1], np.zeros((0, 2)), special_tokens=special, rng=example_rng(0, 0, 0), mode="uniform"
    )
    joint = PreTrainingCollator(passages, tokenizer)([(query, np.array([0]))])
    expected = [*query.input_ids, *[special.sep] * (special.separators - 1), *passages.body_ids(0), special.sep]
    assert trimmed(joint["joint_input_ids"][0], joint["joint_attention_mask"][0])[1] == expected
    segments = joint["joint_token_type_ids"][0, 1].bool().numpy()
    assert joint["joint_input_ids"][0, 1].numpy()[segments].tolist() == [*passages.body_ids(0), special.sep]

    example = InverseClozeExample(question[0][1:-1], 0, passages.title_ids(0), passages.body_ids(0), True)
    cloze = InverseClozeCollator(tokenizer)([example])
    assert cloze["passage_input_ids"][0].tolist() == of_store[0]
    assert cloze["passage_token_type_ids"][0].tolist() == candidates["token_type_ids"][0][: len(of_store[0])].tolist()


@every_family
def test_salient_spans_are_whole_words(stores, family):
    tokenizer, (_, sentences) = TOKENIZERS[family], stores[family]
    edges = WordEdges.of(tokenizer)
    found = 0
    for number in range(len(sentences)):
        sentence = sentences[number]
        text = sentence.text
        offsets = encode_texts(tokenizer, [text], return_offsets_mapping=True)["offset_mapping"][0]
        continues = edges.continues(np.asarray(sentence.input_ids, np.int64))
        tagged = {text[span.start : span.end] for span in Names()([text])[0]}
        for start, end in sentence.spans.tolist():
            assert text[offsets[start][0] : offsets[end - 1][1]] in tagged
            assert not continues[start] and (end == len(continues) or not continues[end])
            found += 1
        assert len(sentence.spans) == len(Names()([text])[0])
    assert found > 15


@every_family
def test_a_passage_that_contains_the_sentence_is_known(stores, family):
    passages, sentences = stores[family]
    rows = np.arange(len(passages))
    holding = 0
    for number in range(len(sentences)):
        sentence = sentences[number]
        holds = passages.contains(np.asarray(sentence.input_ids), rows)
        texts = [passages.rows[int(row)]["text"] for row in rows]
        assert holds.tolist() == [sentence.text in text for text in texts]
        holding += int(holds.sum())
    assert holding == len(sentences)


@every_family
def test_answers_are_found_as_whole_words_and_read_as_exact_slices(stores, family):
    tokenizer, (passages, _) = TOKENIZERS[family], stores[family]
    rows = np.arange(len(passages))
    texts = [passages.rows[int(row)]["text"] for row in rows]
    finder = AnswerFinder(passages, tokenizer)
    bodies = lambda some: (passages.body_tokens.values, *passages.body_extents(some))  # noqa: E731
    question = encode_questions(["Which?"], tokenizer, passages.special_tokens, 32)
    batch = make_reader_batch(question, rows[None], bodies, passages.special_tokens, 128)
    spans = SpanTexts(batch, texts, tokenizer)
    for answer in ("Paris", "Rouen", "through Paris", "Eiffel", "987", "330 metres", "Xolotlán", "6", "1868", "tower"):
        found = finder.find(rows, [answer])
        pattern = re.compile(rf"\b{answer}\b")
        assert len(found.start) == sum(len(pattern.findall(text)) for text in texts) > 0, answer
        for passage, start, end in zip(found.passage, found.start, found.end, strict=True):
            first, last = spans.characters(int(passage), *(int(batch.body_start[passage]) + at for at in (start, end)))
            assert texts[passage][first:last] == answer
    for inside in ("Par", "7!x", "33", "iffel", "owe", "eading"):
        assert not finder.find(rows, [inside]).has_answer.any()


@pytest.mark.parametrize("family", ["roberta", "deberta-v2", "modernbert"])
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("abcParisé 1987()-'.!ÅöИ\u0301\n"), max_size=40))
def test_edges_of_pieces_are_the_edges_of_words(family, text):
    """What the vocabulary says of a piece is what the characters around it say."""
    tokenizer = TOKENIZERS[family]
    encoded = encode_texts(tokenizer, [text], return_offsets_mapping=True)
    ids, offsets = np.array(encoded["input_ids"][0], np.int64), encoded["offset_mapping"][0]
    if tokenizer.unk_token_id in ids:
        return
    continues = WordEdges.of(tokenizer).continues(ids)
    word = re.compile(r"[^\W_]|\u0301")
    for piece in range(1, len(ids)):
        start, end = offsets[piece]
        before = offsets[piece - 1]
        same_letter = family != "deberta-v2" and start < before[1]
        joined = (
            start > 0 and start == before[1] and word.match(text[start - 1]) and word.match(text[start : start + 1])
        )
        assert bool(continues[piece]) == bool((joined or same_letter) and end > start), (text, piece)


@every_family
def test_pairs_for_reading_are_in_the_template_and_mask_whole_words(stores, family):
    tokenizer, (passages, _) = TOKENIZERS[family], stores[family]
    special = passages.special_tokens
    edges = WordEdges.of(tokenizer)
    dataset = MaskedLMDataset(passages, tokenizer, max_length=48)
    masked = 0
    for epoch in range(20):
        for index in range(len(dataset)):
            example = dataset.visit(index, epoch)
            original = example.input_ids.copy()
            original[example.positions] = example.labels
            assert (original[0], original[-1]) == (special.cls, special.sep)
            continues = edges.continues(original)
            hidden = np.zeros(len(original) + 1, bool)
            hidden[example.positions] = True
            inside = np.flatnonzero(continues)
            inside = inside[inside > 1]
            assert (hidden[inside] == hidden[inside - 1]).all()
            masked += len(example.positions)
    assert masked > 50
    spans = find_recurring_spans(passages, tokenizer, shortest=1)
    assert len(spans) >= 0


def test_of_bert_nothing_is_said_that_was_not_said_before(tokenizer):
    special = SpecialTokens.from_tokenizer(tokenizer)
    assert set(special.to_dict()) == {"pad", "cls", "sep", "mask"}
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    edges = WordEdges.of(tokenizer)
    ids = np.random.default_rng(0).integers(0, len(pieces), 500)
    assert edges.continues(ids).tolist() == [pieces[number].startswith("##") for number in ids]


@every_family
def test_texts_are_encoded_in_the_same_template_as_stored_passages(stores, family, tmp_path):
    passages, _ = stores[family]
    embedder = RealmEmbedder.from_encoders(embedder=save_encoder(tmp_path, family), retriever_proj_size=8)
    rows = list(passages.rows)
    encoded = embedder.encode(
        [r["text"] for r in rows], titles=[r["title"] for r in rows], tokenizer=TOKENIZERS[family]
    )
    np.testing.assert_allclose(encoded, embed_passages(embedder, passages), atol=1e-5)
