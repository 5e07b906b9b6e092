"""What the run was: model, corpus, training, versions and hardware in a table, and every setting below the page."""

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from realm_hf.report.tables import table
from realm_hf.runs.records import RunRecord

__all__ = ["settings", "setup"]

_TRAINING = {
    "learning_rate": "learning rate {:g}",
    "warmup_steps": "{:,} steps of warm-up",
    "num_candidates": "{:,} candidates",
    "seed": "seed {}",
}
"""Arguments that the table has, and how it says them."""


def setup(record: RunRecord) -> str:
    """What a reader asks first, as far as the run recorded it."""
    rows = [
        ("model", str(record.summary.get("started_from") or "")),
        ("knowledge corpus", _corpus(record)),
        ("pre-training corpus", str(record.corpora.get("sentences", {}).get("pretraining_corpus") or "")),
        ("training", _training(record)),
        ("index", _index(record)),
        ("hardware", _joined(record.hardware)),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.packages.items())),
        ("created", _day(str(record.settings.get("created") or ""))),
    ]
    known = [row for row in rows if row[1]]
    return (
        f'<h2>Set-up</h2><div class="card">{table(["setting", "as recorded"], known, kind="setup")}</div>'
        if known
        else ""
    )


def settings(record: RunRecord) -> str:
    """Every setting, folded up."""
    parts = {
        "Settings of the run (run.json)": record.settings,
        "Arguments (summary.json)": record.arguments,
        **{f"Corpus ({name}-settings.json)": content for name, content in record.corpora.items()},
    }
    return "\n".join(
        f"<details><summary>{title}</summary><pre>"
        f"{escape(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False))}</pre></details>"
        for title, content in parts.items()
        if content
    )


def _corpus(record: RunRecord) -> str:
    source = record.corpora.get("passages", {}).get("knowledge_corpus")
    rows = record.settings.get("rows")
    return ", ".join([*([str(source)] if source else []), *([f"{rows:,} passages"] if isinstance(rows, int) else [])])


def _training(record: RunRecord) -> str:
    arguments = record.arguments
    parts = []
    if record.examples_per_step is not None:
        parts.append(f"{record.examples_per_step} examples a step")
    for name, words in _TRAINING.items():
        if isinstance(arguments.get(name), int | float):
            parts.append(words.format(arguments[name]))
    return ", ".join(parts)


def _index(record: RunRecord) -> str:
    mode = record.arguments.get("refresh")
    factory = record.settings.get("index_factory")
    when = record.arguments.get("refresh_schedule") or f"every {record.arguments.get('refresh_steps')} steps"
    renewed = [] if mode is None else [f"refresh {mode}" if mode == "off" else f"refresh {mode}, {when}"]
    return ", ".join([*([str(factory)] if factory else []), *renewed])


def _day(created: str) -> str:
    """A time in ISO form, to the minute and without the T."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:\.\d+)?\+00:00$", r"\1 \2 UTC", created)


def _joined(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value is not None)
