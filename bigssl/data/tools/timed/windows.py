"""How a table with one row per time is cut into samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigssl.data.errors import DataError
from bigssl.data.tools.parts import held_rows


@dataclass(frozen=True)
class Windows:
    """How a table with one row per time becomes series [T, C].

    columns: the channels, in this order (default: all but `by`). by: a column; adjacent rows of equal value there are
    one series. window, stride: cut each series into pieces of `window` rows that begin every `stride` rows (default:
    window); the last piece begins earlier where it must, so that no row is left out; a shorter series stays whole.
    held_out: this share of the rows at the end of each series is cut into pieces of its own, none of which shares a
    row with the others, where both sides hold one; margin: rows left out between the sides. marks: a column of 0 and 1
    that is no channel but says of each row whether it is anomalous.
    """

    columns: Sequence[str] = ()
    by: str | None = None
    window: int | None = None
    stride: int | None = None
    held_out: float = 0.0
    marks: str | None = None
    margin: int = 0

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None and value < 1:
                raise DataError(f"--{name} {value}: 1 or more rows are allowed")
        if self.margin < 0:
            raise DataError(f"--margin {self.margin}: 0 or more rows are allowed")
        if self.stride is not None and self.window is None:
            raise DataError(f"--stride {self.stride}: has no effect without --window")
        if self.marks in (self.by, *self.columns) and self.marks is not None:
            raise DataError(f"--label {self.marks}: is also in --columns or --by; allowed: a column of its own")

    def begins(self, rows: int) -> list[int]:
        """First rows of the pieces of a series of `rows` rows, of which none are held out."""
        if self.window is None or rows <= self.window:
            return [0]
        last = rows - self.window
        found = list(range(0, last + 1, self.stride or self.window))
        return found if found[-1] == last else [*found, last]

    def pieces(self, rows: int | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """(first row, number of rows) of the pieces of a series of `rows` rows, or of its stretches of rows [first,
        stop), across whose ends no piece goes."""
        stretches = [(0, rows)] if isinstance(rows, int) else rows
        parts = [(first, stop) for part in self._sides(stretches) for first, stop in part]
        cuts = [(first, stop, begin) for first, stop in parts for begin in self.begins(stop - first)]
        return [(first + begin, min(self.window or stop - first, stop - first)) for first, stop, begin in cuts]

    def _sides(self, stretches: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """The stretches before and behind the cut; all of them where a side would hold no window."""
        begin, end = stretches[0][0], stretches[-1][1]
        held = held_rows(end - begin, self.held_out)
        if not held:
            return [list(stretches)]
        cut, least = end - held, self.window or 1
        sides = [_clipped(stretches, begin, cut - self.margin), _clipped(stretches, cut, end)]
        return sides if all(max((b - a for a, b in side), default=0) >= least for side in sides) else [list(stretches)]


def _clipped(stretches: Sequence[tuple[int, int]], first: int, stop: int) -> list[tuple[int, int]]:
    both = [(max(a, first), min(b, stop)) for a, b in stretches]
    return [(a, b) for a, b in both if a < b]
