"""Rows of numbers -> the channels of a piece of a series: gaps filled, prices made returns, times made features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.tools.timed.clock import SECOND
from bigssl.data.tools.timed.grid import Placing

RETURNS = ("log", "simple")
CODES = ("number", "circle")
FEATURES = ("minute", "hour", "weekday", "day", "yearday", "month")
_PERIODS = dict(zip(FEATURES, (60, 24, 7, 31, 366, 12), strict=True))
_DAY = 86400 * SECOND


class Taken(NamedTuple):
    """Rows as they were read. values: float64 [n, C]; times: int64 [n], or None; marks: int64 [n], or None."""

    values: np.ndarray
    times: np.ndarray | None = None
    marks: np.ndarray | None = None


class Making(NamedTuple):
    """What becomes of the rows of a piece.

    rows: of the piece, of which `before` more stand in front of it, for its first return. placing: where they go,
    without one each follows the other. returns: `log` or `simple` ones of the channels `priced`. features: channels of
    the time, behind the others, each a `number` or the two of a `circle`.
    """

    rows: int
    placing: Placing | None = None
    before: int = 0
    returns: str | None = None
    priced: tuple[int, ...] = ()
    features: tuple[str, ...] = ()
    code: str = "number"


def made_piece(taken: Taken, how: Making) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 [rows, C + features], and the marks int64 [rows] where there are some. Raises NoPrice."""
    values, marks, times, total = taken.values, taken.marks, taken.times, how.rows + how.before
    if how.returns is not None:
        _refuse_no_prices(values, how)
    if how.placing is not None:
        assert times is not None
        places = how.placing.places(times)
        values = in_places(values, places, total, how.placing.regular.merges)
        if marks is not None:
            whole = np.zeros(total, dtype=np.int64)
            np.maximum.at(whole, places, marks)
            marks = whole
        times = how.placing.times(times, total)
    if how.returns is not None:
        values = values.copy()
        values[:, how.priced] = returns_of(values[:, how.priced], how.returns)
    if how.features:
        assert times is not None
        values = np.concatenate([values, time_features(times, how.features, how.code)], axis=1)
    with np.errstate(over="ignore"):
        made = values[how.before :].astype(np.float32)
    return made, None if marks is None else marks[how.before :]


def in_places(values: np.ndarray, places: np.ndarray, rows: int, merges: str) -> np.ndarray:
    """float64 [rows, C] of values [n, C] at rising places [n]: NaN where there is no row; of several the first, the
    last, or the mean of the numbers among them."""
    whole = np.full((rows, values.shape[1]), np.nan)
    if merges == "last":
        whole[places] = values  # numpy: of equal places, the last is kept
    elif merges == "first":
        whole[places[::-1]] = values[::-1]
    else:
        for channel, column in enumerate(values.T):
            there = ~np.isnan(column)
            counts = np.bincount(places[there], minlength=rows)
            sums = np.bincount(places[there], weights=column[there], minlength=rows)
            whole[counts > 0, channel] = sums[counts > 0] / counts[counts > 0]
    return whole


def _refuse_no_prices(values: np.ndarray, how: Making) -> None:
    """Raises NoPrice for a price that is not above 0."""
    prices = values[:, how.priced]
    bad = np.argwhere(prices <= 0)
    if len(bad):
        row, place = (int(each) for each in bad[0])
        raise NoPrice(row, how.priced[place], float(prices[row, place]))


class NoPrice(DataError):
    """A price of which no return can be made. row: of those that were read; channel: its place."""

    def __init__(self, row: int, channel: int, value: float) -> None:
        super().__init__(f"price {value:g}: returns need prices above 0; choose the columns with --prices")
        self.row, self.channel = row, channel


def returns_of(prices: np.ndarray, kind: str) -> np.ndarray:
    """float64 [T, C] of prices [T, C]: ln(p[t] / p[t-1]) for `log`, p[t] / p[t-1] - 1 for `simple`; NaN in the first
    row, and where either price is missing."""
    ratio = np.full(prices.shape, np.nan)
    ratio[1:] = prices[1:] / prices[:-1]
    return np.log(ratio) if kind == "log" else ratio - 1


def time_features(times: np.ndarray, names: Sequence[str], code: str) -> np.ndarray:
    """float64 [T, F] of int64 [T] nanoseconds. `number`: each in [-0.5, 0.5], as in Informer (Zhou et al. 2021), whose
    hour 0 is -0.5 and hour 23 is 0.5; `circle`: sine and cosine of its share of the period, so that 23 is next to 0.

    minute of the hour, hour of the day, weekday from Monday, day of the month, yearday, month.
    """
    columns: list[np.ndarray] = []
    for name in names:
        number, period = _calendar(times, name).astype(np.float64), _PERIODS[name]
        angle = 2 * np.pi * number / period
        columns += [np.sin(angle), np.cos(angle)] if code == "circle" else [number / (period - 1) - 0.5]
    return np.stack(columns, axis=1)


def _calendar(times: np.ndarray, name: str) -> np.ndarray:
    """int64 [T], from 0."""
    days, inside = np.divmod(times, _DAY)
    if name in ("minute", "hour"):
        return inside // (60 * SECOND) % 60 if name == "minute" else inside // (3600 * SECOND)
    if name == "weekday":
        return (days + 3) % 7  # 1970-01-01 was a Thursday
    dates = days.astype("datetime64[D]")
    unit = {"day": "M", "yearday": "Y", "month": "Y"}[name]
    begun = dates.astype(f"datetime64[{unit}]")
    if name == "month":
        return (dates.astype("datetime64[M]") - begun.astype("datetime64[M]")).astype(np.int64)
    return (dates - begun.astype("datetime64[D]")).astype(np.int64)
