"""One rank of the distributed tests: `gloo_worker.py RANK WORLD FOLDER` runs the cases and saves loss and gradients."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import bigssl_kernels as K

GLOBAL = 12  # pairs in all: divides by 2, 3 and 4


def cases() -> dict[str, tuple]:
    """Name -> loss, impl, reduction, kind of scale."""
    table = {}
    for loss in (K.nt_xent, K.clip_loss, K.sup_con, K.sigmoid_loss):
        for impl in ("reference", "torch", *(["ring"] if loss in (K.nt_xent, K.clip_loss) else [])):
            for reduction in ("mean",) if loss is K.sigmoid_loss else ("mean", "sum", "none"):
                for scale in ("tensor", "number", "uneven"):
                    table[f"{loss.__name__}-{impl}-{reduction}-{scale}"] = (loss, impl, reduction, scale)
    return table


def evaluate(
    loss: Callable[..., Tensor], first: Tensor, second: Tensor, scale: Tensor | float, **options: Any
) -> Tensor:
    """Call a loss, whatever its arguments are, on pairs of embeddings."""
    if loss is K.sup_con:  # ids: some rows alone, most with positives, on this rank and on others
        ids = (first.detach().sum(1) * 1.5).round().long()
        return loss(first, ids, scale, **options)
    if loss is K.sigmoid_loss:
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
    options = {} if loss is K.sigmoid_loss else {"reduction": reduction}
    if impl == "ring":
        impl, options = "torch", options | {"memory": "ring"}
    value = evaluate(
        loss, mine[0] @ params["first"], mine[1] @ params["second"], scale, impl=impl, group=group, **options
    )
    value.mean().backward()
    return {"loss": value.detach()} | {name: p.grad for name, p in params.items() if p.grad is not None}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    results = {name: step(case, rank, world, dist.group.WORLD) for name, case in cases().items()}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
