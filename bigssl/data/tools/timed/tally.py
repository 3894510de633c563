"""What is said of the series of a source: their rates, gaps, missing values and channels that never change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bigssl.data.errors import DataError
from bigssl.data.tools.timed.grid import Regular, TimeGrid, same_step, seconds

_NAMED = 5  # series or channels that are named


@dataclass
class SeriesCount:
    """Counts over all series of a source. constant: names of channels that never change, with the series of each;
    lengths: those of series that have no time."""

    series: int = 0
    rows: int = 0
    gaps: int = 0
    filled: int = 0
    repeats: int = 0
    stretches: int = 0
    short: int = 0
    empty: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    constant: dict[str, list[str]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)

    def add(self, name: str, grid: TimeGrid, regular: Regular) -> None:
        """Counts a series. Raises DataError where its rate is not that of the others, unless gaps are kept."""
        self.series += 1
        self.rows += len(grid.places)
        self.gaps, self.filled = self.gaps + grid.gaps, self.filled + grid.filled
        self.repeats, self.stretches = self.repeats + grid.repeats, self.stretches + len(grid.stretches)
        if not grid.step:
            return
        first = next(iter(self.steps.items()), (name, grid.step))
        if regular.gaps != "keep" and not same_step(first[1], grid.step):
            raise DataError(f"mixed sampling rates: series {first[0]!r} has a row every {seconds(first[1])} s, "
                            f"{name!r} every {seconds(grid.step)} s; allowed: --resample SECONDS (the means of equal "
                            "times), or pack each rate by itself")  # fmt: skip
        self.steps[name] = grid.step

    def values(self, name: str, missing: dict[str, int], constant: Sequence[str]) -> None:
        """Counts the missing values by channel, and notes the channels that never change in series `name`."""
        self.missing.update(missing)
        for channel in constant:
            self.constant.setdefault(channel, []).append(name)

    def lines(self, regular: Regular) -> Iterator[str]:
        """What there is to be said. regular: how times became steps."""
        if self.steps:
            slow, fast = max(self.steps.values()), min(self.steps.values())
            rate = f"{seconds(fast)} s" if same_step(slow, fast) else f"{seconds(fast)} to {seconds(slow)} s"
            yield f"time: a row every {rate} in {self.series} series, {self.rows} rows"
        if len(self.lengths) > 1:
            yield f"lengths: {min(self.lengths)} to {max(self.lengths)} steps, as they are"
        if self.gaps:
            done = {
                "cut": f"cut there, into {self.stretches} stretches",
                "nan": f"filled with {self.filled} rows of NaN",
                "keep": "rows follow each other over them",
            }
            yield f"gaps: {self.gaps}, {done[regular.gaps]} (--gaps {regular.gaps})"
        if self.repeats and regular.resample is None:
            yield f"repeats: {self.repeats} rows of a time that was there already, the {regular.repeats} of each stays"
        if self.missing:
            which = _named(dict(self.missing))
            advice = "" if self.lengths else "; --missing refuse names the first"
            yield f"missing: {self.missing.total()} values are NaN, of {which}{advice}"
        if self.constant:
            which = _named({name: len(series) for name, series in self.constant.items()}, "in {} series")
            yield f"constant: {which} never change; --columns takes others"
        if self.short:
            yield f"short: {self.short} pieces are shorter than --window and stay so; --short drop leaves them out"
        if self.empty:
            yield f"empty: {self.empty} pieces without any row were left out"


def _named(counts: dict[str, int], how: str = "{}") -> str:
    shown = [f"{name} ({how.format(count)})" for name, count in list(counts.items())[:_NAMED]]
    return ", ".join(shown) + (f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else "")
