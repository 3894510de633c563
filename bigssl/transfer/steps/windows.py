"""Windows of long series, by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.nets.modality import modality_of_type
from bigssl.nets.modality.kinds import BY_CHANNEL
from bigssl.transfer.baselines import calibrate_batch_norm

CALIBRATING = 1024  # windows that a random network's BatchNorm is set from


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
    """Hidden states float32 [B, C, P, D] of windows [B, T, C] on the model's device: P patches of each channel, or
    [B, 1, T, D] of all channels together. NaN is what was not observed, as in training."""
    row = modality_of_type(model.config.model_type)
    assert row is not None
    hidden = row.hidden(model, _batch(windows))  # channel by channel
    groups = windows.shape[2] if model.config.model_type in BY_CHANNEL else 1
    return hidden.view(len(windows), groups, -1, hidden.shape[-1]).float()


def _batch(windows: Tensor) -> dict[str, Tensor]:
    observed = windows.isfinite()
    return {"series": torch.where(observed, windows, 0.0), "series_mask": observed}


def set_norms(model: PreTrainedModel, windows: Tensor, batch: int, device: str | torch.device) -> None:
    """Gives the BatchNorm of a random network statistics of the training part: of some of its windows [N, T, C]. The
    samples that `Bench.network` sets them from are whole series, of which there may be one, and it sees the
    beginning."""
    spaced = torch.linspace(0, len(windows) - 1, min(len(windows), CALIBRATING)).round().long()
    calibrate_batch_norm(model, map(_batch, windows[spaced].split(batch)), device)
