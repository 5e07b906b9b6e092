"""Public names of a package that are imported when they are first used.

`lazy_loader` and transformers' `_LazyModule` do the same; the one is a dependency more, the other is private.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["lazy_exports"]


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
