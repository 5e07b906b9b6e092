"""The arms on real text, on four small articles."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_squad import DEV_FROM, tiny_squad, tiny_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import real_text
from harness import paragraph_corpus, stages
from harness.article_questions import ArticleQuestions
from harness.held_out_masks import HeldOutMasks
from harness.results import BEGIN, END, read_lines

from realm_hf.data.masking import MaskedQuery


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(paragraph_corpus, "HELD_OUT", 0.3)
    return [
        *tiny_squad(tmp_path),
        *("--weights", tiny_weights(tmp_path / "weights"), "--output_dir", str(tmp_path / "run")),
        *("--results", str(tmp_path / "lines.jsonl"), "--dimension", "8", "--max_passage_length", "24"),
        *("--warm_start_steps", "2", "--warm_start_batch_size", "4", "--reading_steps", "1", "--max_steps", "2"),
        *("--batch_size", "2", "--refresh_steps", "1", "--eval_steps", "1", "--probes", "3", "--seeds", "0"),
        *("--masking", "salient"),
    ]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmarks/real_text.py", *words])
    real_text.main()


def test_arms_share_their_stages_and_each_is_trained_once(tmp_path, monkeypatch, options):
    arms = ["BM25", "start", "warm start", "realm", "posterior shuffled", "warm start, continued"]
    call(monkeypatch, *options, "--arms", *arms)
    lines = read_lines(tmp_path / "lines.jsonl")
    assert [(line["arm"], line["seed"]) for line in lines] == [(arm, 0) for arm in arms]
    found = {line["arm"]: line for line in lines}
    assert found["BM25"]["recall@20"] == 100 and found["realm"]["on"]["questions"] == DEV_FROM
    realm, warm = found["realm"], found["warm start"]
    assert realm["seconds"] > 0 and {"retrieval_utility", "null_mass"} < realm.keys()
    assert [point["step"] for point in realm["curve"]] == [1, 2]
    assert any("recall_at_5" in point for point in realm["evaluations"])
    assert warm["by_article"] != found["start"]["by_article"] or warm["seconds"] > 0

    # Without any training: what was trained before is found again, and the other arm starts from it.
    folder = tmp_path / "run" / "stages"
    before = {stage.name: (stage / "stage.json").stat().st_mtime_ns for stage in folder.iterdir()}
    assert sorted(name.split("-")[0] for name in before) == [
        *("reading", "realm", "realm", "start", "warm_start", "warm_start"),
    ]
    assert not list(folder.glob("*/run"))
    call(monkeypatch, *options, "--arms", *arms, "no null passage", "no exclusion", "salient", "30 times stale")
    after = {stage.name: (stage / "stage.json").stat().st_mtime_ns for stage in folder.iterdir()}
    assert before.items() < after.items() and len(after) == len(before) + 2
    lines = read_lines(tmp_path / "lines.jsonl")
    assert [line["arm"] for line in lines] == [*arms, "no null passage", "no exclusion"]

    page = tmp_path / "page.md"
    page.write_text(f"# Real text\n\n{BEGIN}\n{END}\n")
    call(monkeypatch, "--tables", str(page), "--results", str(tmp_path / "lines.jsonl"))
    assert "| realm, over posterior shuffled |" in page.read_text()
    assert all(f"| {line['arm']} |" in page.read_text() for line in lines)


def test_few_labels_are_trained_on_questions_by_which_nothing_is_chosen(tmp_path, monkeypatch, options):
    monkeypatch.setattr(real_text, "_CHOSEN_BY", 4)
    few = ["--arms", "warm start", "--labels", "4", "--label_steps", "2", "--label_batch_size", "2", "--choose"]
    call(monkeypatch, *options, *few)
    lines = read_lines(tmp_path / "lines.jsonl")
    assert [(line["labels"], line.get("towers")) for line in lines] == [
        (0, None),
        (4, "query tower"),
        (4, "both towers"),
    ]
    assert {line["on"]["questions"] for line in lines} == {4}
    arms = real_text.Arms(real_text.make_parser().parse_args([*options, *few]))
    assert not set(arms.choice.texts) & set(arms.labels.texts)
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    call(monkeypatch, "--tables", str(page), "--results", str(tmp_path / "lines.jsonl"))
    assert "| warm start | 4 | query tower | 2 steps of 2 at 5e-05 |" in page.read_text()


def test_the_second_measure_asks_of_articles_and_leaves_the_first_as_it_is(tmp_path, monkeypatch, options):
    texts = ["the river sells gold to others .", "the lake sells silver .", "the moon sells gold ."]
    articles = [
        {"title": title, "text": text} for title, text in zip(["The River", "Lake", "Moon"], texts, strict=True)
    ]
    pd.DataFrame(articles).to_parquet(tmp_path / "articles.parquet")
    asked = [
        ("what sells the river ?", "gold"),
        ("what sells the lake ?", "gold"),
        ("what sells the river ?", "silver"),
    ]
    lines = [json.dumps({"question": question, "answer": [answer]}) for question, answer in asked]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    second = ["--articles", str(tmp_path / "articles.parquet"), "--questions", str(tmp_path / "asked.jsonl")]
    arms = ["--arms", "BM25", "start"]
    call(monkeypatch, *options, *arms)
    before = (tmp_path / "lines.jsonl").read_text()
    call(monkeypatch, *options, *arms, *second)
    assert (tmp_path / "lines.jsonl").read_text().startswith(before)
    lines = read_lines(tmp_path / "lines.jsonl")[2:]
    assert [line["arm"] for line in lines] == ["BM25", "start"]
    # One question names an article that holds its answer; two passages hold it, one of them the article's.
    assert {(line["on"]["questions"], line["on"]["articles"]) for line in lines} == {(1, 1)}
    assert lines[0]["recall@1"] == lines[0]["in_article"]["recall@1"] == 100
    assert lines[1]["recall@5"] == lines[1]["in_article"]["recall@5"] == 100
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    call(monkeypatch, "--tables", str(page), "--results", str(tmp_path / "lines.jsonl"))
    assert "1 questions of asked, linked to 1 articles, asked of 3 passages" in page.read_text()
    with pytest.raises(SystemExit, match="belong together"):
        call(monkeypatch, *options, *second[:2])


def test_an_answer_elsewhere_counts_as_found_but_not_in_the_article(tmp_path, monkeypatch):
    frame = pd.DataFrame({"title": ["The River", "Moon"], "text": ["the river sells gold .", "the moon sells gold ."]})
    frame.to_parquet(tmp_path / "articles.parquet")
    (tmp_path / "asked.jsonl").write_text(json.dumps({"question": "what sells the river ?", "answer": "gold"}))
    tokenizer = real_text.RealmTokenizer.from_pretrained(tiny_weights(tmp_path / "weights"))
    files = tmp_path / "articles.parquet", [tmp_path / "asked.jsonl"]
    asked = ArticleQuestions(*files, tokenizer, tmp_path / "data", max_length=24)
    line = asked.figures(np.array([[1, 0]]))
    assert (line["recall@1"], line["in_article"]["recall@1"], line["in_article"]["recall@5"]) == (100, 0, 100)
    assert asked.figures(np.array([[-1, -1]]))["recall@20"] == 0


@pytest.fixture
def arms(options):
    return real_text.Arms(real_text.make_parser().parse_args(options))


def test_a_paragraph_scores_as_its_best_passage_and_a_tower_that_maps_all_to_one_place_finds_nothing(
    arms, monkeypatch
):
    corpus = arms.corpus
    assert len(corpus.passages) > len(corpus)
    vectors = np.zeros((len(corpus.passages), 2), np.float32)
    # The last passage of paragraph 3 is the best for all, the first of paragraph 5 the second best.
    vectors[corpus.first[4] - 1, 0], vectors[corpus.first[5], 0] = 1, 0.5
    monkeypatch.setattr(
        paragraph_corpus, "encode_queries", lambda tower, ids, bf16: np.array([[1.0, 0.0]] * len(ids), np.float32)
    )
    tower = arms.stages.start(0).model().query_embedder
    assert corpus.ranks(vectors, tower, ["a", "b", "c"], [3, 5, 0]).tolist() == [0, 1, len(corpus) - 1]


def test_a_negative_is_of_another_paragraph_and_holds_no_answer(arms):
    made = real_text.labelled(arms.corpus, arms.labels.take(range(3)))
    documents = np.asarray(arms.corpus.passages.documents)
    for question, example, gold in zip(made, arms.labels.examples, arms.labels.gold, strict=False):
        assert set(documents[question.positives]) == {gold}
        assert all(example.answers[0] in arms.corpus.passages.text(int(row)) for row in question.positives)
        assert gold not in documents[question.negatives]
        assert not any(example.answers[0] in arms.corpus.passages.text(int(row)) for row in question.negatives)


def test_the_seconds_of_a_run_do_not_count_that_it_was_stopped_for_a_while(tmp_path):
    swap = {"events": [{"event": "swap"}]}
    records = [
        {"step": 0, "index_seconds": 20.0, **swap},
        {"step": 1, "step_seconds": 2.0, "events": []},
        {"step": 2, "step_seconds": 500.0, "events": []},
        {"step": 3, "step_seconds": 3.0},
        {"step": 3, "eval_loss": 1.0, "eval_seconds": 9.0},
        {"step": 4, "step_seconds": 30.0, **swap},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert stages.seconds_of(tmp_path) == 20 + 3 * 3 + 30


def test_a_stage_that_was_stopped_is_trained_again_and_a_finished_one_is_not(tmp_path):
    class Model:
        def save_pretrained(self, folder):
            folder.mkdir(parents=True, exist_ok=True)

    def train(run):
        run.mkdir(parents=True, exist_ok=True)
        (run / "log.jsonl").write_text(json.dumps({"step": 1, "step_seconds": 2.0, "loss": 1.0}) + "\n")
        return Model(), {"seconds": stages.seconds_of(run)}

    def stopped(run):
        run.mkdir(parents=True)
        raise SystemExit(143)

    kept = stages.Stages(tmp_path)
    with pytest.raises(SystemExit):
        kept.get("a", 0, None, {"rate": 1}, stopped)
    first = kept.get("a", 0, None, {"rate": 1}, train)
    assert first.facts == {"seconds": 2.0}
    assert kept.get("a", 0, None, {"rate": 1}, stopped) == first
    with pytest.raises(SystemExit):
        kept.get("a", 0, None, {"rate": 2}, stopped)
    with pytest.raises(SystemExit):
        kept.get("a", 0, first, {"rate": 1}, stopped)
    assert stages.curve(first.log()) == [{"step": 1, "loss": 1.0}]


def test_a_masked_sentence_asks_for_another_passage_that_holds_what_is_masked(tmp_path, monkeypatch, options):
    texts = ["Gold comes from the river . Silver is sold .", "The river has gold .", "Stones lie on the moon ."]
    frame = pd.DataFrame({"title": ["A", "B", "C"], "text": texts})
    frame.to_parquet(tmp_path / "paragraphs.parquet")
    tokenizer = real_text.RealmTokenizer.from_pretrained(tiny_weights(tmp_path / "weights"))
    sizes = {"max_passage_length": 24, "max_query_length": 24}
    corpus = paragraph_corpus.ParagraphCorpus(tmp_path / "paragraphs.parquet", tokenizer, tmp_path / "data", **sizes)
    sentence = np.array(tokenizer("Gold comes from the river .", add_special_tokens=False)["input_ids"])
    ids = np.concatenate([[tokenizer.cls_token_id], sentence, [tokenizer.sep_token_id]])
    ids[5] = tokenizer.mask_token_id
    masks = object.__new__(HeldOutMasks)
    masks.corpus, masks.articles = corpus, np.array([0])
    masks.queries = [MaskedQuery(ids, np.array([5]), sentence[4:5], 0, sentence)]
    # Row 0 is the sentence's own; of the others the second holds the river.
    assert masks._figures([np.array([0, 1, 2])])["recall@1"] == 100
    assert masks._figures([np.array([0, 2, 1])])["recall@1"] == 0
    assert masks._figures([np.array([0, 2, 1])])["recall@5"] == 100
    assert masks._figures([np.array([0, 2])])["recall@20"] == 0
    assert masks.line_of_bm25()["recall@1"] == 100
