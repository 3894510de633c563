"""Rules that rewrite texts, by name: unicode normalisation, control characters.

Rewritten are the field txt (and NAME.txt), and of a json what is text there: a string, a list of strings, or the values
`text`, `sentences` and `captions` of an object. All else is metadata and stays, byte for byte, as what does not change.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode

_TEXTS = ("text", "sentences", "captions")
_ENDS = re.compile("\r\n?|\x85|\u2028|\u2029")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufdd0-\ufdef\ufffe\uffff]")


class Rewrite(NamedTuple):
    """What a rule says, and what it makes of a text."""

    meaning: str
    apply: Callable[[str], str]


def without_controls(text: str) -> str:
    """Line ends become \\n; control characters but \\t and \\n, byte order marks and noncharacters go. What joins or
    directs letters (zero-width joiners, marks of direction, soft hyphens) is part of the writing and stays."""
    return _CONTROLS.sub("", _ENDS.sub("\n", text))


REWRITES = {
    "controls": Rewrite("control characters and byte order marks go, line ends become \\n", without_controls),
    "nfc": Rewrite("NFC: letters with their marks become one", lambda text: unicodedata.normalize("NFC", text)),
    "nfkc": Rewrite(
        "NFKC: that, and letters of another width or style become plain (Ａ → A, ﬁ → fi, ² → 2)",
        lambda text: unicodedata.normalize("NFKC", text),
    ),
}
"""In the order in which they are applied."""


def check_rewrites(names: Sequence[str]) -> None:
    """Raises DataError where one of `names` is no rule, or two exclude each other."""
    if unknown := sorted(set(names) - set(REWRITES)):
        raise DataError(f"--rewrite {', '.join(unknown)}: no such rule; allowed: {', '.join(REWRITES)}")
    if {"nfc", "nfkc"} <= set(names):
        raise DataError("--rewrite nfc,nfkc: nfkc does all that nfc does; give one of them")


def version_of(names: Sequence[str]) -> list[str]:
    """What decides, beside the text, on what is made of it."""
    return [*(name for name in REWRITES if name in names), unicodedata.unidata_version]


def rewritten(fields: Mapping[str, bytes], names: Sequence[str]) -> dict[str, bytes]:
    """The fields of a sample with their texts rewritten by the rules `names`.

    Raises DataError where one is no text, and where the json says at which character of it answers stand.
    """
    rules = [rule.apply for name, rule in REWRITES.items() if name in names]
    found = dict(fields)
    for name, data in fields.items():
        kind = name.rpartition(".")[2]
        if rules and kind in decode.DOCUMENTS:
            found[name] = _rewritten(kind, data, lambda text: reduce(lambda now, rule: rule(now), rules, text))
    moved = found.get("txt") != fields.get("txt") and "json" in fields and decode.holds_object(fields["json"])
    if moved and "answers" in decode.meta(fields["json"]):
        raise DataError("its json has `answers`, which stand at characters of its txt: rewriting would move them; "
                        "rewrite the source before it is packed")  # fmt: skip
    return found


def changing(fields: Mapping[str, bytes]) -> list[str]:
    """The rules that, each by itself, would change a sample. Raises DataError."""
    texts = [text for name, data in fields.items() for text in _texts_of(name.rpartition(".")[2], data)]
    return [name for name, rule in REWRITES.items() if any(rule.apply(text) != text for text in texts)]


def _texts_of(kind: str, data: bytes) -> list[str]:
    if kind == "txt":
        return [decode.text(data)]
    seen: list[str] = []
    if kind == "json":
        _each_text(decode.json_value(data), lambda text: seen.append(text) or text)  # type: ignore[func-returns-value]
    return seen


def _rewritten(kind: str, data: bytes, rewrite: Callable[[str], str]) -> bytes:
    if kind == "txt":
        text = decode.text(data)
        now = rewrite(text)
        return data if now == text else now.encode()
    value = decode.json_value(data)
    now = _each_text(value, rewrite)
    return data if now == value else json.dumps(now, ensure_ascii=False, separators=(",", ":")).encode()


def _each_text(value: Any, rewrite: Callable[[str], str]) -> Any:
    """The same JSON value with its texts rewritten; other things in it stay."""
    if isinstance(value, dict):
        texts = [name for name in _TEXTS if isinstance(value.get(name), str | list)]
        return value | {name: _each_text(value[name], rewrite) for name in texts}
    if isinstance(value, list):
        return [rewrite(each) if isinstance(each, str) else each for each in value]
    return rewrite(value) if isinstance(value, str) else value
