"""Bytes of a picture -> what a viewer and transformers' `load_image` show: upright, transparent on white."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds.jpeg import plain_jpeg

# By content, whatever the field is called; Pillow's other readers are rarely used and some start other programs.
_CODECS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_PNG_DEPTH = 24  # byte of a PNG that says how many bits a value has


def image(
    data: bytes, *, size: int | None = None, mode: str = "RGB", window: tuple[float, float] | None = None
) -> Image.Image:
    """A decoded picture in `mode`, turned as its EXIF orientation says. Transparent ones are laid on white; of an
    animation it is the first frame; colour profiles are not applied (`load_image` does not either, so an export sees
    what the training saw).

    Args:
        size: the shorter side that is needed at least, in pixels; a JPEG is then decoded at 1/2, 1/4 or 1/8 where that
            suffices.
        window: (low, high), for pictures of more than 8 bits: stored values that become 0 and 255, clipped beyond.
            Without it, unsigned 16-bit ones keep their upper 8 bits (low 0, high 65535), and others are refused.

    Raises:
        DataError: what is no picture, is cut off, has several pages, or claims more than the limit `image_pixels`.
    """
    if window is not None and not window[0] < window[1]:
        raise ValueError(f"window is {window}; its first value must be the lower one")
    picture = opened(data, size, mode)
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    return _convert(picture, data, mode, window)


def picture_array(
    data: bytes, *, size: int | None = None, mode: str = "RGB", window: tuple[float, float] | None = None
) -> np.ndarray:
    """The same picture as `image`, to the byte, as an array: uint8 [H, W, C], C = 3 or, in mode L, 1. A plain JPEG
    does not go through Pillow. Raises DataError as `image`."""
    if (found := plain_jpeg(data, size, mode)) is not None:
        return found
    array = np.asarray(image(data, size=size, mode=mode, window=window))
    return array if array.ndim == 3 else array[..., None]


def as_shown(
    picture: Image.Image, *, mode: str = "RGB", window: tuple[float, float] | None = None
) -> Image.Image:
    """An open picture as `image` makes one of its bytes: in `mode`, upright, transparent on white, deep ones through
    the `window`. Raises DataError for what cannot be decoded, is larger than the limit `image_pixels`, or has no range
    of its own (32-bit and float grey without a window)."""
    read_all(picture)
    return _convert(_upright(picture), b"", mode, window)


def read_all(picture: Image.Image) -> None:
    """Pixels and EXIF of an open picture, which Pillow reads when they are first asked for, so that two threads that
    ask at once read each other's halves. Raises DataError as `as_shown`."""
    with _decoding(b""):
        _refuse(picture)
        picture.load()
    _orientation(picture)


def grey(data: bytes) -> np.ndarray:
    """float32 [H, W]: the stored values of a grey picture of 8, 16 (also signed) or 32 bits, neither scaled nor cut.

    What medical pictures need, whose contrast is a matter of the task. Raises DataError, also for colours.
    """
    picture = opened(data, None, "L")
    if picture.mode not in ("1", "L") and not _is_deep(picture):
        raise DataError(f"a picture of mode {picture.mode} is not grey; allowed are grey ones of 8, 16 or 32 bits")
    return np.asarray(picture, dtype=np.float32)


class PictureHead(NamedTuple):
    """width, height: as stored. grey: one channel, beside transparency. deep: of more than 8 bits, as a window asks."""

    width: int
    height: int
    grey: bool
    deep: bool


def as_stored(data: bytes) -> PictureHead:
    """What the head of a picture says. Raises DataError for what is no picture, or too large a one."""
    with _decoding(data):
        picture = Image.open(io.BytesIO(data), formats=_CODECS)
        _refuse(picture)
    deep = _is_deep(picture)
    return PictureHead(*picture.size, picture.mode in ("1", "L", "LA", "La") or deep, deep)


class Turned(NamedTuple):
    """width, height: as a picture is shown; orientation: of its EXIF, 1 where it is stored so."""

    width: int
    height: int
    orientation: int


def upright_size(data: bytes) -> Turned:
    """The size that `image` gives, without decoding where the codec allows. Raises DataError."""
    with _decoding(data):
        picture = Image.open(io.BytesIO(data), formats=_CODECS)
        _refuse(picture)
        orientation = _orientation(picture)
    width, height = picture.size if orientation < 5 else picture.size[::-1]
    return Turned(width, height, orientation)


def mask(data: bytes) -> np.ndarray:
    """uint8 [H, W]: the class of each pixel, as a png of grey values or of a palette stores it (255: not judged).

    Raises:
        DataError: colours or transparency in place of numbers, numbers above 255, an EXIF that turns it.
    """
    picture = opened(data, None, "L")
    if _orientation(picture) != 1 or picture.mode not in ("1", "L", "P") and not _is_deep(picture):
        raise DataError(f"a mask is grey or of a palette, its values are classes, without EXIF orientation; this one "
                        f"is {picture.mode}, orientation {_orientation(picture)}; write its numbers as a grey png")
    values = np.asarray(picture)
    depth = data[_PNG_DEPTH] if data.startswith(b"\x89PNG") else 8
    if picture.mode == "L" and depth < 8:  # which Pillow spreads over 0 to 255
        values = values // (255 // (2**depth - 1))
    if values.min() < 0 or values.max() > 255 or values.dtype.kind == "f":
        raise DataError(f"a mask with values from {values.min()} to {values.max()}; allowed: classes from 0 to 254, "
                        "and 255 for pixels that are not judged")
    return values.astype(np.uint8)


def opened(data: bytes, size: int | None, mode: str) -> Image.Image:
    """The picture in its own mode, upright; `size` and `mode` as of `image`. Raises DataError."""
    with _decoding(data):
        picture = Image.open(io.BytesIO(data), formats=_CODECS)
        _refuse(picture)
        if size is not None and picture.format in ("JPEG", "MPO"):
            shorter = min(picture.size)
            picture.draft(mode, (picture.width * size // shorter, picture.height * size // shorter))
        picture.load()
    return _upright(picture)


@contextmanager
def _decoding(data: bytes) -> Iterator[None]:
    """What Pillow raises within it is a DataError."""
    try:
        yield
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"refused image ({error})") from error
    except Exception as error:  # damaged bytes make codecs raise a dozen types, TypeError and KeyError among them
        raise DataError(f"undecodable image of {len(data)} bytes ({_cause(error)})") from error


def _refuse(picture: Image.Image) -> None:
    width, height = picture.size
    if refused := limits.over("image_pixels", width * height):
        raise DataError(f"picture of {width}×{height} pixels refused: {refused}")
    pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
    if pages > 1:  # each may be a picture of its own, unlike the frames of an animation
        raise DataError(f"field is a TIFF of {pages} pages; one is allowed, write each into a file of its own")


def _cause(error: Exception) -> str:
    return "no known picture format" if isinstance(error, UnidentifiedImageError) else str(error)


def _upright(picture: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _UPRIGHT else 1
    except Exception:  # damaged EXIF, of which parsers raise a dozen types: every viewer shows the pixels as stored
        return 1


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _convert(picture: Image.Image, data: bytes, mode: str, window: tuple[float, float] | None) -> Image.Image:
    clear = _clear(picture, data)
    if _is_deep(picture):
        picture = Image.fromarray(_to_bytes(picture, window))
    if clear is not None:
        pixels = np.array(picture.convert("L" if picture.mode == "1" else picture.mode))
        pixels[clear] = 255
        picture = Image.fromarray(pixels)
    elif picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return picture.convert(mode)


def _clear(picture: Image.Image, data: bytes) -> np.ndarray | None:
    """bool [H, W]: where a picture without an alpha channel has the one value that stands for transparent.

    Pillow compares that value (a PNG's tRNS) as it is stored with pixels that it has scaled to 8 bits. Of 16-bit
    colours it keeps 8 bits, so the value is compared in those.
    """
    value = picture.info.get("transparency")
    if picture.mode not in ("1", "L", "RGB", "I;16") or not isinstance(value, int | tuple):
        return None
    depth = data[_PNG_DEPTH] if data.startswith(b"\x89PNG") else 8
    stored = np.asarray(value)
    if picture.mode == "L" and depth < 8:
        stored = stored * (255 // (2**depth - 1))
    if picture.mode == "RGB" and depth == 16:
        stored = stored >> 8
    same = np.asarray(picture.convert("L") if picture.mode == "1" else picture) == stored
    return same.all(-1) if same.ndim == 3 else same


def _to_bytes(picture: Image.Image, window: tuple[float, float] | None) -> np.ndarray:
    values = np.asarray(picture)
    if window is not None:
        low, high = window
        return np.clip((values - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
    if values.dtype.kind != "u" or values.dtype.itemsize != 2:  # in either byte order
        kind = f"{values.dtype} values from {values.min()} to {values.max()}"
        raise DataError(f"a grey picture of {kind} has no range of its own; give a window, the values that become 0 "
                        "and 255 (in a recipe backbones.NAME.window: [low, high])")  # fmt: skip
    return (values >> 8).astype(np.uint8)
