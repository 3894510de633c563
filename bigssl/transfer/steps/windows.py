"""Windows of long series, by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.nets.modality import modality_of_type


@dataclass(frozen=True)
class StepWindows:
    """Pieces of `length` steps.

    Attributes:
        rows: float32 [T, C] of each series.
        places: int64 [N, 2]: series and first step of each.
    """

    rows: Sequence[np.ndarray]
    places: np.ndarray
    length: int

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], length: int, stride: int, *, whole: bool = False) -> StepWindows:
        """All that begin at a multiple of `stride`; of a `whole` series the last `length` steps, too."""
        places = [(number, begin) for number, values in enumerate(rows)
                  for begin in _begins(len(values) - length, stride, whole)]  # fmt: skip
        return cls(rows, np.array(places, dtype=np.int64).reshape(-1, 2), length)

    def __len__(self) -> int:
        return len(self.places)

    def take(self, numbers: Sequence[int] | Tensor) -> Tensor:
        """float32 [B, length, C]"""
        chosen = self.places[np.asarray(numbers, dtype=np.int64)]
        found = [self.rows[number][begin : begin + self.length] for number, begin in chosen.tolist()]
        return torch.from_numpy(np.stack(found))

    def batches(self, size: int) -> Iterator[Tensor]:
        """All of them, in order."""
        for first in range(0, len(self), size):
            yield self.take(range(first, min(first + size, len(self))))


def _begins(last: int, stride: int, whole: bool) -> list[int]:
    found = list(range(0, last + 1, stride))
    return [*found, last] if whole and found and found[-1] != last else found


def tokens_of(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Hidden states float32 [B, C, P, D] of windows [B, T, C] on the model's device: P patches of each channel. NaN is
    what was not observed, as in training."""
    row = modality_of_type(model.config.model_type)
    assert row is not None
    observed = windows.isfinite()
    batch = {"series": torch.where(observed, windows, 0.0), "series_mask": observed}
    hidden = row.hidden(model, batch)  # channel by channel
    return hidden.view(len(windows), windows.shape[2], -1, hidden.shape[-1]).float()
