"""Checksums of the parts of a long series, so that some of its rows can be read alone and are verified nevertheless.

The CRC-32 of a member covers all of it. Beside it the sidecar has one for each 512 bytes of a long .npy (1 % of it);
those of the parts that are read together give the CRC-32 of what was read, since for a fixed number of bytes the
checksum behind them is an affine function, over the field of two elements, of the one before.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable

import numpy as np

PART = 512  # bytes
LONG = 8 * PART  # bytes of a member from which on it has checksums of its parts: a shorter one is read whole
_ZEROS = bytes(PART)


class PartSums:
    """The CRC-32 of each PART bytes of what is added."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._crc = self._filled = 0

    def add(self, data: bytes) -> None:
        """The next bytes."""
        view = memoryview(data)
        while view:
            part = view[: PART - self._filled]
            self._crc, self._filled = zlib.crc32(part, self._crc), self._filled + len(part)
            view = view[len(part) :]
            if self._filled == PART:
                self._close()

    def text(self) -> str:
        """All of them as ASCII, for the sidecar."""
        if self._filled:
            self._close()
        return base64.b64encode(np.asarray(self._done, dtype="<u4").tobytes()).decode()

    def _close(self) -> None:
        self._done.append(self._crc)
        self._crc = self._filled = 0


def sums_in(text: str) -> np.ndarray:
    """uint32 [parts] of `PartSums.text`. Raises ValueError."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u4")


def joined_crc(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of parts behind each other, each (its CRC-32, its bytes: at most PART)."""
    whole = 0
    for crc, length in parts:
        zeros = _ZEROS[:length]
        whole = zlib.crc32(zeros, whole) ^ zlib.crc32(zeros) ^ crc
    return whole
