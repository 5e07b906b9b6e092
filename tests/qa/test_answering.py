"""Questions to answers: what is exact, what adds up, and what happens with odd questions and corpora."""

import json
import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_answerers import tiny_answerer
from tiny_worlds import tiny_tokenizer

from realm_hf import RealmTokenizer
from realm_hf.data.passages.build import build_passages, passages_from_rows
from realm_hf.data.questions.matching import normalize_answer
from realm_hf.models.losses import relevance_scores
from realm_hf.models.modeling_outputs import SpanScores
from realm_hf.models.reading import ReadBeam
from realm_hf.qa import evidence
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.qa.best_spans import best_spans
from realm_hf.qa.evidence import SpanTexts, align_characters
from realm_hf.retriever.retriever import RealmRetriever

QUESTIONS = [
    "How many people has the island number 8?",
    "Where does the river lie?",
    "Which city has 45 people",
    "What is in the north?",
    "road",
]


@pytest.fixture(scope="module")
def answerer(tiny_passages) -> QuestionAnswerer:
    return tiny_answerer(tiny_passages)


def store_of(texts, folder, **options):
    rows = Dataset.from_dict({"title": [f"Page {number}" for number in range(len(texts))], "text": texts})
    return passages_from_rows(rows, tiny_tokenizer(), folder / "store", **{"max_length": 64, **options})


def assert_same(found, expected):
    """Answers are equal up to the last digits of their numbers, which depend on the shapes of matrix products."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ("question", "text", "row", "title", "start_char", "end_char", "best_string"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("probability", "string_probability", "score", "null_probability"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4), name
        assert [passage.row for passage in one.evidence] == [passage.row for passage in other.evidence]
        assert [e.share for e in one.evidence] == pytest.approx([e.share for e in other.evidence], abs=1e-4)


def test_many_questions_are_counted_in_a_bar_and_a_single_batch_is_not(answerer, monkeypatch):
    made = []

    @contextmanager
    def bar(total, doing, unit, is_shown):
        seen = []
        made.append((total, doing, unit, is_shown, seen))
        yield SimpleNamespace(update=seen.append)

    monkeypatch.setattr("realm_hf.qa.answerer.progress_bar", bar)
    answerer(QUESTIONS, batch_size=2)
    answerer(QUESTIONS[:2], batch_size=2)
    answerer.read(QUESTIONS, answerer.retrieve(QUESTIONS, batch_size=3).batch.rows, batch_size=4)
    assert made == [
        (5, "answering", "questions", None, [2, 2, 1]),
        (2, "answering", "questions", False, [2]),
        (5, "searching", "questions", None, [3, 2]),
        (5, "reading", "questions", None, [4, 1]),
    ]


# What an answer is


def test_texts_are_exact_slices_of_their_passages(answerer, tiny_passages):
    for answer in answerer(QUESTIONS):
        assert answer.text and tiny_passages.text(answer.row)[answer.start_char : answer.end_char] == answer.text
        assert answer.title == tiny_passages.title(answer.row)
        for passage in answer.evidence:
            assert passage.text == tiny_passages.text(passage.row) and passage.title == tiny_passages.title(
                passage.row
            )
            assert passage.best_span and passage.text[passage.start_char : passage.end_char] == passage.best_span


def test_the_answer_is_the_best_span_of_all_passages(answerer):
    for answer in answerer(QUESTIONS):
        best = max(answer.evidence, key=lambda passage: passage.span_probability)
        assert (best.row, best.best_span, best.start_char) == (answer.row, answer.text, answer.start_char)
        assert best.span_probability == pytest.approx(answer.probability)


def test_shares_add_up_and_come_largest_first(answerer):
    for answer in answerer(QUESTIONS):
        shares = [passage.share for passage in answer.evidence]
        assert shares == sorted(shares, reverse=True) and math.isclose(sum(shares), 1, abs_tol=1e-9)
        assert all(passage.span_probability <= passage.share for passage in answer.evidence)
        assert answer.probability <= answer.string_probability + 1e-12 <= 1 + 1e-9


def test_probabilities_equal_those_of_a_loop_over_all_spans(answerer, tiny_passages):
    model, retriever, tokenizer = answerer.model, answerer.retriever, answerer.tokenizer
    for answer in answerer(QUESTIONS):
        ids = np.array(tokenizer(answer.question)["input_ids"])
        with torch.no_grad():
            question = model.embed_questions(torch.from_numpy(ids)[None])
        rows = retriever.retrieve(question, 5, null_passage=False).rows
        spans = []
        for row in rows[0]:
            read = retriever.reader_batch([ids], np.array([[row]]), 128)
            with torch.no_grad():
                scores = model.reader.score_spans(**read.tensors())
            relevance = 0.25 * float(question[0] @ torch.from_numpy(retriever.embeddings[row]))
            text = tiny_passages.text(int(row))
            offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            for logit, start, end in zip(scores.logits, scores.start, scores.end, strict=True):
                first, last = int(start - read.body_start[0]), int(end - read.body_start[0])
                string = text[offsets[first][0] : offsets[last][1]]
                spans.append((float(logit) + relevance, int(row), string))
        logits = np.array([logit for logit, _, _ in spans])
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = int(logits.argmax())
        assert (answer.row, answer.text) == spans[best][1:]
        assert answer.score == pytest.approx(logits[best], abs=1e-4)
        assert answer.probability == pytest.approx(probabilities[best], abs=1e-5)
        sums: dict[str, float] = {}
        for probability, (_, _, string) in zip(probabilities, spans, strict=True):
            sums[normalize_answer(string)] = sums.get(normalize_answer(string), 0) + probability
        left_out = 1e-3 * len(spans) / 100
        assert answer.string_probability == pytest.approx(sums[normalize_answer(answer.text)], abs=left_out)
        for passage in answer.evidence:
            share = sum(p for p, (_, row, _) in zip(probabilities, spans, strict=True) if row == passage.row)
            assert passage.share == pytest.approx(share, abs=1e-5)


def test_retrieval_probabilities_are_the_softmax_over_the_beam(answerer):
    found = answerer.retrieve(QUESTIONS)
    stored = torch.from_numpy(answerer.retriever.beam_embeddings(found.batch.rows))
    expected = torch.softmax(relevance_scores(found.embeddings, stored, 0.25), -1).numpy()
    for number, answer in enumerate(answerer(QUESTIONS)):
        assert answer.null_probability is None
        by_row = {passage.row: passage.retrieval_probability for passage in answer.evidence}
        assert [by_row[row] for row in found.batch.rows[number]] == pytest.approx(expected[number], abs=1e-5)


def test_the_null_passage_takes_part_where_the_passage_tower_is_known(tiny_passages):
    answerer = tiny_answerer(tiny_passages)
    without = answerer(QUESTIONS)
    answerer.retriever.embedder = answerer.model.embedder.eval()
    for one, other in zip(answerer(QUESTIONS), without, strict=True):
        total = one.null_probability + sum(passage.retrieval_probability for passage in one.evidence)
        assert 0 < one.null_probability < 1 and total == pytest.approx(1)
        # The odds between passages stay, and so does all that the reader says.
        for passage, before in zip(one.evidence, other.evidence, strict=True):
            kept = passage.retrieval_probability / (1 - one.null_probability)
            assert kept == pytest.approx(before.retrieval_probability, abs=1e-6)
        assert (one.text, one.probability) == (other.text, other.probability)


def test_no_probability_rests_on_compressed_scores(tiny_passages, answerer):
    compressed = tiny_answerer(tiny_passages, "SQ4")
    rows = [[passage.row for passage in answer.evidence] for answer in answerer(QUESTIONS, top_k=48)]
    assert_same(compressed(QUESTIONS, top_k=48), answerer(QUESTIONS, top_k=48))
    assert len(rows[0]) == 48


def test_without_stored_embeddings_the_scores_of_the_index_serve(tiny_passages, answerer):
    bare = RealmRetriever(tiny_passages, tiny_tokenizer(), index=answerer.retriever.index)
    assert_same(QuestionAnswerer(answerer.model, bare)(QUESTIONS), answerer(QUESTIONS))


def test_an_answer_is_ready_for_json(answerer):
    answer, nothing = (answer.to_dict() for answer in answerer([QUESTIONS[0], ""]))
    assert json.loads(json.dumps([answer, nothing], allow_nan=False))[0]["evidence"][0]["text"]
    assert nothing["score"] is None and nothing["row"] is None and nothing["evidence"] == []


# Batches


@pytest.mark.parametrize("count", [1, 2, 33, 256])
def test_a_question_gets_the_same_answer_alone_and_in_any_batch(answerer, count):
    rng = np.random.default_rng(count)
    words = ["island", "number", "people", "north", "road", "harbour", "how", "many", "?", "7", "lies"]
    questions = [" ".join(rng.choice(words, rng.integers(1, 20))) for _ in range(count)]
    together = answerer(questions, batch_size=256)
    assert [answer.question for answer in together] == questions
    assert_same(answerer(questions, batch_size=10), together)
    for number in (0, count // 2, count - 1):
        assert_same(answerer(questions[number]), [together[number]])


def test_odd_questions_share_one_call_with_others(answerer):
    odd = ["", "word " * 2000, "x" * 10_000, "🙂🙃 ꙮ", "ما هي عاصمة نيكاراغوا؟", "מה בירת ניקרגואה?", QUESTIONS[0]]
    alone = [answerer(question)[0] for question in odd]
    together = answerer((odd * 37)[:256], batch_size=256)
    assert_same(together, (alone * 37)[:256])
    assert sum(answer.row is None for answer in together) == 37


def test_equal_questions_get_equal_answers(answerer):
    first, *others = answerer([QUESTIONS[0]] * 9)
    assert_same(others, [first] * 8)


def test_one_search_answers_a_batch(answerer):
    before = answerer.retriever.search_stats.queries
    calls = []
    original = answerer.retriever.retrieve
    answerer.retriever.retrieve = lambda *args, **options: calls.append(1) or original(*args, **options)
    try:
        answerer(QUESTIONS * 10, batch_size=25)
    finally:
        del answerer.retriever.retrieve
    assert len(calls) == 2 and answerer.retriever.search_stats.queries == before + 50


def test_no_question_is_no_answer(answerer):
    assert answerer([]) == []
    with pytest.raises(ValueError, match="at least one"):
        answerer.retrieve([])


def test_retrieved_rows_are_those_that_are_read(answerer):
    found = answerer.retrieve([*QUESTIONS, ""], top_k=7, batch_size=2)
    assert found.batch.rows.shape == (6, 7) and found.embeddings.shape == (6, 16) and len(found.question_ids) == 6
    assert (found.batch.rows[-1] == -2).all()
    for rows, answer in zip(found.batch.rows, answerer([*QUESTIONS, ""], top_k=7), strict=True):
        assert sorted(passage.row for passage in answer.evidence) == sorted(rows[rows >= 0])


# Given passages


def test_given_passages_are_read_as_retrieved_ones_are(answerer):
    rows = answerer.retrieve(QUESTIONS).batch.rows
    assert_same(answerer.read(QUESTIONS, rows, batch_size=2), answerer(QUESTIONS))
    other = answerer.read(QUESTIONS, rows[::-1])
    assert [{e.row for e in answer.evidence} for answer in other] == [set(each) - {-2} for each in rows[::-1].tolist()]


def test_no_answer_stands_in_the_null_passage(answerer):
    nothing = answerer.read(QUESTIONS, np.full((len(QUESTIONS), 1), -1))
    assert [(answer.text, answer.evidence) for answer in nothing] == [("", ())] * len(QUESTIONS)


def test_passages_for_other_questions_than_those_asked_are_refused(answerer):
    with pytest.raises(ValueError, match=r"give \[5, K\]"):
        answerer.read(QUESTIONS, np.zeros((1, 2), int))


# Odd questions


@pytest.mark.parametrize("question", ["", "   ", "\n\t", "\x00\x01", "\u200b"])
def test_a_question_without_a_wordpiece_has_no_answer(answerer, question):
    asked, nothing, after = answerer([QUESTIONS[0], question, QUESTIONS[1]])
    assert (nothing.question, nothing.text, nothing.row, nothing.evidence) == (question, "", None, ())
    assert nothing.probability == 0 and nothing.score == -math.inf
    assert_same([asked, after], answerer(QUESTIONS[:2]))


@pytest.mark.parametrize(
    "question",
    [
        "word " * 2000,
        "x" * 10_000,
        "🙂🙃 ∑∮ ꙮ",
        "日本の首都はどこですか",
        "ما هي عاصمة نيكاراغوا؟",
        "מה בירת ניקרגואה?",
        "\u202eWhere?\u202c",
        "cut \ud83d here",
        "[SEP] [CLS] [MASK] [PAD]",
        "a\nb\rc\x00d",
        "e\u0301\u0301\u0301" * 300,
    ],
    ids=[
        "long",
        "one word",
        "emoji",
        "kana",
        "arabic",
        "hebrew",
        "override",
        "surrogate",
        "tokens",
        "control",
        "marks",
    ],
)
def test_any_other_string_is_answered(answerer, tiny_passages, question):
    (answer,) = answerer(question)
    assert answer.question == question and len(answer.evidence) == 5
    assert tiny_passages.text(answer.row)[answer.start_char : answer.end_char] == answer.text != ""
    assert_same(answerer([QUESTIONS[0], question, "?"])[1:2], [answer])


def test_special_tokens_in_a_question_are_characters(answerer):
    (ids,) = answerer.retrieve("[SEP] [MASK]").question_ids
    assert (ids == answerer.tokenizer.sep_token_id).sum() == 1 and answerer.tokenizer.mask_token_id not in ids


def test_a_long_question_is_cut_and_keeps_its_end_mark(answerer):
    (ids,) = answerer.retrieve("word " * 2000).question_ids
    assert len(ids) == 64 and ids[-1] == answerer.tokenizer.sep_token_id
    short = QuestionAnswerer(answerer.model, max_question_length=8)
    (cut,) = short.retrieve("one two three four five six seven").question_ids
    assert cut.tolist() == answerer.tokenizer("one two three four five six")["input_ids"]


@pytest.mark.parametrize("questions", [[None], ["a", 7], [["a"]], [b"a"]])
def test_what_is_no_string_is_refused(answerer, questions):
    with pytest.raises(TypeError, match="questions must be strings"):
        answerer(questions)


@pytest.mark.parametrize(("option", "value"), [("top_k", 0), ("top_k", -1), ("batch_size", 0)])
def test_counts_below_one_are_refused(answerer, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        answerer("a", **{option: value})


# Odd corpora


def test_k_beyond_the_corpus_reads_the_corpus(answerer):
    for answer in answerer(QUESTIONS, top_k=1000):
        assert len(answer.evidence) == 48
        assert sum(passage.share for passage in answer.evidence) == pytest.approx(1)
        assert sum(passage.retrieval_probability for passage in answer.evidence) == pytest.approx(1)


def test_a_corpus_of_one_passage(tmp_path):
    answerer = tiny_answerer(store_of(["The capital of Nicaragua is Managua."], tmp_path))
    answers = answerer(["What is the capital?", "", "x"], top_k=5)
    assert [answer.row for answer in answers] == [0, None, 0]
    assert [passage.retrieval_probability for passage in answers[0].evidence] == [1.0]
    assert answers[0].evidence[0].share == pytest.approx(1)


@pytest.mark.parametrize("top_k", [1, 5000])
def test_a_corpus_of_one_passage_answers_a_whole_batch(tmp_path, top_k):
    answerer = tiny_answerer(store_of(["The capital of Nicaragua is Managua."], tmp_path))
    answerer.retriever.embedder = answerer.model.embedder.eval()
    answers = answerer(QUESTIONS * 51 + ["x" * 10_000], top_k=top_k)
    assert len(answers) == 256 and {answer.row for answer in answers} == {0}
    for answer in answers:
        (passage,) = answer.evidence
        assert passage.share == pytest.approx(1)
        assert passage.retrieval_probability + answer.null_probability == pytest.approx(1)


def test_passages_of_one_text_are_read_once(tmp_path):
    text = "Copper is the main export."
    answers = tiny_answerer(store_of([text, text.upper(), text, "Rice grows here."], tmp_path))(["What is exported?"])
    assert sorted(passage.row == 3 for passage in answers[0].evidence) == [False, True]


def test_passages_without_text_hold_no_answer(answerer):
    dataset = Dataset.from_dict({"text": ["", ""], "duplicate_group": [0, 1]})
    retriever = RealmRetriever(dataset, tiny_tokenizer(), embeddings=np.ones((2, 16), np.float32))
    (answer,) = QuestionAnswerer(answerer.model, retriever)("Where?")
    assert (answer.text, answer.row, answer.score) == ("", None, -math.inf)
    assert [(passage.best_span, passage.share) for passage in answer.evidence] == [("", 0), ("", 0)]


def test_a_dataset_is_read_like_its_store(answerer, tiny_passages):
    rows = tiny_passages.rows
    dataset = Dataset.from_dict({"title": rows["title"][:], "text": rows["text"][:]})
    plain = RealmRetriever(dataset, tiny_tokenizer(), embeddings=answerer.retriever.embeddings)
    assert_same(QuestionAnswerer(answerer.model, plain)(QUESTIONS), answerer(QUESTIONS))


def test_passages_longer_than_the_readers_input_are_cut(tiny_passages):
    answerer = tiny_answerer(tiny_passages, reader_seq_len=16, max_position_embeddings=64)
    for answer in answerer([*QUESTIONS, "word " * 100]):
        assert tiny_passages.text(answer.row)[answer.start_char : answer.end_char] == answer.text != ""


# Characters


def test_offsets_are_those_of_the_text_as_it_was_written(tmp_path):
    text = "São Paulo\u2019s CAFÉ — “ﬁrst” in İstanbul,\n日本 and\u00a0the U.S.A.;  مدينة 🙂 ends."
    answerer = tiny_answerer(store_of([text], tmp_path))
    ids = np.array(answerer.tokenizer("Where?")["input_ids"])
    read = answerer.retriever.reader_batch([ids], np.array([[0]]), 128)
    characters = SpanTexts(read, answerer.retriever.texts([0]), answerer.tokenizer).characters
    positions = np.flatnonzero(read.block_mask[0])
    slices = [characters(0, position, position) for position in positions]
    assert all(0 <= start < end <= len(text) for start, end in slices) and slices == sorted(slices)
    assert characters(0, positions[0], positions[-1]) == (0, len(text))
    # The slice of a span of whole words gives the span's wordpieces again.
    for first, last in [(0, 0), (0, 5), (3, 9), (7, 19)]:
        start, end = characters(0, positions[first], positions[last])
        around = text[max(0, start - 1) : start] + text[end : end + 1]
        if not any(character.isalnum() for character in around):
            again = answerer.tokenizer(text[start:end], add_special_tokens=False)["input_ids"]
            assert again == read.input_ids[0, positions[first] : positions[last] + 1].tolist()
    words = {text[start:end] for start, end in slices}
    assert {"日", "本", "مدينة", "🙂", "—", ";"} <= words


def test_spans_of_whole_words_in_real_text_give_their_wordpieces_again(countries):
    tokenizer = tiny_tokenizer()
    retriever = RealmRetriever(countries, tokenizer)
    ids = np.array(tokenizer("Where?")["input_ids"])
    rows = np.arange(0, len(countries), 4)
    read = retriever.reader_batch([ids] * len(rows), rows[:, None], 128)
    texts = retriever.texts(rows)
    characters = SpanTexts(read, texts, tokenizer).characters
    checked = 0
    rng = np.random.default_rng(0)
    for pair, text in enumerate(texts):
        body = np.flatnonzero(read.block_mask[pair])
        for _ in range(20):
            first = int(rng.choice(body))
            last = min(first + int(rng.integers(0, 10)), int(body[-1]))
            start, end = characters(pair, first, last)
            pieces = tokenizer.convert_ids_to_tokens(read.input_ids[pair, first : last + 2].tolist())
            if pieces[0].startswith("##") or pieces[-1].startswith("##"):
                continue  # an edge in the middle of a word
            again = tokenizer(text[start:end], add_special_tokens=False)["input_ids"]
            assert again == read.input_ids[pair, first : last + 1].tolist()
            checked += 1
    assert checked > 200


def test_a_word_that_was_cut_inside_is_aligned(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(evidence.logger, "warning_once", warnings.append)
    documents = Dataset.from_dict({"title": [""], "text": ["qxzvkjwyqxzvkjwyqxzvkjwy ends here now."]})
    passages = build_passages(documents, tiny_tokenizer(), tmp_path / "store", max_length=12)
    row = next(row for row in range(len(passages)) if passages.text(row) == "zvkjwy ends here")
    tokenizer = tiny_tokenizer()
    assert tokenizer.convert_ids_to_tokens(passages.body_ids(row).tolist())[0] == "##z"
    read = RealmRetriever(passages, tokenizer).reader_batch([np.array([2, 9, 3])], np.array([[row]]), 64)
    characters = SpanTexts(read, [passages.text(row)], tokenizer).characters
    found = [characters(0, position, position) for position in np.flatnonzero(read.block_mask[0])]
    assert found == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (7, 11), (12, 14), (14, 16)]
    assert len(warnings) == 1 and f"passage {row} " in warnings[0]


def test_where_wordpieces_differ_a_span_gets_the_whole_stretch():
    offsets = np.array([[0, 2], [2, 4], [5, 8], [9, 12]])
    assert align_characters(np.array([7, 8]), [7, 8, 9, 10], offsets, 0).tolist() == [[0, 2], [2, 4]]
    stretched = align_characters(np.array([1, 2, 3, 9, 10]), [7, 8, 9, 10], offsets, 0)
    assert stretched.tolist() == [[0, 4], [0, 4], [0, 4], [5, 8], [9, 12]]
    assert align_characters(np.array([7, 8, 5, 9]), [7, 8, 9, 10], offsets, 0).tolist() == [
        [0, 2],
        [2, 4],
        [4, 4],
        [5, 8],
    ]
    assert align_characters(np.array([7, 9, 10]), [7, 8, 9, 10], offsets, 0).tolist() == [[0, 2], [5, 8], [9, 12]]


# Best spans by hand


def spans_of(*entries):
    logits, pair, start, end = zip(*entries, strict=True)
    return SpanScores(torch.tensor(logits), torch.tensor(pair), torch.tensor(start), torch.tensor(end))


def read_of(spans, relevance, question, input_ids) -> ReadBeam:
    """Spans of joint inputs, one a passage of a beam of as many; `relevance` and `question` are by joint input."""
    question = torch.tensor(question)
    beam = torch.full((int(question.max()) + 1, len(question)), -torch.inf)
    rank = torch.arange(len(question))
    beam[question, rank] = torch.tensor(relevance)
    return ReadBeam(spans, beam, question, rank, input_ids.size(1))


def test_one_softmax_runs_over_all_passages_of_a_question():
    ids = torch.tensor([[2, 9, 3, 50, 51], [2, 9, 3, 50, 52], [2, 9, 3, 50, 51]])
    spans = spans_of((1.0, 0, 3, 3), (2.0, 0, 3, 4), (0.0, 1, 3, 3), (5.0, 2, 4, 4))
    found = best_spans(read_of(spans, [0.0, 1.5, 0.0], [0, 0, 1], ids), ids)
    weights = np.exp([1.0, 2.0, 1.5])
    expected = weights / weights.sum()
    assert found.of_question.probability == pytest.approx([expected[1], 1.0], abs=1e-6)
    assert found.of_question.pair.tolist() == [0, 2] and found.of_question.end.tolist() == [4, 4]
    assert found.of_question.score.tolist() == [2.0, 5.0]
    assert found.share == pytest.approx([expected[0] + expected[1], expected[2], 1.0], abs=1e-6)
    assert found.of_pair.probability == pytest.approx([expected[1], expected[2], 1.0], abs=1e-6)
    # Wordpiece 50 stands in both passages of question 0.
    sums = {
        (int(q), int(s), int(e)): p
        for q, s, e, p in zip(
            found.string_question, found.strings.start, found.strings.end, found.strings.probability, strict=True
        )
    }
    assert sums == {
        (0, 3, 3): pytest.approx(expected[0] + expected[2], abs=1e-6),
        (0, 3, 4): pytest.approx(expected[1], abs=1e-6),
        (1, 4, 4): pytest.approx(1.0),
    }


def test_of_equal_spans_that_of_the_best_passage_wins_then_the_narrowest_then_the_first():
    ids = torch.tensor([[2, 3, 50, 51, 52], [2, 3, 50, 51, 52]])
    spans = spans_of((3.0, 0, 2, 3), (3.0, 0, 3, 3), (3.0, 0, 3, 4), (3.0, 0, 4, 4), (3.0, 1, 2, 2))
    found = best_spans(read_of(spans, [0.0, 0.0], [0, 0], ids), ids)
    assert (found.of_question.pair[0], found.of_question.start[0], found.of_question.end[0]) == (0, 3, 3)


def test_questions_and_passages_without_spans_are_marked():
    ids = torch.tensor([[2, 3, 3], [2, 3, 50]])
    found = best_spans(read_of(spans_of((1.0, 1, 2, 2)), [0.0, 0.0], [0, 2], ids), ids)
    assert found.of_question.pair.tolist() == [-1, -1, 1] and found.of_pair.pair.tolist() == [-1, 1]
    assert found.share.tolist() == [0.0, 1.0] and found.of_question.probability.tolist() == [0.0, 0.0, 1.0]
    none = torch.zeros(0, dtype=torch.long)
    empty = best_spans(read_of(SpanScores(torch.zeros(0), none, none, none), [0.0, 0.0], [0, 2], ids), ids)
    assert empty.of_question.pair.tolist() == [-1, -1, -1] and len(empty.strings.pair) == 0


def test_equal_strings_of_all_passages_are_summed_whatever_their_case_and_articles(tmp_path):
    answerer = tiny_answerer(store_of(["copper", "The copper.", "rice"], tmp_path), max_span_width=3, score_scale=0.0)
    with torch.no_grad():  # every span is equally likely
        answerer.model.reader.qa_outputs.dense_output.weight.zero_()
    (answer,) = answerer("What?")
    # Of the six spans of "The copper." "The" and "." are no such string.
    shares = {passage.text: passage.share for passage in answer.evidence}
    assert shares == pytest.approx({"copper": 1 / 8, "The copper.": 6 / 8, "rice": 1 / 8})
    assert answer.probability == pytest.approx(1 / 8)
    assert normalize_answer(answer.best_string) == "copper"
    first = {"copper": 5 / 8, "rice": 1 / 8, "": 2 / 8}
    assert answer.string_probability == pytest.approx(first[normalize_answer(answer.text)])


def test_strings_of_equal_wordpieces_are_one_whatever_their_accents(tmp_path):
    answerer = tiny_answerer(store_of(["é", "e"], tmp_path))
    for rows in ([0, 1], [1, 0]):  # the best span comes once before and once behind the other
        (answer,) = answerer.read("What?", np.array([rows]))
        assert {passage.best_span for passage in answer.evidence} == {"é", "e"}
        assert answer.probability < 1
        assert answer.string_probability == pytest.approx(1)


# The model's state, and what does not fit


def test_dropout_is_off_and_the_training_mode_comes_back(tiny_passages):
    answerer = tiny_answerer(tiny_passages, dropout=0.5)
    answerer.model.train()
    assert_same(answerer(QUESTIONS), answerer(QUESTIONS))
    assert answerer.model.training and answerer.model.reader.training
    with pytest.raises(TypeError):
        answerer([None])
    assert answerer.model.training
    answerer.model.eval()
    answerer("a")
    assert not answerer.model.training


def test_no_graph_is_kept(answerer):
    assert not answerer.retrieve("a").embeddings.requires_grad


def test_parts_that_do_not_fit_are_refused(answerer, tiny_passages, tmp_path):
    retriever = answerer.retriever
    answerer.model.retriever = None
    try:
        with pytest.raises(ValueError, match="nothing to search"):
            QuestionAnswerer(answerer.model)
    finally:
        answerer.model.retriever = retriever
    with pytest.raises(ValueError, match="no tokenizer"):
        QuestionAnswerer(answerer.model, RealmRetriever(tiny_passages, embeddings=retriever.embeddings))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(ValueError, match="built with tokenizer"):
        QuestionAnswerer(answerer.model, retriever, RealmTokenizer(vocab=str(tmp_path / "vocab.txt")))
    with pytest.raises(ValueError, match="max_question_length is 2"):
        QuestionAnswerer(answerer.model, max_question_length=2)
    wrong = RealmRetriever(tiny_passages, tiny_tokenizer(), embeddings=np.ones((48, 8), np.float32))
    with pytest.raises(ValueError, match="dimension of the index"):
        QuestionAnswerer(answerer.model, wrong)("a")
