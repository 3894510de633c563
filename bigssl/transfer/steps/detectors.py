"""How unlike what is normal is each step of a series? Scores of detectors that are fitted to normal series only.

A detector is given normal series and gives a function of a series: float64 [T], higher where an anomaly is more likely.
All see windows of the same length, and a step has the mean of what the windows say that it lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bigssl.transfer.steps.windows import StepWindows

Rows = np.ndarray
"""float32 [T, C] of a series, in deviations of the training part; NaN where nothing was observed."""
Scores = Callable[[Rows], np.ndarray]
Detector = Callable[[Sequence[Rows]], Scores]
Encode = Callable[[Tensor], Tensor]
EXPLAINED = 0.9  # of the variance, by the components of PCA
DEGREE = 3  # of the polynomials
AT_ONCE = 1 << 24  # numbers of a table of distances


def spread_out(windows: StepWindows, scores: np.ndarray, steps: int) -> np.ndarray:
    """float64 [steps]: of scores [N, P] of P equal parts of each window of one series, the mean at each step."""
    parts = np.linspace(0, windows.length, scores.shape[1] + 1).round().astype(int)
    fine = np.repeat(scores, np.diff(parts), axis=1)  # [N, length]
    total, count = np.zeros(steps), np.zeros(steps)
    for (_, begin), values in zip(windows.places.tolist(), fine, strict=True):
        total[begin : begin + windows.length] += values
        count[begin : begin + windows.length] += 1
    return total / count


def patch_memory(encode: Encode, length: int, stride: int, k: int, batch: int) -> Detector:
    """Distance of each patch's hidden state to the nearest ones at the same place of normal windows, mean of `k`: a
    memory of patches (Roth et al. 2022), of which nothing is left out.

    encode: windows float32 [B, length, C] -> float32 [B, P, D] on the CPU.
    """

    def fitted(normal: Sequence[Rows]) -> Scores:
        bank = _encoded(encode, StepWindows.of(normal, length, stride, whole=True), batch)
        mean = bank.flatten(0, 1).mean(0)
        scale = bank.flatten(0, 1).std(0, correction=0).clamp(min=1e-6)
        bank.sub_(mean).div_(scale)  # there may be room for no second one

        def scores(rows: Rows) -> np.ndarray:
            windows = StepWindows.of([rows], length, stride, whole=True)
            asked = _encoded(encode, windows, batch).sub_(mean).div_(scale)
            nearest = [_nearest(asked[:, place], bank[:, place].contiguous(), k) for place in range(bank.shape[1])]
            return spread_out(windows, torch.stack(nearest, dim=1).double().numpy(), len(rows))

        return scores

    return fitted


def _encoded(encode: Encode, windows: StepWindows, batch: int) -> Tensor:
    """float32 [N, P, D] of all windows."""
    found, done = torch.empty(0), 0
    for part in windows.batches(batch):
        made = encode(part)
        found = found if done else made.new_empty(len(windows), *made.shape[1:])
        found[done : done + len(made)] = made
        done += len(made)
    return found


def _nearest(asked: Tensor, known: Tensor, k: int) -> Tensor:
    """float32 [M]: the mean distance of rows [M, D] to their `k` nearest among [N, D]."""
    few = min(k, len(known))
    parts = asked.split(max(1, AT_ONCE // len(known)))
    return torch.cat([torch.cdist(part, known).topk(few, largest=False).values.mean(1) for part in parts])


def hidden_errors(errors: Encode, length: int, stride: int, batch: int) -> Detector:
    """Squared error of each step as a network fills it in that was trained to (`masked_series`). Nothing is remembered.

    errors: windows float32 [B, length, C] -> float32 [B, length] on the CPU.
    """

    def scores(rows: Rows) -> np.ndarray:
        windows = StepWindows.of([rows], length, stride, whole=True)
        return spread_out(windows, _encoded(errors, windows, batch).double().numpy(), len(rows))

    return lambda normal: scores


def principal_components(length: int, stride: int) -> Detector:
    """Squared error of windows as the first principal components of normal ones give them back, those that explain
    `EXPLAINED` of their variance."""

    def fitted(normal: Sequence[Rows]) -> Scores:
        windows = StepWindows.of([np.nan_to_num(rows) for rows in normal], length, stride, whole=True)
        known = windows.take(range(len(windows))).flatten(1).double()
        mean = known.mean(0)
        _, sizes, directions = torch.linalg.svd(known - mean, full_matrices=False)
        share = sizes.square().cumsum(0) / sizes.square().sum().clamp(min=1e-30)
        basis = directions[: int((share < EXPLAINED).sum()) + 1]

        def scores(rows: Rows) -> np.ndarray:
            asked = StepWindows.of([np.nan_to_num(rows)], length, stride, whole=True)
            off = asked.take(range(len(asked))).flatten(1).double() - mean
            left = (off - off @ basis.T @ basis).view(len(asked), length, -1)
            return spread_out(asked, left.square().mean(2).numpy(), len(rows))

        return scores

    return fitted


def polynomial(length: int) -> Detector:
    """Squared error of the next step by a polynomial of degree `DEGREE` through the `length` steps before it; the
    first steps, which have no such past, have the mean of the others. It learns nothing from normal series."""
    from scipy.signal import lfilter  # a fifth of a second, which every start would pay

    steps = np.arange(length) / length
    powers = np.vander(steps, DEGREE + 1)
    weights = np.linalg.pinv(powers).T @ np.ones(DEGREE + 1)  # the polynomial's value at 1, where the next step lies

    def scores(rows: Rows) -> np.ndarray:
        values = np.nan_to_num(rows).astype(np.float64)
        forecast = lfilter(np.concatenate([[0.0], weights[::-1]]), 1.0, values, axis=0)
        found: np.ndarray = np.square(values - forecast).mean(1)
        found[:length] = found[length:].mean() if len(found) > length else 0.0
        return found

    return lambda normal: scores


def at_random(seed: Sequence[int]) -> Detector:
    """Numbers that know nothing, uniform between 0 and 1: the line that point adjustment has to be read beside."""
    generator = np.random.default_rng(list(seed))
    return lambda normal: lambda rows: generator.random(len(rows))
