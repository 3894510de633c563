"""Bytes of a field -> image, text, document, metadata. Every failure is a DataError that says what was wrong.

How series and audio are read stands in series.py and audio.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from bigssl import limits
from bigssl.data.audio import audio
from bigssl.data.errors import DataError
from bigssl.data.series import series
from bigssl.data.stream import Sample

IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff")
AUDIO = ("flac", "wav", "ogg")
DOCUMENTS = ("txt", "json")
# By content, whatever the field is called; Pillow's other readers are rarely used and some start other programs.
_CODECS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")


def field(sample: Sample, kinds: Sequence[str]) -> bytes:
    """The first of the fields `kinds` that the sample has. Raises DataError listing those there are."""
    for kind in kinds:
        if kind in sample.fields:
            return sample.fields[kind]
    there = ", ".join(sorted(sample.fields)) or "none"
    raise DataError(f"shard {sample.shard}, sample {sample.key!r}: no field {' or '.join(kinds)}; it has {there}")


def image(
    data: bytes, *, size: int | None = None, mode: str = "RGB", window: tuple[float, float] | None = None
) -> Image.Image:
    """A decoded picture in `mode`. Transparent ones are laid on white.

    Args:
        size: the shorter side that is needed at least, in pixels; a JPEG is then decoded at 1/2, 1/4 or 1/8 where that
            suffices.
        window: (low, high), for pictures of more than 8 bits: stored values that become 0 and 255, clipped beyond.
            Without it, unsigned 16-bit ones keep their upper 8 bits (low 0, high 65535), and others are refused.

    Raises:
        DataError: what is no picture, is cut off, has several frames, or claims more than the limit `image_pixels`.
    """
    if window is not None and not window[0] < window[1]:
        raise ValueError(f"window is {window}; its first value must be the lower one")
    picture = _open(data, size, mode)
    return picture if picture.mode == mode else _convert(picture, mode, window)


def grey(data: bytes) -> np.ndarray:
    """float32 [H, W]: the stored values of a grey picture of 8, 16 (also signed) or 32 bits, neither scaled nor cut.

    What medical pictures need, whose contrast is a matter of the task. Raises DataError, also for colours.
    """
    picture = _open(data, None, "L")
    if picture.mode not in ("1", "L", "I", "F") and not picture.mode.startswith("I;16"):
        raise DataError(f"a picture of mode {picture.mode} is not grey; allowed are grey ones of 8, 16 or 32 bits")
    return np.asarray(picture, dtype=np.float32)


def _open(data: bytes, size: int | None, mode: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=_CODECS)
        _refuse(picture)
        if size is not None and picture.format in ("JPEG", "MPO"):
            shorter = min(picture.size)
            picture.draft(mode, (picture.width * size // shorter, picture.height * size // shorter))
        picture.load()
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"refused image ({error})") from error
    except Exception as error:  # damaged bytes make codecs raise a dozen types, TypeError and KeyError among them
        raise DataError(f"undecodable image of {len(data)} bytes ({_cause(error)})") from error
    return picture


def _refuse(picture: Image.Image) -> None:
    width, height = picture.size
    if refused := limits.over("image_pixels", width * height):
        raise DataError(f"picture of {width}×{height} pixels refused: {refused}")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a camera's JPEG with a preview behind the picture
        raise DataError(f"field is a {picture.format} of {frames} frames; one is allowed")


def _cause(error: Exception) -> str:
    return "no known picture format" if isinstance(error, UnidentifiedImageError) else str(error)


def _convert(picture: Image.Image, mode: str, window: tuple[float, float] | None) -> Image.Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = Image.fromarray(_to_bytes(picture, window))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return picture.convert(mode)


def _to_bytes(picture: Image.Image, window: tuple[float, float] | None) -> np.ndarray:
    values = np.asarray(picture)
    if window is not None:
        low, high = window
        return np.clip((values - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
    if values.dtype.kind != "u" or values.dtype.itemsize != 2:  # in either byte order
        kind = f"{values.dtype} values from {values.min()} to {values.max()}"
        raise DataError(f"a grey picture of {kind} has no range of its own; give a window (low, high), or use grey()")
    return (values >> 8).astype(np.uint8)


def text(data: bytes) -> str:
    """UTF-8 text. Raises DataError naming the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"text is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error


def document(sample: Sample) -> str | list[str]:
    """The text of a sample: its field txt, or its field json as `document_json` reads it. Raises DataError."""
    data = field(sample, DOCUMENTS)
    return text(data) if "txt" in sample.fields else document_json(data)


def document_json(data: bytes) -> str | list[str]:
    """Raw text, or sentences: a JSON string, a list of strings, or an object with one of these as `text` or
    `sentences`. Raises DataError saying what stands there instead."""
    value = _json(data)
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
    value = _json(data)
    if not isinstance(value, dict):
        raise DataError(f"metadata is a JSON {type(value).__name__}, an object is needed")
    return value


def _json(data: bytes) -> Any:
    try:
        return json.loads(text(data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"metadata is not JSON ({error})") from error


def check(name: str, data: bytes) -> None:
    """Decodes a field by its name as far as its kind is known. Raises DataError."""
    kind = name.rpartition(".")[2]
    if kind in IMAGES:
        _open(data, None, "RGB")
    elif kind in AUDIO:
        audio(data)
    elif kind == "txt":
        text(data)
    elif kind == "json":
        (meta if _is_object(data) else document_json)(data)
    elif kind == "npy":
        series(data, non_finite="keep")


def _is_object(data: bytes) -> bool:
    return data.lstrip()[:1] not in (b"[", b'"')
