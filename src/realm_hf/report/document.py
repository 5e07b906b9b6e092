"""What the pages have in common: the frame around their content, the tiles of figures, and how a page is written."""

import os
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path

__all__ = ["document", "tiles", "write_page"]


def document(title: str, heading: str, about: str, body: str, *, styles: Iterable[str] = ("style.css",)) -> str:
    """
    A whole page; it refers to no other file and no address.

    Args:
        title (`str`): The window's title, as text.
        heading (`str`): The page's heading, as text.
        about (`str`): One line below it, as text.
        body (`str`): The content, as HTML.
        styles (`Iterable[str]`, *optional*): Style sheets of this package; by default the one of every page.
    """
    sheets = resources.files(__package__)
    style = "".join(sheets.joinpath(name).read_text(encoding="utf-8") for name in styles)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(heading)}</h1>\n<p class="quiet">{escape(about)}</p>\n{body}\n</main>\n</body>\n</html>\n'
    )


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Figures side by side as HTML, each given as `(label, value)`."""
    inner = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span class="quiet">{escape(label)}</span></div>'
        for label, value in figures
    )
    return f'<div class="tiles">{inner}</div>'


def write_page(page: str, target: Path) -> None:
    """Write a page; a file that is there is replaced in one step."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(page, encoding="utf-8", errors="replace")
    partial.replace(target)
