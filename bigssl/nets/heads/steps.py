"""Values of a series from the hidden states of its patches: what pretraining on series and its evaluations share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.nets.modality import MODALITIES

Array = TypeVar("Array", np.ndarray, Tensor)
LEAST_VARIANCE = 1e-5  # transformers' `minimum_scale`


def window_deviation(centred: Array, seen: Array) -> Array:
    """[..., C] of values [..., T, C] that are centred where they are `seen`: what the backbone divides by, which adds
    1e-5 to the variance."""
    squares = ((centred * seen) ** 2).sum(-2)
    found: Array = (squares / seen.sum(-2).clip(1) + LEAST_VARIANCE) ** 0.5
    return found


def rebuilt(model: PreTrainedModel, head: nn.Module, values: Tensor, seen: Tensor) -> Tensor:
    """Windows again, by a network that is shown a part of each.

    Args:
        model: a series network whose patches follow each other without gaps.
        head: [..., D] -> [..., steps of a patch], in deviations of what is seen.
        values: float32 [B, T, C] on its device. seen: bool, the same shape; nothing else of them is read.

    Returns:
        float32 [B, T, C], in the unit of the values; steps in front that fill no patch: the mean of what is seen.
    """
    mean = (values * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clip(1)
    centred = (values - mean).masked_fill(~seen, 0.0)
    hidden = MODALITIES["series"].hidden(model, {"series": centred, "series_mask": seen})  # [B, C * P, D]
    made = head(hidden).float().unflatten(1, (values.shape[2], -1)).flatten(2).transpose(1, 2)  # [B, P * size, C]
    whole = F.pad(made, (0, 0, values.shape[1] - made.shape[1], 0))
    return mean + whole * window_deviation(centred, seen)[:, None]


def errors_when_hidden(
    model: PreTrainedModel, head: nn.Module, values: Tensor, observed: Tensor, ratio: float
) -> Tensor:
    """Squared errors of windows that are `rebuilt`, each step from passes in which its patch is hidden.

    Of every ceil(1 / ratio) patches one is hidden at once, in turn, in all channels.

    Args:
        values, observed: as of `rebuilt`. ratio: the share that was hidden in training, at most.

    Returns:
        float32 [B, T, C]; 0 where nothing was observed. Steps in front that fill no patch are never hidden: NaN.
    """
    size = model.config.patch_length
    front = values.shape[1] % size
    places = torch.arange(values.shape[1] - front, device=values.device) // size
    found = torch.full_like(values, float("nan"))
    rounds = -int(-1 // ratio)
    for number in range(rounds):
        hidden = F.pad(places % rounds == number, (front, 0), value=False)
        made = rebuilt(model, head, values, observed & ~hidden[:, None])
        errors = (made - values).square().masked_fill(~observed, 0.0)
        found[:, hidden] = errors[:, hidden]
    return found
