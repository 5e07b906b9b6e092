"""What a newcomer relies on: the package installs as it says, and its documents name only what exists."""

import dataclasses
import importlib
import importlib.metadata
import itertools
import re
import tomllib
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BUILDER_OPTIONS = {"once", "watch", "device", "threads", "index-threads", "nice", "poll-seconds"}
BUILDER_OPTIONS |= {"engine", "builders", "gpus"}
LAUNCHER_OPTIONS = {"cpu", "multi_gpu", "num_processes", "num_machines", "machine_rank", "main_process_ip"}
LAUNCHER_OPTIONS |= {"main_process_port", "config_file", "standalone", "nproc_per_node"}
PROGRAMS = {
    r"(realm-hf|-m realm_hf) prepare ": "prepare",
    r"examples/pretrain\.py|(realm-hf|-m realm_hf) pretrain ": "pretrain",
    r"examples/train_inverse_cloze\.py|warm-start (inverse-cloze|recurring-spans) ": "warm_start_towers",
    r"examples/train_masked_lm\.py|warm-start masked-lm ": "warm_start_encoder",
    r"examples/finetune_open_qa\.py|(realm-hf|-m realm_hf) finetune ": "finetune",
    r"examples/evaluate_open_qa\.py|(realm-hf|-m realm_hf) evaluate ": "evaluate",
}
"""How a command is written in documents, and its module in `realm_hf.cli`."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_version_is_the_same_everywhere():
    import realm_hf

    assert importlib.metadata.version("realm-hf") == PROJECT["version"] == realm_hf.__version__
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_package_is_marked_as_typed():
    import realm_hf

    assert Path(realm_hf.__file__).with_name("py.typed").is_file()


def test_command_is_installed_and_tells_its_subcommands(capsys):
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="realm-hf")
    with pytest.raises(SystemExit) as stop:
        entry.load()(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for command in (
        "prepare",
        "pretrain",
        "warm-start",
        "finetune",
        "search",
        "ask",
        "evaluate",
        "build-index",
        "inspect",
        "verify",
        "report",
        "estimate",
        "convert",
    ):
        assert re.search(rf"^ +{command}\s+\w", told, flags=re.MULTILINE), command


def test_import_registers_the_auto_classes(tiny_config):
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining

    import realm_hf

    assert isinstance(AutoConfig.for_model("realm"), realm_hf.RealmConfig)
    assert isinstance(AutoModel.from_config(tiny_config), realm_hf.RealmEmbedder)
    assert isinstance(AutoModelForMaskedLM.from_config(tiny_config), realm_hf.RealmKnowledgeAugEncoder)
    assert isinstance(AutoModelForPreTraining.from_config(tiny_config), realm_hf.RealmForPreTraining)


def pinned_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pinned.items()}


def test_pinned_versions_lie_in_the_ranges_of_the_package():
    pinned = pinned_versions()
    extras = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *itertools.chain.from_iterable(extras)]
    for requirement in map(Requirement, requirements):
        if requirement.name != PROJECT["name"]:
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} does not allow the pinned {version}"


def test_pinned_versions_that_are_installed_take_the_oldest_python():
    """`make` takes the first python3.11 of the PATH, which may be 3.11.0."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    pinned = pinned_versions()
    refusing = [
        f"{name} {found.version}: {found.metadata['Requires-Python']}"
        for found in importlib.metadata.distributions()
        if found.version == pinned.get(name := canonicalize_name(found.metadata["Name"]))
        and oldest not in SpecifierSet(found.metadata["Requires-Python"] or "")
    ]
    assert not refusing


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_document_names_only_make_targets_and_files_that_exist(document):
    text = document.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?=[`\n ]+(?:[A-Z_]+=|#|`|\n|\|))", text)) <= targets
    for path in re.findall(r"\b(?:examples|benchmarks|tests)/[\w./-]*\.(?:py|yaml)\b", text):
        assert (ROOT / path).is_file(), path


def test_paper_index_names_only_source_files_that_exist():
    text = (ROOT / "docs" / "paper-index.md").read_text()
    named = re.findall(r"`(?!tests/)((?:[a-z_]+/)?[a-z_]+\.py)`", text)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / "src/realm_hf" / path).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_document_names_only_options_that_exist(document):
    text = document.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        options = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", line))
        if re.search(r"build-index|refresh\.builder", line):
            assert options <= BUILDER_OPTIONS | LAUNCHER_OPTIONS, line
        for written, module in PROGRAMS.items():
            if re.search(written, line):
                assert options <= option_names(module) | LAUNCHER_OPTIONS, line


def option_names(name: str) -> set[str]:
    """The fields of the dataclasses that a command parses its command line into."""
    module = importlib.import_module(f"realm_hf.cli.{name}")
    kinds = [item for item in vars(module).values() if isinstance(item, type) and dataclasses.is_dataclass(item)]
    return {field.name for kind in kinds for field in dataclasses.fields(kind)} | {"help"}


def test_nothing_says_to_install_a_name_that_is_not_published():
    """Until it is, the package is installed from a checkout; the release workflow's first tag ends this test."""
    pages = [page for page in DOCUMENTS if page.parent.name != "contributing"]
    written = [*pages, *(path for folder in ("src", "examples") for path in (ROOT / folder).rglob("*.py"))]
    assert [name_of(path) for path in written if re.search(r"pip install \W*realm-hf", path.read_text())] == []


def test_every_link_of_the_readme_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_no_two_modules_import_each_other_by_whatever_way():
    """Layers forbid circles between packages; this forbids them between files, those of type checkers included."""
    graph = grimp.build_graph("realm_hf", cache_dir=None)
    imported = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while True:
        ground = {module for module, names in imported.items() if not names}
        if not ground:
            break
        imported = {module: names - ground for module, names in imported.items() if module not in ground}
    assert not imported, f"these import each other, or from those that do: {sorted(imported)}"
