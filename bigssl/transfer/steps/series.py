"""Long series from shards: windows that were cut from one (`bigssl shards pack --window`) are put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigssl.data.errors import DataError, display
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import metadata, samples_at
from bigssl.transfer.team import AgreedError


@dataclass(frozen=True)
class LongSeries:
    """Steps of a series, one after the other.

    Attributes:
        name: of the series: what the json of its windows says, or one that no other sample of the dataset has.
        start: the row of its first step in the series.
        values: float32 [T, C]; NaN where nothing was observed.
        marks: bool [T]: steps that are anomalous; None where nobody asked.
        alone: of a sample whose json does not say which `series` it is of, and the row of its `start`: a series of its
            own. Equal keys say nothing: two machines may have written the same numbers.
    """

    name: str
    start: int
    values: np.ndarray
    marks: np.ndarray | None = None
    alone: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def stop(self) -> int:
        """The row behind its last step."""
        return self.start + len(self)


def read_long_series(
    bench: Bench, url: str, *, limit: int | None, field: str, channels: int, label: str | None = None
) -> list[LongSeries]:
    """The series of a dataset, each rank reading its share; all ranks get all. A collective.

    Args:
        field: that of the section with the `url`, for errors.
        channels: values per step that a backbone takes.
        label: where the marks of steps stand (`marks_of`); None: they are not read.
    Raises:
        AgreedError: no series, one that cannot be read or of other channels, or marks that are none.
    """
    index = bench.index(url)
    numbers = bench.numbers(index, limit, field)

    def mine() -> list[LongSeries]:
        read = (long_series_of(sample, channels, label) for sample in samples_at(index, numbers))
        return [replace(line, name=f"sample {number} ({line.name})") if line.alone else line
                for number, line in zip(numbers, read, strict=True)]  # fmt: skip

    lines = [line for part in bench.team.gather(mine) for line in part]
    if not lines:
        raise AgreedError(f"{bench.where}.{field}: no samples in {display(url)}")
    return joined_series(lines)


def long_series_of(sample: Sample, channels: int, label: str | None = None) -> LongSeries:
    """Raises DataError naming the sample."""
    where, meta = f"shard {sample.shard}, sample {sample.key!r}", metadata(sample)
    try:
        values = decode.series(decode.field(sample, decode.FIELDS["series"]), non_finite="keep")
        if values.shape[1] != channels:
            raise DataError(f"series of {values.shape[1]} channels; this backbone takes {channels}")
        values = np.where(np.isfinite(values), values, np.float32(np.nan))
        marks = None if label is None else marks_of(meta, label, len(values))
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    if isinstance(meta.get("series"), str) and isinstance(meta.get("start"), int):
        return LongSeries(meta["series"], meta["start"], values, marks)
    return LongSeries(sample.key, 0, values, marks, alone=True)


def marks_of(meta: dict[str, Any], label: str, steps: int) -> np.ndarray:
    """bool [steps]: the list under LABEL in the json of a sample, 0 or 1 of each step.

    Raises:
        DataError: there is none, or it has another length or other values.
    """
    if label not in meta:
        raise DataError(f"no marks of its steps, {label} in its json; that has {', '.join(sorted(meta)) or 'nothing'}")
    found = meta[label]
    if not isinstance(found, list):
        raise DataError(f"{label} in its json is {str(found)[:40]!r}; allowed: a list of 0 and 1")
    if len(found) != steps:
        raise DataError(f"{label}: marks of {len(found)} steps for a series of {steps}; allowed: one for each step")
    if strange := [mark for mark in found if mark not in (0, 1)]:
        raise DataError(f"{label}: a mark is {strange[0]!r}; allowed: 0 and 1")
    return np.array(found, dtype=bool)


def joined_series(lines: Sequence[LongSeries]) -> list[LongSeries]:
    """Stretches of one series that share steps or follow each other become one; in the order in which series come. One
    that is alone stays so."""
    groups: dict[tuple[str, int | None], list[LongSeries]] = {}
    for number, line in enumerate(lines):
        groups.setdefault((line.name, number if line.alone else None), []).append(line)
    return [line for group in groups.values() for line in _joined(sorted(group, key=lambda line: line.start))]


def _joined(ordered: Sequence[LongSeries]) -> list[LongSeries]:
    found: list[list[LongSeries]] = []
    for line in ordered:
        if not found or line.start > max(each.stop for each in found[-1]):
            found.append([])
        found[-1].append(line)
    return [_one(parts) for parts in found]


def _one(parts: Sequence[LongSeries]) -> LongSeries:
    if len(parts) == 1:
        return parts[0]
    start, stop = parts[0].start, max(part.stop for part in parts)
    values = np.full((stop - start, parts[0].values.shape[1]), np.nan, dtype=np.float32)
    marks = None if parts[0].marks is None else np.zeros(stop - start, dtype=bool)
    for part in parts:
        place = slice(part.start - start, part.stop - start)
        values[place] = part.values
        if marks is not None and part.marks is not None:
            marks[place] = part.marks
    return LongSeries(parts[0].name, start, values, marks)


def refuse_later(where: str, train: Sequence[LongSeries], queries: Sequence[LongSeries]) -> None:
    """What is judged of a series lies behind all that is learnt from it. Raises AgreedError. (Of those that are alone
    nobody knows whether they are of one series.)"""
    last: dict[str, int] = {}
    for line in train:
        if not line.alone:
            last[line.name] = max(line.stop, last.get(line.name, 0))
    for line in queries:
        if not line.alone and line.start < last.get(line.name, 0):
            raise AgreedError(
                f"{where}.queries: rows {line.start} to {line.stop - 1} of series {line.name!r}, of which rows up to "
                f"{last[line.name] - 1} are learnt from; allowed: series of which train has nothing, or later rows "
                "(`bigssl shards pack --window N --val 0.2` cuts by time)"
            )


def long_enough(bench: Bench, lines: Sequence[LongSeries], steps: int, *, field: str, need: str) -> list[LongSeries]:
    """Those of `steps` steps or more; a note counts the others.

    Args:
        need: what takes so many steps, in words.
    Raises:
        AgreedError: none is left.
    """
    kept = [line for line in lines if len(line) >= steps]
    longest = max(map(len, lines))
    if not kept:
        raise AgreedError(f"{bench.where}.{field}: {len(lines)} series, the longest of {longest} steps; allowed: "
                          f"{steps} or more ({need})")  # fmt: skip
    if len(kept) < len(lines):
        bench.note(f"{bench.where}.{field}: {len(lines) - len(kept)} of {len(lines)} series are shorter than {steps} "
                   f"steps ({need}) and are left out.")  # fmt: skip
    return kept


@dataclass(frozen=True)
class Scale:
    """Of each channel: mean and standard deviation, float64 [C]; 1 in place of a deviation of 0."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, where: str, lines: Sequence[LongSeries]) -> Scale:
        """Of all steps that were observed. Raises AgreedError naming a channel without any."""
        count, total, square = (np.sum([of(line) for line in lines], 0) for of in (_count, _sum, _squares))
        if (lacking := np.flatnonzero(count == 0)).size:
            raise AgreedError(f"{where}: channel {lacking[0]} has no finite value; leave it out (`bigssl shards pack` "
                              "with --columns)")  # fmt: skip
        mean = total / count
        # Sums of squares alone would lose the deviation of a channel whose mean is large beside it.
        std = np.sqrt(np.sum([_squares(LongSeries(line.name, 0, line.values - mean)) for line in lines], 0) / count)
        constant = std <= 1e-6 * np.sqrt(square / count)
        return cls(mean, np.where(constant, 1.0, std))

    def __call__(self, line: LongSeries) -> np.ndarray:
        """float32 [T, C]: the series with mean 0 and deviation 1 of the training part."""
        return ((line.values - self.mean) / self.std).astype(np.float32)


def _count(line: LongSeries) -> np.ndarray:
    return np.isfinite(line.values).sum(0)


def _sum(line: LongSeries) -> np.ndarray:
    return np.asarray(np.nansum(line.values, 0, dtype=np.float64))


def _squares(line: LongSeries) -> np.ndarray:
    return np.asarray(np.nansum(np.square(line.values, dtype=np.float64), 0))


def period_of(rows: Sequence[np.ndarray], most: int) -> int | None:
    """The lag in 2 to `most` steps at which series repeat themselves: the highest local maximum of their mean
    autocorrelation (as a sum over all steps: longer lags have fewer terms, so a period is ahead of its multiples);
    None where no maximum reaches .1.

    rows: float [T, C] each, standardised; NaN where nothing was observed.
    """
    found, steps = np.zeros(most + 2), 0
    for values in rows:
        known = np.isfinite(values)
        mean = np.where(known, values, 0).sum(0, dtype=np.float64) / np.maximum(known.sum(0), 1)
        clean = np.where(known, values - mean, 0.0)
        size = 2 * max(len(clean), most + 2)
        power = np.square(np.abs(np.fft.rfft(clean, size, axis=0)))
        found += np.fft.irfft(power, size, axis=0)[: most + 2].sum(1)
        steps += len(clean)
    if found[0] <= 0:
        return None
    correlation = found / found[0]
    inner = correlation[2:-1]
    tops = np.flatnonzero((inner > correlation[1:-2]) & (inner >= correlation[3:]) & (inner >= 0.1))
    return None if not tops.size else int(2 + tops[np.argmax(inner[tops])])
