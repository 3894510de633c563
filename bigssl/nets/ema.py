"""A teacher: the moving average of a network's weights, in fp32, whole on every rank.

It is no submodule of the objective that holds it, so that no optimizer, no ZeRO stage and no gradient reaches it. The
engine moves it (`bigssl/engine/teaching.py`) after each optimizer step that changed weights, and saves it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bigssl.nets.build import twin
from bigssl.nets.norm import BatchNorm
from bigssl.nets.progress import Progress

Momentum = float | Callable[[Progress], float]


class Ema:
    """teacher = m · teacher + (1 − m) · student for every parameter, frozen ones too (Tarvainen and Valpola 2017).

    A teacher drops nothing, neither units nor layers: it is in eval mode, as in the code of MoCo v3, DINO and iBOT. Its
    BatchNorms stay in train mode: they normalise by the batch that the teacher sees, and keep statistics of their own.
    Other buffers are the student's.

    Attributes:
        student: what is followed. At ZeRO-3 its parameters are in slices, but for when the engine calls `update`.
        module: the teacher, with the structure and names of the student; no parameter asks for a gradient.
    """

    def __init__(self, student: nn.Module, momentum: Momentum) -> None:
        """momentum: m, from 0 to 1, or a function of how far the run is (`CosineRamp`)."""
        self.student, self.momentum = student, momentum
        if not callable(momentum):
            _checked(momentum)
        self.module = twin(student).eval()
        for part in self.module.modules():
            part.training = isinstance(part, BatchNorm)

    @torch.no_grad()
    def update(self, at: Progress) -> None:
        """One move. Called by the engine alone, once per optimizer step that changed weights, with whole parameters.

        Raises:
            RuntimeError: the student's parameters are in slices.
            ValueError: a momentum that is not from 0 to 1.
        """
        momentum = _checked(self.momentum(at) if callable(self.momentum) else self.momentum)
        torch._foreach_lerp_(list(self.module.parameters()), self._whole(), 1 - momentum)
        for mine, theirs in zip(self.module.modules(), self.student.modules(), strict=True):
            if not mine.training:
                for name, buffer in mine.named_buffers(recurse=False):
                    buffer.copy_(theirs.get_buffer(name))

    def apply(self, move: Callable[[Tensor], Tensor]) -> None:
        """What `nn.Module._apply` does to the objective: the teacher goes to the same device, and stays fp32."""

        def moved(tensor: Tensor) -> Tensor:
            there = move(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        self.module._apply(moved)

    def _whole(self) -> list[Tensor]:
        pairs = list(zip(self.module.parameters(), self.student.parameters(), strict=True))
        if any(mine.shape != theirs.shape for mine, theirs in pairs):
            raise RuntimeError("teacher: its student is in slices (ZeRO-3); allowed: a move by engine/teaching.py")
        return [theirs.detach().float() for _, theirs in pairs]


def _checked(momentum: float) -> float:
    if not 0 <= momentum <= 1:
        raise ValueError(f"teacher: momentum {momentum}; allowed: 0 to 1")
    return momentum
