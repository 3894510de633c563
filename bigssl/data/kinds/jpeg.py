"""JPEGs as most are, by libjpeg-turbo without a way through Pillow: the same bytes in less time.

What is not plain, and what is damaged in any way, is left to Pillow (pictures.py), which turns, converts or refuses it.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from bigssl.config import limits

_START, _APP1, _SCAN = b"\xff\xd8\xff", 0xE1, 0xDA
_BARE = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}  # second byte of what has no length: padding, restarts, begin and end

_NAMES = {"RGB": "RGB", "L": "GRAY"}


def plain_jpeg(data: bytes, size: int | None = None, mode: str = "RGB") -> np.ndarray | None:
    """uint8 [H, W, 3], or [H, W, 1] of a grey one in mode L; None where Pillow has to see it: another format or colour
    space, an orientation, more pixels than the limit, anything that libjpeg-turbo warns of.

    size: the shorter side that is needed at least: then decoded at 1/2, 1/4 or 1/8 where that suffices.
    """
    if not data.startswith(_START):
        return None
    try:
        if not _upright(data):
            return None
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("Gray", "YCbCr") or (mode == "L" and colours != "Gray"):
            return None
        if limits.over("image_pixels", width * height):
            return None
        wanted = _smaller(width, height, reduction(width, height, size))
        # the exact transform and the smooth interpolation of colours are those that Pillow asks for
        return simplejpeg.decode_jpeg(data, _NAMES[mode], fastdct=False, fastupsample=False, **wanted)
    except Exception:  # of the decoder, or of damaged EXIF, which raises a dozen types
        return None


def reduction(width: int, height: int, size: int | None) -> int:
    """8, 4, 2 or 1: by how much Pillow's `draft` divides the sides so that the shorter one keeps `size` pixels."""
    if size is None:
        return 1
    shorter = min(width, height)
    scale = min(width // (width * size // shorter), height // (height * size // shorter))
    return next((factor for factor in (8, 4, 2) if scale >= factor), 1)


def _smaller(width: int, height: int, factor: int) -> dict[str, int]:
    if factor == 1:
        return {}
    return {"min_width": -(-width // factor), "min_height": -(-height // factor), "min_factor": factor}


def _upright(data: bytes) -> bool:
    """Whether nothing before the first scan turns the picture. Raises what damaged markers and EXIF raise."""
    at, seen = 2, False
    while (marker := data[at + 1]) != _SCAN:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF or marker in _BARE:
            return False
        if marker == _APP1:
            if seen or not _straight(data[at + 4 : at + 2 + length]):
                return False
            seen = True
        at += 2 + length
    return data[at] == 0xFF


def _straight(segment: bytes) -> bool:
    if not segment.startswith(b"Exif\0\0"):  # XMP may say it too
        return False
    exif = Image.Exif()
    exif.load(segment)
    return exif.get(ExifTags.Base.Orientation, 1) == 1
