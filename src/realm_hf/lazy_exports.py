"""What waits for its first use: public names of a package, classes given to others, and what is done to a module.

`lazy_loader` and transformers' `_LazyModule` do the same; the one is a dependency more, the other is private.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["lazy_class", "lazy_exports", "when_imported"]


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    What a package's `__getattr__` and `__dir__` become.

    Type checkers read the package's imports under `TYPE_CHECKING`, and its `__all__`, instead; a test holds all three
    equal.

    Args:
        package (`str`): `__name__` of the package.
        modules (`Mapping[str, Sequence[str]]`): The public names of each of its modules; a dot in front of a module
            leads a package up, as in `from ..refresh.rank_group import RankGroup`.

    Returns:
        `tuple` of the two functions.

    Example:
    ```python
    >>> __getattr__, __dir__ = lazy_exports(__name__, {"retrieval_realm": ["RealmRetriever"]})
    ```
    """
    places = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{places[name]}", package), name)
        setattr(sys.modules[package], name, value)  # from now on no call is made
        return value

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, listing


class _LazyClass(type):
    """Passes on what is asked of a class, and its calls; attributes of its own are those it was made with."""

    _place: tuple[str, str]

    def __getattr__(cls, name: str) -> Any:
        module, real = cls._place
        return getattr(getattr(import_module(module), real), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module, real = cls._place
        return getattr(import_module(module), real)(*args, **kwargs)


def lazy_class(module: str, name: str, **known: Any) -> Any:
    """
    A stand-in for a class, to be registered with transformers: the class is imported when something of it is used.

    It is no base class, and `isinstance` does not know it: for registers, which call `from_pretrained` or the class.

    Args:
        module (`str`): Where the class is.
        name (`str`): Its name.
        known (*optional*): Attributes that are read at registration, before there is a use.

    Example:
    ```python
    >>> AutoModel.register(RealmConfig, lazy_class("realm_hf.models.modeling_embedder", "RealmEmbedder",
    ...                                            config_class=RealmConfig))
    ```
    """
    return _LazyClass(name, (), {"__module__": module, "__doc__": None, "_place": (module, name), **known})


def when_imported(module: str, action: Callable[[], object]) -> None:
    """
    Do something to another package's module once it is there: now if it has been imported, else when it is.

    `wrapt.when_imported` does the same, and is a dependency more.

    Args:
        module (`str`): Its full name.
        action (`Callable`): Called once, after the module's own code; it must not import what imports the module.
    """
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Waiting(module, action))


class _Waiting(MetaPathFinder):
    """Finds one module as the other finders do, and puts an action behind its code."""

    def __init__(self, module: str, action: Callable[[], object]):
        self.module, self.action = module, action

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _LoaderWithAction(spec.loader, self.action)
                return spec
        return None


class _LoaderWithAction(Loader):
    def __init__(self, loader: Loader, action: Callable[[], object]):
        self.loader, self.action = loader, action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is to look as if nothing had been put behind it: its source is asked of its loader.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.action()
