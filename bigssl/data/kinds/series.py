"""Bytes of an .npy field -> float32 [T, C], without pickles and without trusting what its header claims."""

from __future__ import annotations

import io
import threading

import numpy as np
from numpy.lib import format as npy

from bigssl.data.errors import DataError

MAX_HEADER = 4096  # bytes; an honest one has about 100
NON_FINITE = ("refuse", "keep", "zero")
# numpy parses headers by ast.literal_eval, which counts its depth for all threads at once: two of them, the collector
# switching between, end in "SystemError: AST constructor recursion depth mismatch" (CPython 106905).
_PARSING = threading.Lock()


def series(data: bytes, *, non_finite: str = "refuse") -> np.ndarray:
    """float32 [T, C]: a series stored as .npy of that shape, or of shape [T].

    non_finite: what to do with NaN and infinity, those that float32 cannot hold included: "refuse" them, "keep" them
    (archives write a missing value as NaN), or put "zero" in their place. Raises DataError.
    """
    if non_finite not in NON_FINITE:
        raise ValueError(f"non_finite is {non_finite!r}; allowed: {', '.join(NON_FINITE)}")
    stored = _array(data)
    if stored.ndim not in (1, 2) or stored.dtype.kind not in "iuf":
        raise DataError(f"series is {stored.dtype}{list(stored.shape)}, numbers of shape [T] or [T, C] are needed")
    with np.errstate(over="ignore"):  # becomes infinite, and is found below
        values = (stored if stored.ndim == 2 else stored[:, None]).astype(np.float32)
    finite = np.isfinite(values)
    if non_finite != "keep" and not finite.all():
        values = _without(values, finite, non_finite)
    return values


def _without(values: np.ndarray, finite: np.ndarray, non_finite: str) -> np.ndarray:
    if non_finite == "zero":
        return np.where(finite, values, np.float32(0))
    time, channel = np.argwhere(~finite)[0]
    count = int((~finite).sum())
    raise DataError(
        f"series has {count} values that are not finite, the first is {values[time, channel]} at time {time}, channel "
        f"{channel}; allowed with non_finite 'keep' or 'zero'"
    )


def _array(data: bytes) -> np.ndarray:
    """The stored array, once its header is known to promise exactly the bytes that follow it."""
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
    body, count = data[stream.tell() :], int(np.prod(shape, dtype=object))
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(body):
        promised = f"{dtype}{list(shape)}, {count * dtype.itemsize} bytes"
        raise DataError(f"series is not an .npy array: its header promises {promised}, {len(body)} follow")
    if dtype.itemsize == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
