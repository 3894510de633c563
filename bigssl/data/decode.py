"""Bytes of a field -> image, text, metadata, series. Every failure is a DataError that says what was wrong."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from bigssl.data.errors import DataError
from bigssl.data.stream import Sample

IMAGES = ("jpg", "jpeg", "png", "webp")
MAX_PIXELS = 1 << 26  # a picture that claims more is refused before it is unpacked


def field(sample: Sample, kinds: Sequence[str]) -> bytes:
    """The first of the fields `kinds` that the sample has. Raises DataError listing those there are."""
    for kind in kinds:
        if kind in sample.fields:
            return sample.fields[kind]
    there = ", ".join(sorted(sample.fields)) or "none"
    raise DataError(f"shard {sample.shard}, sample {sample.key!r}: no field {' or '.join(kinds)}; it has {there}")


def image(data: bytes, *, size: int | None = None, mode: str = "RGB") -> Image.Image:
    """A decoded picture in `mode`. Transparent ones are laid on white; 16-bit grey is scaled to 8 bits.

    size: the shorter side that is needed at least, in pixels; a JPEG is then decoded at 1/2, 1/4 or 1/8 where that
    suffices. Raises DataError for what is no picture, is cut off, or claims more than MAX_PIXELS.
    """
    try:
        picture = Image.open(io.BytesIO(data))
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise DataError(f"field is a picture of {width}×{height} pixels; at most {MAX_PIXELS} are allowed")
        if size is not None and picture.format == "JPEG":
            shorter = min(width, height)
            picture.draft(mode, (width * size // shorter, height * size // shorter))
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"undecodable image of {len(data)} bytes ({_cause(error)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"refused image ({error})") from error
    return _convert(picture, mode)


def _cause(error: Exception) -> str:
    return "no known picture format" if isinstance(error, UnidentifiedImageError) else str(error)


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode == mode:
        return picture
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return picture.convert(mode)


def text(data: bytes) -> str:
    """UTF-8 text. Raises DataError naming the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"text is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error


def meta(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataError(f"metadata is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"metadata is a JSON {type(value).__name__}, an object is needed")
    return value


def series(data: bytes) -> np.ndarray:
    """float32 [T, C]: a series stored as .npy of that shape, or of shape [T]. Raises DataError."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise DataError(f"series is not an .npy array ({error})") from error
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuf":
        raise DataError(f"series is {array.dtype}{list(array.shape)}, numbers of shape [T] or [T, C] are needed")
    return array.reshape(len(array), -1).astype(np.float32)


def check(name: str, data: bytes) -> None:
    """Decodes a field by its name as far as its kind is known. Raises DataError."""
    kind = name.rpartition(".")[2]
    if kind in IMAGES:
        image(data)
    elif kind == "txt":
        text(data)
    elif kind == "json":
        meta(data)
    elif kind == "npy":
        series(data)
