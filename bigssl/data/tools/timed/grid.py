"""Times of rows -> rows at equal steps, by named rules: what is a gap, what is a repeat, what is another rate.

The step is the median of the steps from row to row. A row may come a tenth of a step early or late. Then k steps may
lie between two rows, of which k - 1 have no row: a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.tools.timed.clock import SECOND, written

GAPS = ("refuse", "cut", "nan", "keep")
REPEATS = ("refuse", "first", "last")
TOLERANCE = 0.1  # of a step, by which a row may be early or late
FIT = 0.3  # of a step, by which a gap may miss a whole number of rows
OTHER_RATE = 8  # equal steps in a row, other than the usual one, that are no gaps but another rate
SORTED = "`(head -n 1 F.csv; tail -n +2 F.csv | {how}) > SORTED.csv`"
ASCENDING = "sort -t, -sk N,N"  # text; of what is no number or ISO time, by hand


class Regular(NamedTuple):
    """How times become equal steps.

    gaps: `refuse` them, `cut` the series there, fill them with rows of `nan`, or `keep` rows beside each other whatever
    their times are. repeats: rows of one time are refused, or the `first` or the `last` of them stays. resample:
    nanoseconds of a row to be: each is the mean of the rows in its time, or `last` of them.
    """

    gaps: str = "refuse"
    repeats: str = "refuse"
    resample: int | None = None
    last: bool = False

    @property
    def merges(self) -> str:
        """What becomes of several rows in one place."""
        return "mean" if self.resample is not None and not self.last else "first" if self.repeats == "first" else "last"


class Placing(NamedTuple):
    """How the rows of a piece find their places. step: nanoseconds from place to place; start: the time of place 0;
    lead: the place of the first row."""

    regular: Regular
    step: int
    start: int
    lead: int

    def places(self, times: np.ndarray) -> np.ndarray:
        """int64 [n]: the places of rows at int64 [n] times, which rise."""
        return self.lead + _places(times, self.regular, self.step)

    def times(self, times: np.ndarray, rows: int) -> np.ndarray:
        """int64 [rows]: the times of the places; times: those of the rows."""
        even = self.start + self.step * np.arange(rows, dtype=np.int64)
        if self.regular.gaps != "keep" and self.regular.resample is not None:
            return even
        places, firsts = np.unique(self.places(times), return_index=True)
        found = times[firsts]
        if self.regular.gaps == "keep":
            return found if self.regular.resample is None else found // self.step * self.step
        if not len(places):
            return even
        row = np.maximum(np.searchsorted(places, np.arange(rows), side="right") - 1, 0)  # of each place, or before it
        whole: np.ndarray = found[row] + self.step * (np.arange(rows) - places[row])
        return whole  # times of rows as they are: steps such as months drift from equal ones


class TimeGrid(NamedTuple):
    """A series at equal steps. places: int64 [n], rising, of each row of the table; rows: how many places there are;
    stretches: places [first, stop) without a cut between them; step: nanoseconds, 0 where there is one row only;
    uneven: steps from place to place that are another, where rows are kept beside each other, or where they drift, as
    months do: a time cannot be had from the first one."""

    places: np.ndarray
    rows: int
    stretches: list[tuple[int, int]]
    step: int
    gaps: int = 0
    filled: int = 0
    repeats: int = 0
    uneven: int = 0


def plain_grid(rows: int) -> TimeGrid:
    """The grid of rows without a time: each has its place."""
    return TimeGrid(np.arange(rows), rows, [(0, rows)], 0)


def time_grid(times: np.ndarray, regular: Regular, where: Callable[[int], str]) -> TimeGrid:
    """The grid of rows at int64 [n] times (nanoseconds). where: names a row. Raises DataError, naming the row, for
    times that fall, repeat, have gaps or another step, where the rules do not say what to do with them."""
    steps = np.diff(times)
    _refuse_unordered(times, steps, where)
    repeats = int((steps == 0).sum())
    if repeats and regular.repeats == "refuse" and regular.resample is None:
        row = int(np.flatnonzero(steps == 0)[0]) + 1
        raise DataError(f"{where(row)}: time {written(int(times[row]), False)} stands there twice, {repeats} such "
                        "rows; allowed: --repeats first or last, which keeps one of each")  # fmt: skip
    usual = median_step(steps)
    step = regular.resample or usual
    if regular.resample is not None and usual > step * (1 + TOLERANCE):
        raise DataError(f"{where(0)}: rows come every {seconds(usual)} s, --resample {seconds(step)} would invent "
                        f"some; allowed: {seconds(usual)} or more")  # fmt: skip
    if step and regular.gaps != "keep" and regular.resample is None:
        _refuse_other_rates(steps, step, where)
        _refuse_close(steps, step, where)
    places = _places(times, regular, step)
    rows = int(places[-1]) + 1
    jumps = np.diff(places)
    holes = np.flatnonzero(jumps > 1)
    if len(holes) and regular.gaps == "refuse":
        row = int(holes[0]) + 1
        lacking, before = int(jumps[row - 1]) - 1, written(int(times[row]), False)
        raise DataError(f"{where(row)}: a gap: {lacking} rows lack before {before} (rows come every {seconds(step)} s; "
                        f"gaps in all: {len(holes)}); allowed: --gaps cut, nan (rows of missing values) or keep (rows "
                        "follow each other, as over trading days)")  # fmt: skip
    if regular.gaps == "nan" and regular.resample is None:
        _refuse_off(steps, jumps, step, where)
    filled = int((jumps[holes] - 1).sum()) if regular.gaps == "nan" else 0
    cuts = holes.tolist() if regular.gaps == "cut" else []
    begins, stops = [0, *(int(places[at + 1]) for at in cuts)], [*(int(places[at]) + 1 for at in cuts), rows]
    if regular.gaps != "keep":
        drifting = _drifting(times, places, begins, step) if regular.resample is None else 0
        stretches = list(zip(begins, stops, strict=True))
        return TimeGrid(places, rows, stretches, step, len(holes), filled, repeats, drifting)
    even = np.abs(steps - step) <= TOLERANCE * step
    gaps, uneven = int((steps > step * (1 + TOLERANCE)).sum()), int((~even & (steps > 0)).sum())
    return TimeGrid(places, rows, [(0, rows)], step, gaps, 0, repeats, uneven)


def _drifting(times: np.ndarray, places: np.ndarray, begins: list[int], step: int) -> int:
    """How many steps are no whole ones, where that adds up to more than the tolerance within a stretch."""
    early = times - step * places
    first = np.searchsorted(places, begins)[np.searchsorted(begins, places, side="right") - 1]
    if (np.abs(early - early[first]) <= TOLERANCE * step).all():
        return 0
    return int((np.diff(early) != 0).sum())


def median_step(steps: np.ndarray) -> int:
    """The median of those that are no 0; 0 where there are none."""
    rising = np.sort(steps[steps > 0])
    return int(rising[len(rising) // 2]) if len(rising) else 0


def seconds(nanoseconds: int) -> str:
    """As a number of seconds, without zeros that say nothing."""
    return f"{nanoseconds / SECOND:.9f}".rstrip("0").rstrip(".")


def same_step(one: int, other: int) -> bool:
    """Whether two steps are one but for the tolerance, as months are."""
    return abs(one - other) <= TOLERANCE * max(one, other)


def _places(times: np.ndarray, regular: Regular, step: int) -> np.ndarray:
    """int64 [n]: places of rows at rising times, the first row at 0."""
    at = times if regular.resample is None else times // regular.resample
    steps = np.diff(at, prepend=at[:1])
    if regular.gaps == "keep":
        jumps = (steps > 0).astype(np.int64)
    elif regular.resample is not None or not step:
        jumps = steps
    else:
        jumps = np.rint(steps / step).astype(np.int64)
        off = _off(steps, jumps, step)
        jumps[off] = np.maximum(jumps[off], 2)  # between two places: a gap, which `cut` alone allows
    return np.cumsum(jumps)


def _refuse_unordered(times: np.ndarray, steps: np.ndarray, where: Callable[[int], str]) -> None:
    if not (falling := np.flatnonzero(steps < 0)).size:
        return
    row = int(falling[0]) + 1
    backwards = len(falling) > 1 and (steps <= 0).all()
    how = SORTED.format(how="tac" if backwards else ASCENDING)
    what = "all rows run backwards" if backwards else f"{len(falling)} rows are out of order"
    later, first = (written(int(times[at]), False) for at in (row - 1, row))
    column = "" if backwards else " (the time is column N)"
    raise DataError(f"{where(row)}: time {first} comes behind {later}; {what}: put the earliest first, e.g. by {how}"
                    f"{column}; or --time none takes rows as they come")  # fmt: skip


def _refuse_other_rates(steps: np.ndarray, step: int, where: Callable[[int], str]) -> None:
    """A run of equal steps that are not the usual one."""
    other = (np.abs(steps - step) > TOLERANCE * step) & (steps > 0)
    alike = np.zeros(len(steps), dtype=bool)
    alike[1:] = np.abs(np.diff(steps)) <= TOLERANCE * steps[:-1]
    run = 0
    for at in np.flatnonzero(other).tolist():
        run = run + 1 if run and at and other[at - 1] and alike[at] else 1
        if run == OTHER_RATE:
            row = at - OTHER_RATE + 2
            here = seconds(int(steps[at]))
            raise DataError(f"{where(row)}: mixed sampling rates: from here on rows come every {here} s, most come "
                            f"every {seconds(step)} s; allowed: --resample SECONDS (the means of equal times), a file "
                            "for each rate, or --gaps keep (rows as they come)")  # fmt: skip


def _off(steps: np.ndarray, jumps: np.ndarray, step: int) -> np.ndarray:
    """bool [n]: steps that are no `jumps` whole ones."""
    found: np.ndarray = np.abs(steps - jumps * step) > np.where(jumps > 1, FIT, TOLERANCE) * step
    return found


def _refuse_off(steps: np.ndarray, jumps: np.ndarray, step: int, where: Callable[[int], str]) -> None:
    """Gaps that no whole number of rows fills."""
    off = np.flatnonzero(_off(steps, jumps, step))
    if len(off):
        at = int(off[0])
        raise DataError(f"{where(at + 1)}: a gap of {seconds(int(steps[at]))} s, which no whole number of rows fills "
                        f"(they come every {seconds(step)} s); allowed: --gaps cut or keep, or --resample SECONDS")


def _refuse_close(steps: np.ndarray, step: int, where: Callable[[int], str]) -> None:
    """Rows nearer to each other than a step."""
    near = np.flatnonzero((steps > 0) & (steps < step * (1 - TOLERANCE)))
    if len(near):
        at = int(near[0])
        raise DataError(f"{where(at + 1)}: the row comes {seconds(int(steps[at]))} s behind the one before, most rows "
                        f"come every {seconds(step)} s ({len(near)} such rows); allowed: --resample SECONDS (the means "
                        "of equal times) or --gaps keep (rows as they come)")  # fmt: skip
