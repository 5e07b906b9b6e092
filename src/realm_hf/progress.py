"""One kind of bar for all that makes somebody wait: how much is done, and the time that is left."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm

__all__ = ["SECONDS_WITHOUT_BAR", "progress_bar"]

SECONDS_WITHOUT_BAR = 2.0
"""A wait is shown when it has taken so long."""


def progress_bar(total: int, doing: str, unit: str, is_shown: bool | None = None) -> Any:
    """
    A bar to be advanced by `update(n)`; it is gone when its `with` block ends, unless it was asked for.

    Args:
        total (`int`): How many there are.
        doing (`str`): What is done to them, such as `"embedding"`.
        unit (`str`): What they are, such as `"passages"`; `"B"` for bytes, shown as MB and GB.
        is_shown (`bool`, *optional*): By default a wait of more than two seconds is shown where stderr is a terminal,
            by the first of several processes. `True` shows the bar at once, and everywhere.

    Returns:
        `tqdm`
    """
    if is_shown is None and os.environ.get("RANK", "0") != "0":
        is_shown = False
    return tqdm(
        total=total,
        desc=doing,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        delay=SECONDS_WITHOUT_BAR if is_shown is None else 0,
        leave=is_shown is True,
        dynamic_ncols=True,
        disable=None if is_shown is None else not is_shown,  # tqdm's `None`: where there is no terminal
    )
