"""What a forecast is asked: the past and the future of windows; and forecasts of them that need no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.order import rng
from bigssl.transfer.labelled.logistic import fit_ridge
from bigssl.transfer.labelled.losses import Linear
from bigssl.transfer.steps.series import LongSeries, Scale
from bigssl.transfer.steps.windows import StepWindows

SMALLEST = 1e-5  # variance of a past at least, where that of the training part is 1 (Kim et al. 2022)


@dataclass(frozen=True)
class Cases:
    """Windows of `past` and `future` steps, in memory.

    Attributes:
        seen: float32 [N, T, C]: the past as it stands in the shards, which a network sees.
        past, future: float32 [N, C, T] and [N, C, H], in deviations from the mean of the training part; NaN where
            nothing was observed, and no future of a channel without a past.
        groups: of each window, what it belongs to: different groups count as independent.
    """

    seen: Tensor
    past: Tensor
    future: Tensor
    groups: list[str]

    def __len__(self) -> int:
        return len(self.seen)

    @cached_property
    def level(self) -> Tensor:
        """float32 [N, C, 1]: mean of the past."""
        return self.past.nanmean(2, keepdim=True).nan_to_num(0.0)

    @cached_property
    def spread(self) -> Tensor:
        """float32 [N, C, 1]: deviation of the past."""
        return ((self.past - self.level).square().nanmean(2, keepdim=True).nan_to_num(0.0) + SMALLEST).sqrt()

    def permuted(self, seed: int) -> Cases:
        """The same with the futures dealt anew among the windows."""
        order = torch.from_numpy(rng.permutation(len(self), "labels", seed))
        return replace(self, future=self.future[order])


def cases_of(lines: Sequence[LongSeries], scale: Scale, past: int, future: int, stride: int) -> Cases:
    """All windows of the series that begin at a multiple of `stride` and of whose future something was observed.

    Of one series, blocks of past + future steps are the groups; of several, each series is one.
    """
    names = {line.name for line in lines}
    found = StepWindows.of([line.values for line in lines], past + future, stride)
    scaled = StepWindows(tuple(map(scale, lines)), found.places, found.length)
    values = scaled.take(range(len(scaled))).transpose(1, 2)
    before, after = values[..., :past], values[..., past:]
    after = torch.where(before.isfinite().any(2, keepdim=True), after, torch.nan)
    kept = after.isfinite().flatten(1).any(1)
    groups = [lines[number].name if len(names) > 1 else f"{number}/{begin // (past + future)}"
              for (number, begin), keep in zip(found.places.tolist(), kept.tolist(), strict=True) if keep]  # fmt: skip
    seen = found.take(range(len(found)))[:, :past]
    return Cases(seen[kept], before[kept], after[kept], groups)


def errors_of(forecast: Tensor, cases: Cases) -> Tensor:
    """float32 [2, N]: the mean squared and the mean absolute error of each window, over what was observed of all its
    channels and steps. forecast: float32 [N, C, H]."""
    off = (forecast - cases.future).flatten(1)
    return torch.stack([off.square().nanmean(1), off.abs().nanmean(1)])


def last_value(cases: Cases) -> Tensor:
    """float32 [N, C, H]: the last value that was observed stays."""
    return _filled(cases.past)[..., -1:].expand_as(cases.future)


def last_period(cases: Cases, period: int) -> Tensor:
    """float32 [N, C, H]: the last `period` steps come again and again."""
    steps = cases.future.shape[2]
    last = _filled(cases.past)[..., -period:]
    return last.repeat(1, 1, -(-steps // period))[..., :steps]


def _filled(past: Tensor) -> Tensor:
    """What was not observed has the value before it, and at the beginning the first one; 0 where there is none."""
    steps = torch.arange(past.shape[2]).expand(past.shape)
    known = past.isfinite()
    before = torch.where(known, steps, 0).cummax(2).values
    first = known.int().argmax(2, keepdim=True)
    return past.gather(2, torch.maximum(before, first)).nan_to_num(0.0)


@dataclass(frozen=True)
class LinearForecast:
    """future = level + spread · (W features + b) + c, one W for all channels: reversible instance normalisation (Kim
    et al. 2022) around a linear map of features at mean 0 and variance 1, fitted in the unit in which it is judged.

    shift, scale: float32 [F], of the features.
    """

    linear: Linear
    shift: Tensor
    scale: Tensor

    @classmethod
    def fitted(cls, features: Tensor, cases: Cases, rows: Tensor, l2: Sequence[float]) -> LinearForecast:
        """By ridge regression; the penalty is chosen on the last fifth of the rows.

        Args:
            features: float32 [N, C, F] of the windows.
            rows: int64 [n], windows to learn from.
        Raises:
            DataError: no channel of any of these windows has a whole future.
        """
        seen, y = features[rows], (cases.future[rows] - cases.level[rows]).flatten(0, 1)
        shift, scale = seen.flatten(0, 1).mean(0), seen.flatten(0, 1).std(0, correction=0).clamp(min=1e-6).reciprocal()
        x = _inputs((seen - shift) * scale, cases.spread[rows])
        whole = y.isfinite().all(1)
        if not whole.any():
            raise DataError(f"of {len(rows)} windows to learn from none has a future without missing values")
        x, y = x[whole], y[whole]
        if len(x) == 1:
            return cls(fit_ridge(x, y, l2=[max(l2)]), shift, scale)
        valid = torch.arange(len(x) - max(1, len(x) // 5), len(x))
        return cls(fit_ridge(x, y, l2=l2, valid=valid), shift, scale)

    def __call__(self, features: Tensor, cases: Cases) -> Tensor:
        """float32 [N, C, H]"""
        x = _inputs((features - self.shift) * self.scale, cases.spread)
        return cases.level + self.linear(x).view_as(cases.future)


def _inputs(features: Tensor, spread: Tensor) -> Tensor:
    """[N · C, F + 1]: features and a constant, times the spread."""
    return (torch.cat([features, torch.ones_like(spread)], dim=2) * spread).flatten(0, 1)


def own_past(cases: Cases) -> Tensor:
    """float32 [N, C, T]: the normalised past as features: what a linear model of it sees (0 where not observed)."""
    return ((cases.past - cases.level) / cases.spread).nan_to_num(0.0)
