"""Snippets of the how-to pages run as they are written, over a small run; quoted messages and figures are real."""

import ast
import contextlib
import importlib.util
import io
import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import tiny_bert
from tiny_worlds import FIXTURES, bag_of_words_start, load_world, tiny_model, tiny_tokenizer

from realm_hf import RealmRetriever
from realm_hf.cli.main import main
from realm_hf.data import PassageStore
from realm_hf.training import RealmTrainer, RealmTrainingArguments

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def python_in(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """A folder with what the snippets name: a run, articles, a BERT and questions with their passages."""
    folder = tmp_path_factory.mktemp("place")
    passages, sentences = load_world(world)
    args = RealmTrainingArguments(
        output_dir=str(folder / "runs" / "mine"),
        max_steps=2,
        per_device_train_batch_size=4,
        num_candidates=3,
        max_query_length=24,
        refresh="off",
        use_cpu=True,
        disable_tqdm=True,
    )
    RealmTrainer(
        bag_of_words_start(tiny_model()),
        args,
        train_dataset=sentences.train,
        processing_class=tiny_tokenizer(),
        passages=passages,
    ).train()
    tiny_bert(folder / "bert", num_hidden_layers=1, max_position_embeddings=512)
    lines = (FIXTURES / "countries.jsonl").read_text().splitlines()
    (folder / "my_articles.jsonl").write_text("\n".join(lines[:12]) + "\n")
    rows = [
        {"id": f"q{row}", "question": f"who buys from row {row}?", "answer": "x", "context": passages.text(row)}
        for row in range(3)
    ]
    (folder / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def run_page(page: str, folder: Path, changes: dict[str, str] | None = None, name: str = "snippets.py") -> str:
    """Runs all Python of a page in `folder` as one program; returns what it printed. In this process: another would
    import torch and transformers again.
    """
    program = "\n".join(python_in(page))
    for written, here in (changes or {}).items():
        assert written in program, written
        program = program.replace(written, here)
    (folder / name).write_text(program)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(name, run_name="__main__")
    return printed.getvalue()


# Where people already are


def test_the_snippet_of_the_cluster_page_streams_documents_into_passages(place):
    run_page("how-to/cluster.md", place, name="cluster_snippet.py")
    assert len(PassageStore.load(place / "passages", verify=True)) >= 12


@pytest.mark.parametrize(
    ("page", "package"), [("how-to/langchain.md", "langchain_core"), ("how-to/llama-index.md", "llama_index")]
)
def test_another_frameworks_retriever_finds_what_ours_finds(place, page, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    printed = run_page(page, place, name=f"{package}_snippet.py")
    result = RealmRetriever.from_pretrained(place / "runs" / "mine").search("What is the capital of Nicaragua?", k=3)
    assert printed.splitlines() == [f"{found.score:6.2f}  {found.title}: {found.text[:60]}" for found in result]


@pytest.mark.parametrize(
    ("block", "packages"),
    [
        (1, ["sentence_transformers", "mteb"]),
        (2, ["sentence_transformers", "langchain_huggingface"]),
        (3, ["sentence_transformers", "llama_index.embeddings.huggingface"]),
    ],
    ids=["mteb", "LangChain", "LlamaIndex"],
)
def test_tools_for_embeddings_score_as_the_towers_do(place, monkeypatch, tmp_path, capsys, block, packages):
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))  # else it makes a folder at home when it is imported
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(place / "runs")
    (tmp_path / "dev.jsonl").symlink_to(place / "dev.jsonl")
    blocks = python_in("how-to/embedding-tools.md")
    names: dict = {}
    for written in (blocks[0], blocks[block]):
        exec(compile(written, "embedding-tools.md", "exec"), names)
    tower = names["model"].embedder
    tower.tokenizer = names["tokenizer"]
    if block == 1:
        passages, gold = names["passages"], names["gold"]
        joined = [f"{passages.title(row)} {passages.text(row)}".strip() for row in range(len(passages))]
        scores = tower.encode([q.question for q in names["questions"]]) @ tower.encode(joined).T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        wanted = np.mean(
            [len(set(rows) & set(top)) / len(rows) for rows, top in zip(gold, best.tolist(), strict=True)]
        )
    else:
        question, passage = tower.encode(["What is the capital of Nicaragua?", "Nicaragua Managua is the capital."])
        wanted = question @ passage
    assert float(capsys.readouterr().out.splitlines()[-1]) == pytest.approx(float(wanted), abs=1e-3)


def test_run_file_and_qrels_of_the_page_name_each_question_and_its_passage(place):
    run_page("how-to/trec.md", place, name="trec_snippet.py")
    run = [line.split() for line in (place / "mine.run").read_text().splitlines()]
    passages = len({line[2] for line in run})
    assert {line[0] for line in run} == {"q0", "q1", "q2"} and len(run) == 3 * passages
    qrels = [line.split() for line in (place / "dev.qrels").read_text().splitlines()]
    for row in range(3):
        assert [f"q{row}", "0", str(row), "1"] in qrels


def test_a_hybrid_retriever_is_made_fitted_and_saved(place):
    printed = run_page("how-to/hybrid-search.md", place, name="hybrid_snippet.py").splitlines()
    assert len(printed) == 6 and all(re.match(r"0\.0\d+  \w", line) for line in printed[:5])
    weight, reciprocal_rank = map(float, printed[5].split())
    assert weight > 0 and 0 < reciprocal_rank <= 1
    assert RealmRetriever.from_pretrained(place / "hybrid").search("oil", 3).scores[0] < 2 / 61 + 1e-6


def test_datasets_reads_the_passages_and_searches_them_as_the_retriever_does(place):
    printed = run_page(
        "how-to/datasets.md", place, {'"capital" in passage': '"sells" in passage'}, "datasets_snippet.py"
    )
    retriever = RealmRetriever.from_pretrained(place / "runs" / "mine")
    found = retriever.search("What is the capital of Nicaragua?", k=3)
    listed = re.findall(r"\(np\.float32\((-?[\d.]+)\), '([^']*)'\)", printed.splitlines()[-1])
    assert [title for _, title in listed] == found.titles
    assert [float(score) for score, _ in listed] == pytest.approx(found.scores.tolist(), abs=1e-4)


# Trackers and callbacks


def trackers_program(tracker: str) -> dict[str, str]:
    return {
        "google-bert/bert-base-uncased": "bert",
        "max_steps=20000": "max_steps=6, logging_steps=1, use_cpu=True, per_device_train_batch_size=2",
        "refresh_steps=500": 'refresh="off"',
        "patience=1000)]": "patience=2)]",
        "> 0.99": "> -1.0",
        '["tensorboard"]': f'["{tracker}"]',
    }


@pytest.fixture
def fresh(place, tmp_path):
    """A folder with the articles and the BERT, and no run."""
    shutil.copytree(place / "bert", tmp_path / "bert")
    shutil.copy(place / "my_articles.jsonl", tmp_path)
    return tmp_path


def test_tensorboard_gets_the_figures_and_what_the_callback_adds_until_it_stops_the_run(fresh):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_page("how-to/trackers.md", fresh, trackers_program("tensorboard"))
    events = accumulator.EventAccumulator(str(fresh / "runs/mine/tracking/articles")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("steps_of_nothing")] == [(1, 1.0), (2, 2.0)]
    assert {"loss", "retrieval_utility", "null_mass"} <= set(events.Tags()["scalars"])


def test_wandb_takes_the_run_offline(fresh, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_page("how-to/trackers.md", fresh, trackers_program("wandb"))
    assert list(fresh.rglob("*.wandb"))


def test_trackio_keeps_the_run_on_this_computer(fresh, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(fresh / "trackio"))
    run_page("how-to/trackers.md", fresh, trackers_program("trackio"))
    assert [path for path in (fresh / "trackio").rglob("articles*") if path.is_file()]


# Pages that quote


def strings_of_the_package() -> list[str]:
    """Every string in the sources, joined over lines, with `\\0` for what is filled in."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%\.?\d*[sdf]|\{\w*[!\w]*\}", "\0", node.value))
    return found


def is_said(message: str, strings: list[str]) -> bool:
    """Whether the package says so somewhere; `...` in the message stands for anything."""
    wanted = re.compile(".*".join(map(re.escape, message.split("..."))), flags=re.DOTALL)
    return any(wanted.search(text) for text in strings)


def messages_in(page: str) -> list[str]:
    return re.findall(r"^`(.+)`\n: ", page, flags=re.MULTILINE)


def test_every_message_that_troubleshooting_quotes_is_one_of_ours():
    strings = strings_of_the_package()
    messages = messages_in((DOCS / "troubleshooting.md").read_text())
    assert len(messages) > 25
    assert not [message for message in messages if not is_said(message, strings)]


def test_the_check_of_messages_can_fail():
    strings = ["could not \0 (\0); \0", "the corpus is empty (0 documents)"]
    assert is_said("could not ... (...); ...", strings) and is_said("the corpus is empty", strings)
    assert not is_said("the corpus is full", strings) and not is_said("could not ... [...]", strings)
    assert messages_in("`a b`\n:   c\n\n**d**\n`e`\n") == ["a b"]


def test_the_glossary_is_in_order_and_has_each_term_once():
    terms = re.findall(r"^(\S.*)\n: ", (DOCS / "glossary.md").read_text(), flags=re.MULTILINE)
    keys = [re.sub(r"[^a-z0-9 ]", "", term.lower()) for term in terms]
    assert len(terms) > 50 and keys == sorted(set(keys))


def cited_figures(page: str) -> list[tuple[str, str]]:
    """(results page, figure with a decimal) of each table row that links to one page of results."""
    rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    found, last = [], None
    for row in rows:
        links = re.findall(r"\]\((results/\w+\.md)\)", row)
        last = links[0] if links else last if "| the same |" in row else None
        if last:
            found += [(last, figure) for figure in re.findall(r"\d+\.\d+", re.sub(r"\([^)]*\)", "", row))]
    return found


def test_figures_that_which_tool_cites_stand_on_the_page_of_results_that_it_names():
    cited = cited_figures("which-tool.md")
    assert len(cited) >= 9
    assert not [(page, figure) for page, figure in cited if figure not in (DOCS / page).read_text()]


def test_estimates_of_the_hardware_page_are_what_the_command_says():
    page = (DOCS / "hardware.md").read_text()
    commands = re.findall(r"^    realm-hf (estimate .*?[^\\])$", page, flags=re.MULTILINE | re.DOTALL)
    totals = []
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(command.replace("\\\n", " ").split()) == 0
        totals.append(re.search(r"total +([\d.]+) (h|days)", printed.getvalue()).groups())
    assert [f"{float(number):.2g} {unit}" for number, unit in totals] == ["6.8 h", "8 h", "2.5 days", "3.6 days"]
    assert all(f"**{text}**" in page for text in ("7 h", "8 h", "2.5 days", "3.6 days"))
