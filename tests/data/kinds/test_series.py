"""Series: float32 [T, C] from honest .npy files only."""

from __future__ import annotations

import gc
import io
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bigssl.data.errors import DataError
from bigssl.data.kinds.series import series


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=True)
    return buffer.getvalue()


NUMBERS = st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint16, np.int64, ">f4"])


@settings(max_examples=100, deadline=None)
@given(
    NUMBERS.flatmap(
        lambda kind: arrays.arrays(
            kind, st.one_of(st.tuples(st.integers(0, 5)), st.tuples(st.integers(1, 5), st.integers(1, 3)))
        )
    )
)
def test_numbers_come_back_as_float32(array: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        expected = (array if array.ndim == 2 else array.reshape(array.size, 1)).astype(np.float32)
    for stored in (array, np.asfortranarray(array)):
        got = series(saved(stored), non_finite="keep")
        assert (got.dtype, got.shape) == (np.float32, expected.shape)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format(version: tuple[int, int]) -> None:
    assert series(saved(np.ones((4, 2)), version)).shape == (4, 2)


@pytest.mark.parametrize("array", [np.ones((2, 2, 2)), np.array(1.0), np.array(["a"]), np.array([1j])])
def test_what_is_no_series(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"series is .*numbers of shape \[T\] or \[T, C\] are needed"):
        series(saved(array))


def test_pickles_are_never_loaded() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("a pickle was loaded",)

    with pytest.raises(DataError, match="pickled objects are never read"):
        series(saved(np.array([Bomb()])))
    with pytest.raises(DataError, match="series is not an .npy array"):
        series(pickle.dumps(Bomb()))


@pytest.mark.parametrize("shape", ["(1000000000000, 1000000)", "(-1,)", "(3,)", "(5,)"])
def test_headers_that_promise_other_bytes(shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)
    with pytest.raises(DataError, match="its header promises float32.*, 16 follow"):
        series(data)


def test_long_headers_are_refused() -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }" + b" " * 100_000
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
    with pytest.raises(DataError, match="not an .npy array"):
        series(data)


def test_cut_off_anywhere() -> None:
    data = saved(np.arange(6.0))
    for keep in range(len(data)):
        with pytest.raises(DataError, match="not an .npy array"):
            series(data[:keep])


def test_policies_for_what_is_not_finite() -> None:
    array = np.array([[1, 2], [3, np.nan], [np.inf, 1e300]])
    with pytest.raises(DataError, match="3 values that are not finite, the first is nan at time 1, channel 1"):
        series(saved(array))
    np.testing.assert_array_equal(series(saved(array), non_finite="keep"), [[1, 2], [3, np.nan], [np.inf, np.inf]])
    np.testing.assert_array_equal(series(saved(array), non_finite="zero"), [[1, 2], [3, 0], [0, 0]])
    with pytest.raises(ValueError, match="non_finite is 'drop'; allowed: refuse, keep, zero"):
        series(saved(array), non_finite="drop")


class _Slow:
    """A cycle whose end, which the collector chooses, lets other threads go on."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        time.sleep(0)


def test_threads_read_at_once() -> None:
    """CPython counts the depth of what it parses for all threads together: unlocked, some call in some thread fails."""
    data, start = saved(np.zeros((25, 2), np.float32)), threading.Barrier(4)

    def read(_: int) -> int:
        start.wait()
        return sum(series(data).shape[0] for _ in range(500) if _Slow())

    held = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, range(4))) == [500 * 25] * 4
    finally:
        sys.setswitchinterval(held[0])
        gc.set_threshold(*held[1])
