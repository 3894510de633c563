"""GradCache (Gao et al. 2021, https://arxiv.org/abs/2101.06983): k passes of b samples have the gradient of one pass of
k · b, also where a loss compares all samples with each other, in the memory of one pass of b.

    pass 1, k times, without a graph:   z_i = embed(batch_i)
    once, over all k · b rows z:        L = compare(z),  g = ∂L/∂z
    pass 2, k times:                    z_i again, with its graph; backward of Σ z_i · g_i, which leaves ∂L/∂weights

Beside one pass of the networks there are then k · b embeddings and their gradients, which is little. It costs a second
forward pass: about a third of the time. Dropout is the same in both passes: it follows from the samples' seeds
(chance/dropout.py), and networks that draw from torch's generator find it as it was; buffers that pass 1 moved are put
back, so that BatchNorm's statistics move once; `compare` is called once a step, so that a queue takes each key once.
What BatchNorm does to samples of other passes is not in g: with it, k × b is close to k · b and no more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bigssl.data.loading.loader import Batch
from bigssl.engine.guards import generators, set_generators
from bigssl.engine.zero import Engine
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.comparing import Comparing


class CachedPasses:
    """All passes of a step as one batch, for a task that is `Comparing`.

    bf16: whether the engine runs under autocast, as `compare` then does.
    """

    gathers = True

    def __init__(self, engine: Engine, objective: Objective, device: torch.device, *, bf16: bool) -> None:
        self._engine, self._objective, self._device, self._bf16 = engine, objective, device, bf16
        self._pulls: Iterator[dict[str, Tensor]] = iter(())
        self._drawn_from: Iterator[list[Tensor]] = iter(())
        self._losses: Losses

    def begin(self, batches: Iterator[Batch], at: Progress) -> Iterable[Batch]:
        kept, passes, drawn_from = list(batches), [], []
        with _buffers_as_before(self._objective), torch.no_grad():
            for batch in kept:
                drawn_from.append(generators(self._device))
                passes.append(self._engine(batch.to(self._device).data, at, True))
        self._drawn_from = iter(drawn_from)
        self._compare(passes, at)
        return kept

    def _compare(self, passes: list[dict[str, Tensor]], at: Progress) -> None:
        leaves = {name: rows_of_passes([each[name] for each in passes]).requires_grad_() for name in passes[0]}
        assert isinstance(self._objective, Comparing)  # `check_cached` has seen to it
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            losses = self._objective.compare(leaves, at)
        found = torch.autograd.grad(losses.total, list(leaves.values()), allow_unused=True)
        self._losses = losses.detached()
        count = len(passes)
        gradients = {name: each for name, each in zip(leaves, found, strict=True) if each is not None}
        # DeepSpeed takes the mean over passes: rows are in one of them, what is shared in all
        self._pulls = iter([
            {name: each[n::count] * count if each.dim() else each for name, each in gradients.items()}
            for n in range(count)
        ])  # fmt: skip

    def __call__(self, data: Any, at: Progress) -> tuple[Tensor, Losses]:
        set_generators(self._device, next(self._drawn_from))
        return surrogate(self._engine(data, at, True), next(self._pulls)), self._losses


def rows_of_passes(passes: list[Tensor]) -> Tensor:
    """Rows [b, ...] of each of k passes as those of one, [k · b, ...]: a rank deals its samples over its passes in
    turn (`Order.micro_batch`). What is one for all samples, [], is the same in each."""
    return torch.stack(passes, 1).flatten(0, 1) if passes[0].dim() else passes[0].clone()


def surrogate(embeddings: Mapping[str, Tensor], pulls: Mapping[str, Tensor]) -> Tensor:
    """[] Σ z · g: its gradient by the weights is that of a loss whose gradient by the embeddings z is g."""
    trained = [name for name, z in embeddings.items() if z.requires_grad and name in pulls]
    return torch.stack([(embeddings[name] * pulls[name]).sum().float() for name in trained]).sum()


@contextlib.contextmanager
def _buffers_as_before(objective: Objective) -> Iterator[None]:
    """Within it, buffers of a task and of its teachers may move; then they are what they were."""
    modules = [objective, *(teacher.module for teacher in objective.teachers().values())]
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    yield
    for buffer, before in kept:
        buffer.copy_(before)
