"""W gloo ranks compute what one process does: the loss, and the parameter gradients after averaging over ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bigssl_kernels import clip_loss, nt_xent, sigmoid_loss, sup_con

GLOBAL = 12  # pairs in all: divides by 2, 3 and 4


def cases() -> dict[str, tuple]:
    """Name -> loss, impl, reduction, kind of scale."""
    table = {}
    for loss in (nt_xent, clip_loss, sup_con, sigmoid_loss):
        for impl in ("reference", "torch", *(["ring"] if loss in (nt_xent, clip_loss) else [])):
            for reduction in ("mean",) if loss is sigmoid_loss else ("mean", "sum", "none"):
                for scale in ("tensor", "number", "uneven"):
                    table[f"{loss.__name__}-{impl}-{reduction}-{scale}"] = (loss, impl, reduction, scale)
    return table


def evaluate(
    loss: Callable[..., Tensor], first: Tensor, second: Tensor, scale: Tensor | float, **options: Any
) -> Tensor:
    """Call a loss, whatever its arguments are, on pairs of embeddings."""
    if loss is sup_con:  # ids: some rows alone, most with positives, on this rank and on others
        ids = (first.detach().sum(1) * 1.5).round().long()
        return loss(first, ids, scale, **options)
    if loss is sigmoid_loss:
        return loss(first, second, scale, scale * -2, **options)
    return loss(first, second, scale, **options)


def tower() -> dict[str, Tensor]:
    """Parameters of a model small enough to differentiate by hand-me-down: two linear maps and a scale."""
    generator = torch.Generator().manual_seed(3)
    draw = {name: torch.randn(5, 4, generator=generator, dtype=torch.float64) for name in ("first", "second")}
    return draw | {"scale": torch.tensor(0.7, dtype=torch.float64)}


def step(case: tuple, rank: int, world: int, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Loss and parameter gradients of this rank's share of the batch."""
    loss, impl, reduction, kind = case
    params = {name: value.requires_grad_() for name, value in tower().items()}
    data = torch.randn(2, GLOBAL, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mine = data.chunk(world, 1)[rank]
    # uneven: a number on one rank, a tensor of another kind on each other
    scale = params["scale"] if kind == "tensor" or (kind == "uneven" and rank) else 0.7
    options = {} if loss is sigmoid_loss else {"reduction": reduction}
    if impl == "ring":
        impl, options = "torch", options | {"memory": "ring"}
    value = evaluate(
        loss, mine[0] @ params["first"], mine[1] @ params["second"], scale, impl=impl, group=group, **options
    )
    value.mean().backward()
    return {"loss": value.detach()} | {name: p.grad for name, p in params.items() if p.grad is not None}


def every_step(group: dist.ProcessGroup | None, impl: str | None = None) -> dict[str, dict[str, Tensor]]:
    """What `step` gives for each case, all by one implementation if named."""
    rank, world = (group.rank(), group.size()) if group else (0, 1)
    return {name: step((case[0], impl or case[1], *case[2:]), rank, world, group) for name, case in cases().items()}


def on_one_rank() -> dict[str, dict[str, Tensor]]:
    dist.init_process_group("gloo")
    return every_step(dist.group.WORLD)


@pytest.fixture(scope="module")
def truths() -> dict[str, dict[str, Tensor]]:
    return every_step(None, "reference")


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(ranks, truths, world):
    results = ranks(on_one_rank, world)
    for name, case in cases().items():
        truth, got = truths[name], [result[name] for result in results]
        # gradients by a scale that is a number on one rank are averaged over the others by nobody
        for key in truth.keys() - ({"loss", "scale"} if case[3] == "uneven" else {"loss"}):
            average = sum(result[key] for result in got) / world
            torch.testing.assert_close(
                average, truth[key], msg=lambda text, name=name, key=key: f"{name}, {key}: {text}"
            )
        losses = torch.stack([result["loss"] for result in got])
        if case[2] == "none":
            torch.testing.assert_close(losses.mean(), truth["loss"].mean(), msg=name)
        else:
            assert (losses == losses[0]).all(), name
            torch.testing.assert_close(losses[0], truth["loss"], msg=name)
