"""Turns validation errors into one line each: where, field, value, what is allowed, nearest match."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError


class ConfigError(ValueError):
    """A recipe, or what it points to, cannot be run. The message is complete: print it and stop.

    mistakes: a line each, also where they quote what a library said in several.
    """

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(re.sub(r"\s*\n\s*", " ", mistake.strip()) for mistake in mistakes))


def say(error: Exception, who: str = "") -> None:
    """The message on stderr, each of its mistakes as a line of ours; `who` says it, e.g. "rank 8: "."""
    for line in str(error).splitlines():
        print(f"bigssl: {who}{line}", file=sys.stderr, flush=True)


def nearest(word: str, choices: Sequence[str]) -> str:
    """`; nearest: X` when a choice is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; nearest: {close[0]}" if close else ""


def describe(error: ValidationError, path: str, schema: dict[str, Any]) -> list[str]:
    """One line per mistake in `error`, with the choices read from the JSON `schema` of the model."""
    lines = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        keys, node = _walk(schema, location)
        for reason in _reason(item, keys, node).split("\n"):
            lines.append(": ".join(part for part in (path, ".".join(keys), reason) if part))
    return lines


def _walk(schema: dict[str, Any], location: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Recipe path of a pydantic location (union tags are not keys) and the schema node of its parent section."""
    node, keys = schema, []
    parent = schema
    for part in location:
        node = _resolve(schema, node)
        branch = _union_member(schema, node, part)
        if branch is not None:
            node = branch
            continue
        keys.append(part)
        parent = node
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
        if not isinstance(node, dict):
            node = {}
    return keys, {"parent": _resolve(schema, parent), "self": _resolve(schema, node)}


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    some = [choice for choice in node.get("anyOf", []) if choice.get("type") != "null"]
    if len(some) == 1:
        return _resolve(schema, some[0])
    return node


def _union_member(schema: dict[str, Any], node: dict[str, Any], tag: str) -> dict[str, Any] | None:
    mapping = node.get("discriminator", {}).get("mapping", {})
    if tag in mapping:
        return _resolve(schema, {"$ref": mapping[tag]})
    return None


def _reason(item: Any, keys: list[str], node: dict[str, Any]) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        choices = sorted(node["parent"].get("properties", {}))
        return f"unknown key (value {_short(value)}); allowed: {', '.join(choices)}{nearest(keys[-1], choices)}"
    if kind == "missing":
        allowed = _allowed(node["self"])
        return f"missing; {allowed or 'a value is needed'}"
    if kind in ("union_tag_invalid", "literal_error"):
        choices = _choices(context.get("expected_tags") or context.get("expected", ""))
        given = context.get("tag", value)
        return f"value {_short(given)}; allowed: {', '.join(choices)}{nearest(str(given), choices)}"
    if kind == "union_tag_not_found":
        told_apart = node["self"].get("discriminator", {})
        return f"needs `{told_apart.get('propertyName')}`, one of {', '.join(sorted(told_apart.get('mapping', {})))}"
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(value, dict):  # a check over several fields, which names them itself
        return message
    allowed = _allowed(node["self"])
    return f"value {_short(value)}: {message[0].lower()}{message[1:]}{'; allowed: ' + allowed if allowed else ''}"


def _choices(expected: str) -> list[str]:
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",") if part.strip()]


def _allowed(node: dict[str, Any]) -> str:
    words = [node["type"]] if isinstance(node.get("type"), str) else []
    if "enum" in node:
        words = [", ".join(map(str, node["enum"]))]
    signs = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<", "pattern": "matching"}
    words += [f"{sign} {node[key]}" for key, sign in signs.items() if key in node]
    if node.get("description"):
        words.append(f"({node['description']})")
    return " ".join(words)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
