"""What the rules ask of the text of a sample, measured once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.tools.texts.lines import line_hashes, text_numbers
from bigssl.data.tools.texts.near import signature
from bigssl.data.tools.texts.scripts import letters_by_script


class TextFacts(NamedTuple):
    """A text: its numbers (`text_numbers`), letters by script, different lines (uint64 [L]), and its signature, where
    that was asked for and it has words."""

    numbers: Mapping[str, float]
    scripts: Counter[str]
    lines: np.ndarray
    signature: np.ndarray | None


def document_in(fields: Mapping[str, bytes], *, near: bool) -> TextFacts | None:
    """Of the field txt, or the json where that is all there is to learn from; None where there is no text, and where it
    cannot be read (which the survey notes). near: with its signature."""
    try:
        text = _text_in(fields)
    except DataError:
        return None
    if text is None:
        return None
    return TextFacts(text_numbers(text), letters_by_script(text), line_hashes(text), signature(text) if near else None)


def _text_in(fields: Mapping[str, bytes]) -> str | None:
    if "txt" in fields:
        return decode.text(fields["txt"])
    if "json" not in fields or not decode.only_json(fields):
        return None
    found = decode.document_json(fields["json"])
    return found if isinstance(found, str) else "\n".join(found)
