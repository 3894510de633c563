"""What the tasks of time series have in common: the series of a sample, windows of it, and instance normalisation.

Missing values (NaN, infinity) are not observed: nothing is asked of them, and no statistic sees them. Each channel is
given to the backbone without the mean of what it may see, so that 0, which stands where nothing is seen, is that mean;
the backbone's own instance normalisation (`scaling: std`) divides by the deviation around it. The mean is taken off
before anything is rounded to bf16, in which ten thousand and a half are ten thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.nets.towers import Tower
from bigssl.objectives.counting import Counting

FURTHEST = 10.0
"""Deviations from the mean of what is visible within which a value is asked for: one further away counts as so far.
Where what is visible is constant, its deviation is none, and a jump behind it would be all that there is in a loss."""
LARGEST = 1e18  # whose squares float32 can still add up


def tiny_series(channels: int, length: int, patch: int, **config: Any) -> dict[str, Any]:
    """A series backbone of the presets. config: fields of transformers' in place of its own."""
    sizes = {"d_model": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 64, "norm_type": "layernorm"}
    patches = {"patch_length": patch, "patch_stride": patch}
    return {"type": "patchtst", "channels": channels, "length": length, "config": {**sizes, **patches, **config}}


class AsksValues(Counting):
    """Mixed into an `Objective` that asks for some values of a series: those that are `asked`, in a batch."""

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        """Adds how many values are asked for, counted where they are."""
        batch: dict[str, Any] = super().assemble(by_source)  # type: ignore[misc]
        return batch | {"count": int(batch["asked"].sum())}

    def units(self, batch: dict[str, Any]) -> dict[str, int]:
        return {"": batch["count"]}


def series_of(sample: Sample, tower: Tower, least: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [T, C], 0 where nothing was observed, and bool [T, C], where something was.

    Raises:
        DataError: there is no series; it has other channels than the backbone, fewer than `least` steps, not one finite
            value, or values beyond 1e18.
    """
    values = decode.series(decode.field(sample, decode.FIELDS["series"]), non_finite="keep").astype(np.float64)
    if values.shape[1] != tower.channels:
        raise DataError(f"{sample.where}: series of {values.shape[1]} channels; this backbone takes {tower.channels}")
    if len(values) < least:
        raise DataError(f"{sample.where}: series of {len(values)} steps; allowed: >= {least}")
    observed = np.isfinite(values)
    values = np.where(observed, values, 0.0)
    if not observed.any():
        raise DataError(f"{sample.where}: series without a finite value")
    if (largest := np.abs(values).max()) > LARGEST:
        raise DataError(f"{sample.where}: series with the value {largest:.3g}; allowed: up to {LARGEST:.0e} (in "
                        "another unit, or NaN in its place)")  # fmt: skip
    return values, observed


def random_steps(
    parts: Sequence[np.ndarray], length: int, rng: np.random.Generator, *, front: bool = False
) -> list[np.ndarray]:
    """The same `length` steps of each of `parts` [T, ...], wherever they lie; of a shorter series all, filled up with 0
    (False: not observed) behind its end, or in `front` of its begin."""
    steps = len(parts[0])
    if steps >= length:
        begin = int(rng.integers(steps - length + 1))
        return [part[begin : begin + length] for part in parts]
    fill = (length - steps, 0) if front else (0, length - steps)
    return [np.pad(part, (fill, *[(0, 0)] * (part.ndim - 1))) for part in parts]


def without_mean(values: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [T, C], without the mean of each channel where it is `seen` (0 where it is not at all), and that mean,
    float64 [C]."""
    mean = (values * seen).sum(0) / np.maximum(seen.sum(0), 1)
    return (values - mean).astype(np.float32), mean


def in_deviations(values: np.ndarray, scale: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """float32 [T, C]: what is asked for of centred `values`, in units of `scale` [C], `FURTHEST` of them at most; 0
    elsewhere."""
    scaled = np.clip(values / scale, -FURTHEST, FURTHEST)
    return np.where(asked, scaled, 0.0).astype(np.float32)


def check_normalises(name: str, tower: Tower) -> None:
    """Raises ConfigError where a backbone does not bring each window to deviation 1 by itself."""
    if tower.model.config.scaling != "std":
        raise ConfigError(f"backbones.{name}.config.scaling: value {tower.model.config.scaling!r}; allowed: std, the "
                          "instance normalisation that this task counts on")  # fmt: skip


def whole_patches(name: str, tower: Tower) -> tuple[int, int]:
    """Steps of a patch, and how many patches there are. Raises ConfigError where they overlap or leave gaps."""
    config = tower.model.config
    size, stride = config.patch_length, config.patch_stride
    if size != stride:
        why = "an overlapping patch would show what is hidden" if stride < size else "steps between patches are unseen"
        raise ConfigError(f"backbones.{name}.config.patch_stride: value {stride} with patch_length {size}: {why}; "
                          f"allowed: {size}")  # fmt: skip
    return size, patches_in(tower)


def patches_in(tower: Tower) -> int:
    """How many patches a series backbone makes of a channel."""
    config = tower.model.config
    return int((tower.length - config.patch_length) // config.patch_stride + 1)
