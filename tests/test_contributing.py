"""What docs/contributing says is so: examples run, files and modules exist, counts and versions are right."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_bert import tiny_bert
from tiny_worlds import FIXTURES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "contributing").glob("*.md"))
GUIDES = [page for page in PAGES if page.name.startswith("add-")]
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


def python_in(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def paths_in(text):
    """Files and folders of the repository that stand in backquotes."""
    # Not what commands leave behind: RUN directories would be taken for the package `runs`.
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    roots = "|".join(entry.name for entry in ROOT.iterdir() if entry.is_dir() and entry.name not in ignored)
    return set(re.findall(rf"`((?:{roots})/[\w./-]*|[\w.-]+\.(?:toml|txt|yaml|md)|Makefile)`", text))


def sources_in(text):
    """Files and folders of the package, named from there as the map does, and not those that are to be made."""
    packages = "|".join(path.parent.name for path in (ROOT / "src" / "realm_hf").glob("*/__init__.py"))
    return set(re.findall(rf"`((?:{packages})/[\w./]*)`", text))


def modules_in(text):
    """Dotted names of the package in backquotes."""
    return set(re.findall(r"`(realm_hf(?:\.\w+)*)`", text))


def counts(code):
    """Lines without blank ones and comments; statements; statements that import."""
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    statements = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt)]
    imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    return len(lines), len(statements), len(imports)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"), max_position_embeddings=512)


@pytest.fixture
def run_guide(bert, tmp_path, monkeypatch, capsys):
    """Runs a guide's example as it is written, the BERT excepted; returns its names and what it printed."""
    monkeypatch.chdir(tmp_path)
    lines = (FIXTURES / "countries.jsonl").read_text().splitlines()
    (tmp_path / "my_articles.jsonl").write_text("\n".join(lines[:12]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(name):
        (code,) = python_in((ROOT / "docs" / "contributing" / name).read_text())
        module = name.removesuffix(".md").replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code.replace("google-bert/bert-base-uncased", str(bert)))
        found = importlib.import_module(module)
        monkeypatch.delitem(sys.modules, module)
        return found, capsys.readouterr().out

    return run


def test_every_guide_has_an_example_that_is_run_here():
    tests = Path(__file__).read_text()
    assert GUIDES and all(f'run_guide("{guide.name}")' in tests for guide in GUIDES)


def test_the_tagger_of_the_guide_finds_spans_to_mask(run_guide):
    guide, printed = run_guide("add-a-tagger.md")
    assert printed.count("CENTURY") >= 3
    (spans,) = guide.CenturyTagger()(["From the 6th century to the 19th century, 20 kings."])
    assert [(span.start, span.end) for span in spans] == [(9, 20), (28, 40)]


def test_the_index_of_the_guide_finds_what_exact_search_finds(run_guide):
    from realm_hf.index.exact import exact_search

    guide, printed = run_guide("add-an-index.md")
    assert len(printed.splitlines()) == 3
    # The towers of a random BERT give nearly equal vectors, so others are searched here.
    vectors = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    queries = vectors[::5] + 0.1
    scores, rows = exact_search(vectors, queries, 4)
    found = guide.MatrixIndex(vectors).search(queries, 4)
    assert (found.rows == rows).all()
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)


def test_the_encoder_of_the_guide_reads_all_tokens_and_no_padding(run_guide):
    guide, printed = run_guide("add-an-encoder.md")
    assert len(printed.splitlines()) == 3
    embedder, tokenizer = guide.embedder.eval(), guide.tokenizer
    texts = ["a river", "the river in the north of the island has many people"]
    with torch.no_grad():
        alone = [embedder(**tokenizer(text, return_tensors="pt")).projected_score for text in texts]
        padded = tokenizer(texts, padding=True, return_tensors="pt")
        together, chunked = embedder(**padded).projected_score, embedder.encode_tokens(**padded)
        states = embedder.realm(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state
        expected = embedder.cls(torch.tanh(embedder.realm.pooler.dense(states.amax(dim=1))))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    torch.testing.assert_close(chunked, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_path_and_module_that_a_page_names_exists(page):
    text = page.read_text()
    assert not [name for name in sorted(paths_in(text)) if not (ROOT / name).exists()]
    assert not [name for name in sorted(sources_in(text)) if not (ROOT / "src" / "realm_hf" / name).exists()]
    for name in sorted(modules_in(text)):
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            module = ROOT / "src" / Path(*parts[:count])
            if module.with_suffix(".py").is_file() or module.is_dir():
                found = importlib.import_module(".".join(parts[:count]))
                assert all(hasattr(found, part) for part in parts[count : count + 1]), name
                break
        else:
            pytest.fail(f"{page.name} names {name}, which is nowhere")


def test_the_checks_above_see_names():
    text = "`src/realm_hf/data/` and `pyproject.toml`, `realm_hf.data.taggers.spans.Tagger`; `make docs` into `site/`"
    assert paths_in(text) == {"src/realm_hf/data/", "pyproject.toml"}
    assert modules_in(text) == {"realm_hf.data.taggers.spans.Tagger"}
    assert sources_in("new `data/<name>.py`; `data/taggers/names.py`, `hub/`") == {"data/taggers/names.py", "hub/"}


def test_the_map_has_a_line_for_every_package():
    text = (ROOT / "docs" / "contributing" / "map.md").read_text()
    packages = {path.parent.name for path in (ROOT / "src" / "realm_hf").glob("*/__init__.py")}
    lines = set(re.findall(r"^\| `(\w+)/` \|", text, flags=re.MULTILINE))
    assert lines == packages


def test_the_readmes_snippets_have_as_many_lines_as_the_table_says():
    text = (ROOT / "docs" / "contributing" / "working.md").read_text()
    table = re.findall(r"^\| [a-z ]+ \| (\d+) lines, (\d+) statements, (\d+) of them imports \|", text, re.MULTILINE)
    snippets = python_in((ROOT / "README.md").read_text())
    assert [tuple(map(int, row)) for row in table] == [counts(code) for code in snippets]


def test_pre_commit_runs_the_pinned_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff-format", "ruff-check"}
    for hook in hooks:
        assert hook["additional_dependencies"] == [f"ruff=={CONSTRAINTS['ruff']}"], hook["id"]


@pytest.mark.parametrize("name", ["bug", "feature", "question"])
def test_an_issue_form_has_what_github_asks_of_one(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"]), json.dumps(ids)
