"""Turns the docstrings' Hugging Face notation into what mkdocstrings reads.

[`RealmEmbedder`] and [`~RealmForPreTraining.from_bert`] become links of mkdocs-autorefs where the reference has such
an entry. (Its Markdown form warns of every name that has none; this one may be optional.) The type notes
"(`torch.Tensor` of shape `(B, D)`, *optional*)" lose the marks that would be shown as they are; mkdocstrings links
their names itself. Fields of the argument dataclasses are listed with their `help`.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

import griffe

REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?!\()")
TYPED_ITEM = re.compile(r"^(\s+\w+ )\((.*)\)(:)", flags=re.MULTILINE)
SECTION = re.compile(r"^( *)(Args|Raises|Attributes):$")
ITEM = re.compile(r"^ *[`*\w.]+( \(.*\)?)?[^ ]*:( |$)")
RETURNED_TYPE = re.compile(r"^(\s+)(\[`[\w.~]+`\])(?=:|$)", flags=re.MULTILINE)
RAISED_ITEM = re.compile(r"^(\s+)`(\w+)`:", flags=re.MULTILINE)


class DocstringLinks(griffe.Extension):
    """Rewrites every docstring of the package after it was loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Collects the public names first, so that each can link to any other."""
        objects = list(_own_members(pkg))
        places = {item.name: item.path for item in objects if item.is_class or item.is_function}
        for item in objects:
            if item.is_class and item.docstring:
                item.docstring.value += _fields_with_help(item)
            if item.docstring:
                item.docstring.value = _rewrite(item.docstring.value, places)


def _own_members(parent: griffe.Object) -> list[griffe.Object]:
    found = [parent]
    for member in parent.members.values():
        if not member.is_alias:
            found += _own_members(member)
    return found


def _fields_with_help(kind: griffe.Object) -> str:
    """An `Args:` section from the `help` of the fields of a dataclass that the command line is parsed into."""
    fields = [(name, item) for name, item in kind.members.items() if not item.is_alias and item.is_attribute]
    lines = [
        f"    {name}: {ast.literal_eval(node.values[0])}"
        for name, item in fields
        for node in ast.walk(ast.parse(str(item.value or "None")))
        if isinstance(node, ast.Dict) and [getattr(key, "value", None) for key in node.keys] == ["help"]
        # What is filled in when it runs is only known there.
        if isinstance(node.values[0], ast.Constant)
    ]
    return "\n\nArgs:\n" + "\n".join(lines) if lines else ""


def _rewrite(text: str, places: dict[str, str]) -> str:
    def link(match: re.Match[str]) -> str:
        name = match[1].removeprefix("realm_hf.")
        head, _, member = name.partition(".")
        path = places.get(head)
        if path is None:
            return f"`{match[1]}`"
        # Optional: what has no place in the reference stays plain code.
        target = f"{path}.{member}" if member else path
        return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'

    # Types first, as bare names: mkdocstrings reads them as Python and links them itself; a tag it would show as text.
    text = TYPED_ITEM.sub(lambda m: f"{m[1]}({_bare(m[2])}){m[3]}", text)
    text = RETURNED_TYPE.sub(lambda m: f"{m[1]}{_bare(m[2])}", text)
    text = REFERENCE.sub(link, text)
    text = RAISED_ITEM.sub(r"\1\2:", text)
    return "\n".join(_indent_continuations(text.splitlines()))


def _bare(types: str) -> str:
    return REFERENCE.sub(lambda match: match[1].rpartition(".")[2], types).replace("`", "").replace("*", "")


def _indent_continuations(lines: list[str]) -> Iterator[str]:
    """The second line of an item may stand right under its first in our docstrings; mkdocstrings wants it indented."""
    width = None
    for line in lines:
        section = SECTION.match(line)
        indent = len(line) - len(line.lstrip())
        if section:
            width = len(section[1]) + 4
        elif line.strip() and width is not None and indent < width:
            width = None
        continues = width is not None and indent == width and not section and not ITEM.match(line)
        yield "    " + line if continues and line.strip() else line
