"""The contract of what makes pictures of hidden states, and how it is found.

A remaker is one file in this folder: a subclass of `Remaker`; nothing else has to be edited. The file's name is its
kind, which an export keeps (`Head.kind`). The task that trains it holds it as a submodule, and uses the same functions
in its loss; the evaluation `reconstruction` makes it anew from the export, or from the network at work:

    Head(remaker.kind, {"image": BACKBONE}, remaker.learnt(), remaker.settings)       of Objective.exports
    Remaker.of_head(kind, settings, tensors, model).remake(model, pictures, seeds)    in the evaluation
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.discovery import classes_in
from bigssl.nets.pool import IMAGE_MEAN, IMAGE_STD

GREY = 128
"""What stands in a picture for what a network was not shown."""


class Remade(NamedTuple):
    """What became of a batch of pictures (C is that of the network, 3 as a rule).

    Attributes:
        given: uint8 [B, C, H, W], what the network was shown; `GREY` where something was hidden.
        made: uint8 [B, C, H, W], what comes of it, with what was shown put back where the task leaves that alone.
        judged: bool [B, 1, H, W], the pixels that are measured: those that were not shown, or all.
    """

    given: Tensor
    made: Tensor
    judged: Tensor


class Remaker(nn.Module):
    """A decoder: of the hidden states of a network it makes pictures again.

    It has no BatchNorm (use GroupNorm, or LayerNorm): the statistics of a random one would be those of nothing.

    Attributes:
        settings: the arguments of its constructor, as JSON can hold them.
    """

    def __init__(self, **settings: Any) -> None:
        """Of a subclass: `super().__init__(dim=dim, ...)`, all of its arguments by name."""
        super().__init__()
        self.settings = settings

    @property
    def kind(self) -> str:
        """The name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @staticmethod
    def of_head(kind: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor] | None, model: PreTrainedModel
                ) -> Remaker:  # fmt: skip
        """The remaker that a head of an export (or of a live task) describes, in eval mode on the device of `model`.

        Args:
            tensors: what `learnt` gave; None: fresh weights, from torch's generator.
            model: the network that it will be used with.

        Raises:
            KeyError: `kind` is none of a remaker (see `discover_remakers`).
            TypeError, RuntimeError: settings or tensors are not its own.
        """
        made = discover_remakers()[kind](**settings)
        if tensors is not None:
            made.load_state_dict(made.state_dict() | dict(tensors))
            if lacking := made.learnt().keys() - tensors.keys():
                raise RuntimeError(f"a head of the kind {kind} lacks {', '.join(sorted(lacking))}")
        return made.to(model.device).eval()

    def learnt(self) -> dict[str, Tensor]:
        """Its state by name, detached, without what the settings fix (parameters that are not trained)."""
        fixed = {name for name, value in self.named_parameters() if not value.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name not in fixed}

    def remake(self, model: PreTrainedModel, pictures: Tensor, seeds: Tensor) -> Remade:
        """Shows `model` the pictures, or parts of them, and makes pictures of what it says.

        Nothing is random but by the seeds: with the same ones, what is hidden is the same for every network. Called in
        eval mode without gradients, on every rank alike (at ZeRO-3 `model` gathers its weights in its forward pass).

        Args:
            pictures: uint8 [B, C, H, W], of the size that the network takes.
            seeds: int64 [B], those of the samples.
        """
        raise NotImplementedError

    def simple(self, pictures: Tensor, given: Tensor, judged: Tensor) -> dict[str, Tensor]:
        """What can be made of the same without a network: by its name in words, uint8 [B, C, H, W].

        Args:
            pictures, given, judged: as in `remake` and of `Remade`. The judged pixels of `pictures` may be used for
                what the network was told of them, too, and for nothing else.
        """
        raise NotImplementedError

    def caption(self) -> str:
        """What is seen in "given" and "made", in a sentence or two, for a person."""
        raise NotImplementedError


@cache
def discover_remakers() -> dict[str, type[Remaker]]:
    """Every remaker in this folder by file name."""
    return classes_in("bigssl.nets.remaking", Remaker)


def picture_bytes(pixels: Tensor) -> Tensor:
    """Float [B, C, H, W] in -1..1, as `pool.normalise` makes them -> uint8, rounded; what lies outside is cut off.

    Raises:
        FloatingPointError: a pixel is not finite: as a number of 0 to 255 it would look like one.
    """
    if odd := int((~pixels.isfinite()).sum()):
        raise FloatingPointError(f"{odd:,} of {pixels.numel():,} pixels that it makes are not finite")
    return (pixels.float() * IMAGE_STD + IMAGE_MEAN).mul(255).round().clamp(0, 255).to(torch.uint8)
