"""Bytes of an .npy field -> float32 [T, C], without pickles and without trusting what its header claims."""

from __future__ import annotations

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.npy import npy_header

NON_FINITE = ("refuse", "keep", "zero")


def series(data: bytes, *, non_finite: str = "refuse") -> np.ndarray:
    """float32 [T, C]: a series stored as .npy of that shape, or of shape [T].

    non_finite: what to do with NaN and infinity, those that float32 cannot hold included: "refuse" them, "keep" them
    (archives write a missing value as NaN), or put "zero" in their place. Raises DataError.
    """
    if non_finite not in NON_FINITE:
        raise ValueError(f"non_finite is {non_finite!r}; allowed: {', '.join(NON_FINITE)}")
    stored = stored_array(data)
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


def stored_array(data: bytes) -> np.ndarray:
    """The stored array, once its header is known to promise exactly the bytes that follow it. Raises DataError."""
    header = npy_header(data)
    body = data[header.begin :]
    if min(header.shape, default=0) < 0 or header.bytes != len(body):
        promised = f"{header.dtype}{list(header.shape)}, {header.bytes} bytes"
        raise DataError(f"series is not an .npy array: its header promises {promised}, {len(body)} follow")
    if header.dtype.itemsize == 0:
        return np.empty(header.shape, header.dtype)
    return np.frombuffer(body, header.dtype).reshape(header.shape, order="F" if header.fortran else "C")
