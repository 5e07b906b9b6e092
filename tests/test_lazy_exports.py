"""Stand-ins for classes, and what is done to a module when it is imported."""

import importlib
import sys
from collections import OrderedDict

import pytest

from realm_hf.lazy_exports import lazy_class, when_imported


def test_a_stand_in_is_called_and_asked_as_the_class_is():
    stand_in = lazy_class("collections", "OrderedDict", config_class="known before")
    assert (stand_in.__name__, stand_in.__module__, stand_in.config_class) == (
        "OrderedDict",
        "collections",
        "known before",
    )
    assert type(stand_in(a=1)) is OrderedDict
    assert stand_in.fromkeys("ab", 0) == {"a": 0, "b": 0}
    with pytest.raises(AttributeError, match="nothing"):
        stand_in.nothing  # noqa: B018


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "waited_for.py").write_text("registered = ['its own']\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "waited_for"
    sys.modules.pop("waited_for", None)


def test_an_action_follows_the_code_of_a_module_once(module):
    finders = list(sys.meta_path)

    def action():
        sys.modules[module].registered.append("ours")

    when_imported(module, action)
    assert module not in sys.modules
    made = importlib.import_module(module)
    assert made.registered == ["its own", "ours"] and sys.meta_path == finders
    assert made.__spec__.loader is made.__loader__ and made.__loader__.get_source(module).startswith("registered")
    assert importlib.reload(made).registered == ["its own"]
    when_imported(module, action)
    assert made.registered == ["its own", "ours"], "at once, where it has been imported"
