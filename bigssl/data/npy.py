"""The header of an .npy file, read without trusting it, and the bytes of an array as one."""

from __future__ import annotations

import io
import threading
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from bigssl.data.errors import DataError

MAX_HEADER = 4096  # bytes; an honest one has about 100
# numpy parses headers by ast.literal_eval, which counts its depth for all threads at once: two of them, the collector
# switching between, end in "SystemError: AST constructor recursion depth mismatch" (CPython 106905).
_PARSING = threading.Lock()


class Header(NamedTuple):
    """What an .npy says of itself; begin: the first byte of its numbers."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    begin: int

    @property
    def bytes(self) -> int:
        """How many bytes of numbers it promises."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def npy_header(data: bytes) -> Header:
    """The header at the beginning of `data`. Raises DataError."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with _PARSING:
            shape, fortran, dtype = reader(stream, max_header_size=MAX_HEADER)
    except (ValueError, SyntaxError, TypeError, UnicodeError, MemoryError, RecursionError) as error:
        raise DataError(f"series is not an .npy array ({str(error).splitlines()[0]})") from error
    if dtype.hasobject:
        raise DataError(f"series is {dtype}{list(shape)}: pickled objects are never read")
    return Header(shape, fortran, dtype, stream.tell())


def npy_bytes(values: np.ndarray) -> bytes:
    """An array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
