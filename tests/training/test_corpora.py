"""`examples/corpora.py`: a corpus is built once, by one rank, and a build that was killed leaves nothing half done."""

import importlib
import json

import pytest
from example_programs import EXAMPLES


@pytest.fixture
def corpora(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("corpora")


def test_corpus_whose_build_was_killed_is_built_again_with_the_settings_of_then_or_now(corpora, tmp_path):
    folder = tmp_path / "passages"

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpora.once(folder, {"max_length": 96}, killed)
    assert not folder.exists()
    corpora.once(folder, {"max_length": 64}, folder.mkdir)
    assert json.loads((tmp_path / "passages-settings.json").read_text()) == {"max_length": 64}
    corpora.once(folder, {"max_length": 64}, killed)  # it is there: nothing is built
    with pytest.raises(SystemExit, match="max_length: 64 then, 96 now"):
        corpora.once(folder, {"max_length": 96}, killed)
