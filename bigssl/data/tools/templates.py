"""Texts with {column} in braces, of which `bigssl shards pack` makes names, keys and texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from functools import lru_cache

from bigssl.data.errors import DataError

_PIECES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")


def as_template(option: str, text: str) -> str:
    """`text` as a template: a bare word is a column. Raises DataError naming `option` where it is none."""
    if not text:
        raise DataError(f"--{option} '': a column is needed, or a template with columns in braces: '{{name}}.jpg'")
    template = text if "{" in text or "}" in text else f"{{{text}}}"
    try:
        _parsed(template)
    except DataError as error:
        raise DataError(f"--{option} {error}") from error
    return template


def columns_of(template: str, there: Container[str]) -> list[str]:
    """The columns that a template asks for, some of them maybe not `there`. Raises DataError for what is no
    template."""
    return [_column(name, there)[0] for _, name in _parsed(template) if name]


def fill_in(template: str, there: Container[str], value: Callable[[str], str]) -> str:
    """The template with `value(column)` in the place of each {column}; behind a colon may stand a format of str, as in
    {n:0>5}. `{{` and `}}` are braces. Raises DataError for what is no template, and what `value` raises."""
    pieces = []
    for literal, name in _parsed(template):
        column, form = _column(name, there)
        try:
            pieces.append(format(value(column), form) if name else literal)
        except ValueError as error:
            raise DataError(f"{template!r} is no template ({error})") from error
    return "".join(pieces)


def _column(name: str, there: Container[str]) -> tuple[str, str]:
    if name in there or ":" not in name:
        return name, ""
    column, _, form = name.rpartition(":")
    return column, form


@lru_cache
def _parsed(template: str) -> tuple[tuple[str, str], ...]:
    """(text, "") or ("", column) for each piece."""
    found: list[tuple[str, str]] = []
    for piece in _PIECES.findall(template):
        if piece in ("{", "}", "{}"):
            cause = "braces hold no column" if piece == "{}" else f"a single {piece!r}"
            raise DataError(f"{template!r} is no template ({cause}); write columns in braces, as in '{{name}}.jpg'")
        if piece in ("{{", "}}"):
            found.append((piece[0], ""))
        else:
            found.append(("", piece[1:-1]) if piece[0] == "{" else (piece, ""))
    return tuple(found)
