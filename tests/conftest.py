"""What all tests share: no network, no writes outside temporary folders, and tiny real objects instead of mocks."""

import importlib.util
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from realm_hf import RealmConfig, RealmEmbedder, RealmTokenizer
    from realm_hf.data.passages.store import PassageStore
    from realm_hf.runs.directory import RunDirectory

TESTS = Path(__file__).parent
GUARD = TESTS / "guard"


def _prepare_environment() -> None:
    """Runs on import, before a library reads these: caches into a temporary folder, offline, one thread, guarded."""
    if "REALM_TEST_TMP" not in os.environ:  # the xdist workers inherit the one of the process that started them
        os.environ["REALM_TEST_TMP"] = tempfile.gettempdir()
    home = Path(os.environ["REALM_TEST_TMP"]) / f"realm-tests-home-{os.getuid()}"
    for variable, folder in {
        "HF_HOME": "hf",
        "XDG_CACHE_HOME": "cache",
        "MPLCONFIGDIR": "matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
    }.items():
        os.environ[variable] = str(home / folder)
    # They would win over HF_HOME:
    for variable in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE"):
        os.environ.pop(variable, None)
    for variable in (
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
        "DISABLE_SAFETENSORS_CONVERSION",
    ):
        os.environ[variable] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["REALM_TEST_GUARD"] = "1"
    paths = [str(GUARD), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    guard_module().install()
    # In the background of a shell Ctrl-C is ignored, and so it would be by the programs that the tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def guard_module():
    """`tests/guard/sitecustomize.py` under a name of its own: the interpreter may have another `sitecustomize`."""
    name = "realm_test_guard"
    own = sys.modules.get("sitecustomize")
    if name not in sys.modules and hasattr(own, "ForbiddenInTests"):
        sys.modules[name] = own  # a worker of xdist: its interpreter has loaded the guard at start-up
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, GUARD / "sitecustomize.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


_prepare_environment()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every kill point and size, not the reduced counts")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        skip = pytest.mark.skip(reason="exhaustive variant: run with --full (make faults)")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _log_levels_end_with_the_test() -> Iterator[None]:
    """The command line and the examples set levels for their whole process, which here is that of other tests too."""
    loggers = [logging.getLogger(name) for name in (None, "realm_hf", "realm_hf.builder", "transformers")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _weights_elsewhere() -> Iterator[None]:
    """With REALM_TEST_WEIGHTS_AT, loaded weights lie so many bytes behind a multiple of 64, and products heed it."""
    offset = os.environ.get("REALM_TEST_WEIGHTS_AT")
    if offset is None:
        yield
        return
    from promises import products_as_on_amd, weights_loaded_at

    with products_as_on_amd(), weights_loaded_at(int(offset)):
        yield


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """True under `--full`: tests that only differ in a count read it here."""
    return request.config.getoption("--full")


@pytest.fixture(scope="session")
def tiny_vocab() -> Path:
    """A WordPiece vocabulary of 2,048 entries; `tests/fixtures/make_vocab.py` made it from public-domain English."""
    return TESTS / "fixtures" / "vocab.txt"


@pytest.fixture(scope="session")
def tokenizer(tiny_vocab: Path) -> "RealmTokenizer":
    from realm_hf import RealmTokenizer

    return RealmTokenizer(vocab=str(tiny_vocab), do_lower_case=True)


@pytest.fixture
def tiny_config(tiny_vocab: Path) -> "RealmConfig":
    """2 layers x 32 hidden x 2 heads, projection 16, no dropout; a fresh one for each test, which may change it."""
    from realm_hf import RealmConfig

    return RealmConfig(
        vocab_size=len(tiny_vocab.read_text(encoding="utf-8").splitlines()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        retriever_proj_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        hidden_act="gelu",
    )


@pytest.fixture(scope="session")
def tiny_passages(tokenizer: "RealmTokenizer", tmp_path_factory: pytest.TempPathFactory) -> "PassageStore":
    """48 passages of two sentences each, all different."""
    from datasets import Dataset

    from realm_hf.data.passages.build import passages_from_rows

    places = ("river", "mountain", "island", "city", "forest", "harbour")
    rows = {
        "title": [f"Place {number}" for number in range(48)],
        "text": [
            f"The {places[number % 6]} number {number} lies in the north. It has {number * 7 + 3} people and a road."
            for number in range(48)
        ],
    }
    folder = tmp_path_factory.mktemp("passages") / "store"
    return passages_from_rows(Dataset.from_dict(rows), tokenizer, folder, max_length=64)


@pytest.fixture
def embedder(tiny_config: "RealmConfig") -> "RealmEmbedder":
    """A tiny passage tower with seeded weights, in evaluation mode."""
    import torch

    from realm_hf import RealmEmbedder

    torch.manual_seed(0)
    return RealmEmbedder(tiny_config).eval()


@pytest.fixture
def run(tmp_path: Path, tiny_passages: "PassageStore", tokenizer: "RealmTokenizer") -> "RunDirectory":
    """A fresh run directory over `tiny_passages`, with no trainer and no snapshot."""
    from realm_hf.runs.directory import RunDirectory

    return RunDirectory.create(tmp_path / "run", passages=tiny_passages, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def countries(tmp_path_factory):
    from tiny_worlds import country_passages

    return country_passages(tmp_path_factory.mktemp("countries"))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Folder with `passages` and `sentences` of the fact world."""
    from tiny_worlds import fact_world

    folder = tmp_path_factory.mktemp("world")
    fact_world(folder)
    return folder
