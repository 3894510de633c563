"""The file of a first recipe: its values as YAML, and beside each what it does, or what to raise for a longer run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/.~][\w/.~-]*")  # strings that no YAML reader takes for something else ...
_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n", "~", ".", "..", ".inf", ".nan")  # ... but these
_WIDTH = 120
FLAT = ("optim", "batch", "checkpoint", "data.sources.data")
"""Sections that stand in one line."""


def page(head: list[str], values: Mapping[str, Any], notes: Mapping[str, str], foot: list[str]) -> str:
    """The YAML of `values` under `head` and above `foot`, lines of comment both.

    notes: comments by dotted field; beside the field where they fit, above it elsewhere.
    """
    lines = [_comment(line) for line in head]
    lines += _section(values, "", 0, notes)
    return "\n".join([*lines, *map(_comment, foot)]) + "\n"


def _comment(text: str) -> str:
    return f"# {text}".rstrip()


def _section(values: Mapping[str, Any], path: str, depth: int, notes: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for name, value in values.items():
        here, indent = f"{path}{name}", "  " * depth
        if isinstance(value, Mapping) and not _in_one_line(here, value, depth):
            lines += [*_beside(f"{indent}{scalar(name)}:", notes.get(here), indent)]
            lines += _section(value, f"{here}.", depth + 1, notes)
        else:
            lines += _beside(f"{indent}{scalar(name)}: {_flow(value)}", notes.get(here), indent)
    return lines


def _in_one_line(path: str, value: Mapping[str, Any], depth: int) -> bool:
    flat = not any(isinstance(each, Mapping) for each in value.values())
    fits = 2 * depth + len(path) + len(_flow(value)) < _WIDTH
    return flat and fits and (path in FLAT or path.split(".")[0] in ("probe", "evaluate"))


def _beside(line: str, note: str | None, indent: str) -> list[str]:
    if note is None:
        return [line]
    both = f"{line}  # {note}"
    return [both] if len(both) <= _WIDTH else [f"{indent}# {note}", line]


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(name)}: {_flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """A value of YAML that reads back as itself: in quotes where it has to be."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
