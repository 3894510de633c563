"""Bytes of a field -> text, document, metadata. Every failure is a DataError that says what was wrong.

How pictures, series and audio are read stands in pictures.py, series.py and audio.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bigssl.data.errors import DataError
from bigssl.data.kinds.audio import audio
from bigssl.data.kinds.pictures import grey, image, mask, opened, picture_array
from bigssl.data.kinds.series import series
from bigssl.data.sample import Sample

__all__ = ["audio", "check_field", "document", "field", "grey", "image", "mask", "meta", "picture_array",
           "running_text", "series", "text"]  # fmt: skip

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
AUDIO = ("flac", "wav", "ogg")
DOCUMENTS = ("txt", "json")
FIELDS = {"image": IMAGES, "text": ("txt",), "series": ("npy",), "audio": AUDIO}
"""The fields of a sample that hold what a backbone of a modality takes; json beside them is metadata."""
MASK = "mask.png"
"""The field that holds the class of each pixel of the picture beside it."""
BOM = "\ufeff"
_HALF = re.compile(r"[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def field(sample: Sample, kinds: Sequence[str]) -> bytes:
    """The first of the fields `kinds` that the sample has. Raises DataError listing those there are."""
    for kind in kinds:
        if kind in sample.fields:
            return sample.fields[kind]
    there = ", ".join(sorted(sample.fields)) or "none"
    raise DataError(f"{sample.where}: no field {' or '.join(kinds)}; it has {there}")


def text(data: bytes) -> str:
    """UTF-8 text, without a byte order mark at its beginning. Raises DataError naming the first bad byte."""
    try:
        return data.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise DataError(f"text is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error


def document(sample: Sample) -> str | list[str]:
    """The text of a sample: its field txt, or its field json as `document_json` reads it. Raises DataError."""
    data = field(sample, DOCUMENTS)
    return text(data) if "txt" in sample.fields else document_json(data)


def document_json(data: bytes) -> str | list[str]:
    """Raw text, or sentences: a JSON string, a list of strings, or an object with one of these as `text` or
    `sentences`. Raises DataError saying what stands there instead."""
    value = json_value(data)
    if isinstance(value, dict):
        value = next((value[name] for name in ("text", "sentences") if name in value), value)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        kind = f"an object with {', '.join(sorted(value)) or 'nothing'}" if isinstance(value, dict) else repr(value)
        raise DataError(f"json is no document but {kind}; allowed are text, a list of sentences, or an object with one")
    for number, sentence in enumerate(value):
        if not isinstance(sentence, str):
            raise DataError(f"json document: sentence {number} is {type(sentence).__name__} {sentence!r:.40}, not text")
    return value


def running_text(sample: Sample) -> str:
    """`document` in one piece: its sentences with a space between. Raises DataError."""
    found = document(sample)
    return found if isinstance(found, str) else " ".join(found)


def meta(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    value = json_value(data)
    if not isinstance(value, dict):
        raise DataError(f"metadata is a JSON {type(value).__name__}, an object is needed")
    return value


def value_name(value: Any) -> str:
    """How a class or another value of metadata is called: 1, 1.0 and "1" are one, whichever program wrote them."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def json_value(data: bytes) -> Any:
    """What a JSON holds. Raises DataError."""
    try:
        value = json.loads(text(data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"metadata is not JSON ({error})") from error
    if _ESCAPED_HALF.search(data):
        for part in strings(value):
            refuse_halves(part, "json")
    return value


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value:
            yield from strings(part)
        yield from (found for part in value.values() for found in strings(part)) if isinstance(value, dict) else ()


def refuse_halves(value: str, where: str) -> None:
    r"""Raises DataError where a text holds half of a surrogate pair (JSON's \ud83d without its \ude00): it is no
    character, no UTF-8 can hold it and no tokenizer takes it."""
    if found := _HALF.search(value):
        near = value[max(0, found.start() - 12) : found.start()]
        raise DataError(
            f"{where} holds \\u{ord(found.group()):04x}, half of a surrogate pair and no character, behind {near!r}; "
            "remove it where the text is made"
        )


def only_json(fields: Iterable[str]) -> bool:
    """Whether a sample of these fields has nothing to train on but the text in its json: no txt, picture, sound or
    series, beside which json is metadata."""
    return not {name.rpartition(".")[2] for name in fields} & {"txt", "npy", *IMAGES, *AUDIO}


def check_field(name: str, data: bytes, *, only_text: bool = False) -> None:
    """Decodes a field by its name as far as its kind is known. Raises DataError.

    only_text: as `only_json` says; a json object with `text` or `sentences` must then be a document.
    """
    kind = name.rpartition(".")[2]
    if kind in IMAGES:
        opened(data, None, "RGB")
    elif kind in AUDIO:
        audio(data)
    elif kind == "txt":
        text(data)
    elif kind == "json":
        _check_json(data, only_text)
    elif kind == "npy":
        series(data, non_finite="keep")


def _check_json(data: bytes, only_text: bool) -> None:
    if not holds_object(data) or (only_text and {"text", "sentences"} & set(meta(data))):
        document_json(data)
    else:
        meta(data)


def holds_object(data: bytes) -> bool:
    """Whether a JSON is an object, by how it begins: no list, text or number."""
    return data.removeprefix(BOM.encode()).lstrip()[:1] not in (b"[", b'"')
