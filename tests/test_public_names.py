"""What is imported from where: three packages, lazily. Documents and examples use nothing deeper, and run as told."""

import ast
import importlib
import json
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from question_worlds import qa_trainer
from tiny_bert import tiny_bert

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["realm_hf", "realm_hf.data", "realm_hf.training"]
# Pages for contributors name modules: what they show becomes a part of the package.
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "contributing"),
]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
# Commands, not imports.
# What takes long to import, and is not needed to say what there is. (`estimate` asks FAISS which index a corpus gets.)
HEAVY = {
    *("torch", "datasets", "evaluate", "faiss", "pandas", "pyarrow", "spacy", "tensorboard", "torch._dynamo"),
    *("transformers.modeling_utils", "realm_hf.retriever.retriever", "realm_hf.training.loop"),
}
BUILDER, COMMAND = "realm_hf.refresh.builder", "realm_hf.cli.main"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_in(document: str) -> list[str]:
    """Python in fenced blocks, and in blocks indented by four."""
    fenced = re.findall(r"^ *```python\n(.*?)^ *```", document, flags=re.DOTALL | re.MULTILINE)
    plain = re.sub(r"^ *```.*?^ *```", "", document, flags=re.DOTALL | re.MULTILINE)
    return [*fenced, *re.findall(r"(?:^ {4,}.*\n)+", plain, flags=re.MULTILINE)]


def imported(text: str) -> set[str]:
    return set(re.findall(r"^\s*(?:>>> )?(?:from|import) (realm_hf[\w.]*)", text, flags=re.MULTILINE))


def imports_for_type_checkers(package: str) -> dict[str, str]:
    """Name -> module, of the imports under `TYPE_CHECKING` of a package."""
    module = importlib.import_module(package)
    found = {}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                source = f"{package}.{line.module}" if line.level else line.module
                found |= {alias.name: source for alias in line.names}
    return found


# Packages


@pytest.mark.parametrize("package", PACKAGES)
def test_names_for_type_checkers_and_at_run_time_are_the_same_objects(package):
    module = importlib.import_module(package)
    typed = imports_for_type_checkers(package)

    assert len(typed) > 8 and typed.keys() <= set(module.__all__) <= set(dir(module))
    for name, source in typed.items():
        assert getattr(module, name) is getattr(importlib.import_module(source), name), name
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_is_not_there_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Nothing'"):
        importlib.import_module(package).Nothing  # noqa: B018


@pytest.mark.multiprocess
def test_what_is_not_used_is_not_imported():
    program = (
        "import sys, realm_hf, realm_hf.data, realm_hf.training\n"
        f"loaded = {HEAVY} & set(sys.modules)\n"
        "assert 'RealmRetriever' in dir(realm_hf) and not loaded, loaded\n"
        "assert 'transformers' not in sys.modules\n"
        # What is registered is imported when transformers calls it.
        "from transformers import AutoModel\n"
        "from transformers import AutoConfig\n"
        "assert not {'transformers.modeling_utils', 'realm_hf.models.configuration_realm'} & set(sys.modules)\n"
        "config = AutoConfig.for_model('realm', num_hidden_layers=1, vocab_size=9)\n"
        "assert type(config) is realm_hf.RealmConfig\n"
        "model = AutoModel.from_config(config)\n"
        "assert type(model) is realm_hf.RealmEmbedder and 'transformers.modeling_utils' in sys.modules\n"
        "assert not {'faiss', 'datasets'} & set(sys.modules)\n"
        "from transformers import pipelines\n"
        "import inspect\n"
        "assert 'open-domain-qa' in pipelines.PIPELINE_REGISTRY.get_supported_tasks()\n"
        "assert 'def pipeline(' in inspect.getsource(pipelines) and 'realm_hf.qa.pipeline' not in sys.modules\n"
        "from realm_hf import *\n"
        "assert RealmRetriever.__module__ == 'realm_hf.retriever.retriever' and 'faiss' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.multiprocess
def test_a_tokenizer_without_a_model_is_found_by_its_name(tiny_vocab, tmp_path):
    """As in RUN/tokenizer: no configuration says that it is REALM's, and nothing of this package has been used."""
    (tmp_path / "vocab.txt").symlink_to(tiny_vocab)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RealmTokenizer"}))
    program = (
        "import realm_hf\n"
        "from transformers import AutoTokenizer\n"
        f"found = AutoTokenizer.from_pretrained({str(tmp_path)!r})\n"
        "assert type(found) is realm_hf.RealmTokenizer, type(found)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.multiprocess
def test_help_of_no_command_imports_models_or_datasets():
    """Nor does a typo. One process asks for them all: what one of them imports is there at the end."""
    program = (
        "import runpy, sys\n"
        "from realm_hf.cli.main import COMMANDS, PROGRAMS\n"
        "from realm_hf.cli.warm_start import TASKS\n"
        "asked = [['--help'], ['--version'], ['fly'], ['pretrain', '--max_stepz', '3']]\n"
        "asked += [[name, '--help'] for name in {**COMMANDS, **PROGRAMS}]\n"
        "asked += [['warm-start', task, '--help'] for task in TASKS]\n"
        "for words in asked:\n"
        "    sys.argv[1:] = words\n"
        "    try:\n        runpy.run_module('realm_hf', run_name='__main__')\n"
        "    except SystemExit as end:\n        assert end.code == (0 if words[-1].startswith('--') else 2), words\n"
        f"heavy = {HEAVY - {'faiss'}} & set(sys.modules)\n"
        "assert len(asked) > 15 and not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("usage: realm-hf") > 12, done.stderr


def test_the_builder_is_still_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["builder", "--help"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")  # another test may have imported it
        runpy.run_module(BUILDER, run_name="__main__")
    assert ended.value.code == 0 and "--watch" in capsys.readouterr().out


# Documents and examples


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_an_example_imports_nothing_deeper_than_the_packages(example):
    assert imported(example.read_text()) <= {*PACKAGES, COMMAND}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_code_in_a_document_imports_nothing_deeper_and_only_names_that_exist(document):
    for code in code_in(document.read_text()):
        assert imported(code) <= set(PACKAGES), code
        for package, names in re.findall(r"^\s*from (realm_hf[\w.]*) import ([^(\n]+)", code, flags=re.MULTILINE):
            public = importlib.import_module(package).__all__
            assert {name.strip() for name in names.split(",")} <= set(public), code


def test_the_tests_for_documents_and_examples_see_imports():
    assert imported("    >>> from realm_hf.index.exact import x\nimport realm_hf\n") == {
        "realm_hf.index.exact",
        "realm_hf",
    }
    assert code_in("a\n\n    import realm_hf\n\n```python\nb\n```\n") == ["b\n", "    import realm_hf\n"]
    assert sum(bool(imported(path.read_text())) for path in EXAMPLES) > 8


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """A directory with what the snippets of README and tutorial name: articles, a BERT, and a run that answers."""
    folder = tmp_path_factory.mktemp("place")
    lines = (ROOT / "tests" / "fixtures" / "countries.jsonl").read_text().splitlines()
    (folder / "my_articles.jsonl").write_text("\n".join(lines[:12]) + "\n")
    tiny_bert(folder / "bert", num_hidden_layers=1, max_position_embeddings=512)
    qa_trainer(world, folder / "runs" / "qa").train()
    return folder


@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md"])
def test_snippets_train_search_and_ask_as_they_are_written(place, document, tmp_path, monkeypatch, capsys):
    """Only the BERT and the numbers of steps are others."""
    for name in ("my_articles.jsonl", "bert"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "qa").symlink_to(place / "runs" / "qa")
    blocks = [code for code in code_in((ROOT / document).read_text()) if imported(code)]
    # Training first: what the others load is what it leaves.
    program = "\n".join(sorted(blocks, key=lambda code: "RealmTrainer" not in code))
    for written, here in (
        ("google-bert/bert-base-uncased", "bert"),
        ("max_steps=20000", "max_steps=2, use_cpu=True, per_device_train_batch_size=2"),
        ("max_steps=2000", "max_steps=1, use_cpu=True, per_device_train_batch_size=2"),
        ("refresh_steps=500", "refresh_steps=1"),
    ):
        program = program.replace(written, here)
    (tmp_path / "snippets.py").write_text(program)

    monkeypatch.chdir(tmp_path)
    runpy.run_path("snippets.py", run_name="__main__")

    printed = capsys.readouterr().out
    assert len(re.findall(r"^ *-?\d+\.\d\d  [\w ]+: ", printed, flags=re.MULTILINE)) == 5, printed
    assert json.loads((tmp_path / "runs/mine/config.json").read_text())["architectures"] == ["RealmForPreTraining"]
