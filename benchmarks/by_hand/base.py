"""What the loops by hand share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class ByHand(NamedTuple):
    """nets: what is trained. loss: of a batch. teachers: pairs of a slow network and its student, with the momentum.
    after: what follows a step of the optimizer."""

    nets: nn.Module
    loss: Callable[[dict[str, Any]], Tensor]
    teachers: list[tuple[nn.Module, nn.Module, float]] = []  # noqa: RUF012 - nobody writes to it
    after: Callable[[], Any] = lambda: None


HANDS: dict[str, Callable[[Any], ByHand]] = {}
"""By the name of a task, of an objective that nothing was done with yet."""


def hand(make: Callable[[Any], ByHand]) -> Callable[[Any], ByHand]:
    HANDS[make.__name__] = make
    return make


def plain(module: nn.Module) -> Any:
    """A copy with torch's own BatchNorm in place of ours."""
    twin = copy.deepcopy(module)

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, nn.SyncBatchNorm):
                kind = nn.BatchNorm2d if parent_is_map(parent) else nn.BatchNorm1d
                new = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                new.load_state_dict(child.state_dict())
                setattr(parent, name, new)
            else:
                replace(child)

    replace(twin)
    return twin


def parent_is_map(parent: nn.Module) -> bool:
    """Whether what stands beside a BatchNorm is a convolution."""
    return any(isinstance(child, nn.Conv2d) for child in parent.children())


def normalised(pictures: Tensor) -> Tensor:
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def mean_features(model: nn.Module, pictures: Tensor) -> Tensor:
    hidden = model(pixel_values=normalised(pictures)).last_hidden_state
    return hidden.mean((2, 3)) if hidden.dim() == 4 else hidden[:, 1:].mean(1)


def both(batch: dict[str, Any]) -> Tensor:
    return torch.cat([batch["view1"], batch["view2"]])
