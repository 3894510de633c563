"""Tasks of time series."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.nets.series.ts2vec import TimeConv
from by_hand.base import ByHand, hand, plain


def states(model: nn.Module, values: Tensor, seen: Tensor) -> Tensor:
    """Of transformers' PatchTST [B, C, P, D]."""
    found: Tensor = model(past_values=values, past_observed_mask=seen.float()).last_hidden_state
    return found


def mean_where(errors: Tensor, asked: Tensor) -> Tensor:
    return (errors * asked).sum() / asked.sum()


@hand
def masked_series(task: Any) -> ByHand:
    """PatchTSTForPretraining, of windows in which values are hidden already."""
    nets = nn.ModuleList([plain(task.backbone.model), copy.deepcopy(task.head)])

    def loss(batch: dict[str, Any]) -> Tensor:
        made = nets[1](states(nets[0], batch["series"], batch["series_mask"])).float()  # [B, C, P, steps]
        cut = [batch[name].unflatten(2, (-1, task.patch)) for name in ("target", "asked")]
        return mean_where((made - cut[0]).square(), cut[1])

    return ByHand(nets, loss)


@hand
def forecast(task: Any) -> ByHand:
    """PatchTSTForPrediction, of targets that are normalised already."""
    nets = nn.ModuleList([plain(task.backbone.model), copy.deepcopy(task.head)])

    def loss(batch: dict[str, Any]) -> Tensor:
        made = nets[1](states(nets[0], batch["series"], batch["series_mask"]).flatten(2)).float().transpose(1, 2)
        return mean_where((made - batch["target"]).square(), batch["asked"])

    return ByHand(nets, loss)


class PlainConv(TimeConv):
    """As torch has it over time."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.Conv1d.forward(self, input[:, :, 0])[:, :, None]


@hand
def series_contrast(task: Any) -> ByHand:
    """As TS2Vec's own code does it: a pass for each crop, and at each scale two tables of scores, from which the
    diagonal is taken by putting together what lies below and above it."""
    nets, shared = nn.ModuleList([plain(task.backbone.model)]), task.shared
    for module in nets.modules():
        if isinstance(module, TimeConv):
            module.__class__ = PlainConv
    steps, alpha, temperature = task.patches, task.config.alpha, task.config.temperature

    def contrast(both: Tensor, size: int) -> Tensor:
        scores = both @ both.transpose(1, 2) / temperature
        rest = torch.tril(scores, diagonal=-1)[:, :, :-1] + torch.triu(scores, diagonal=1)[:, :, 1:]
        logs, place = -F.log_softmax(rest, dim=-1), torch.arange(size)
        return (logs[:, place, size + place - 1].mean() + logs[:, size + place, place].mean()) / 2

    def crop(batch: dict[str, Any], number: int) -> Tensor:
        values, seen = batch[f"series{number}"], batch[f"seen{number}"]
        hidden = nets[0](past_values=values, past_observed_mask=seen.float()).last_hidden_state
        return (hidden if hidden.dim() == 3 else hidden.mean(1)).float()

    def loss(batch: dict[str, Any]) -> Tensor:
        one, two = crop(batch, 1)[:, steps - shared :], crop(batch, 2)[:, :shared]
        total, scales = torch.zeros(()), 0
        while True:
            total = total + alpha * contrast(torch.cat([one, two]).transpose(0, 1), len(one))
            scales += 1
            if one.shape[1] == 1:
                return total / scales
            total = total + (1 - alpha) * contrast(torch.cat([one, two], 1), one.shape[1])
            one, two = (F.max_pool1d(each.transpose(1, 2), 2).transpose(1, 2) for each in (one, two))

    return ByHand(nets, loss)
