"""What does it cost to save and to load the state of many tensors? `python benchmarks/state_cost.py`

Saves and loads a network of 1,000 small parameter tensors (a transformer of 80 layers has as many), at each ZeRO stage
and with each optimizer, on 1 and 2 ranks, and on 2 from what 1 saved. Small tensors: what is measured is the cost of a
tensor, not of a byte. Prints seconds for both, and what one load did per tensor: files opened, reads of a saved tensor,
collectives. One that grows with the number of tensors would show as a number near 1 (or above) in the last column.

Exit status 1 where a load makes a collective or opens a file per tensor. About 4 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from state_matrix import OPTIMIZERS, recipe, spawn_ranks
from torch import Tensor, nn

from bigssl.engine import saved, zero
from bigssl.engine.optim import build_optimizer

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor", "barrier",
               "all_gather_object", "broadcast_object_list")  # fmt: skip
MOVES = ((1, 1), (2, 2), (1, 2))  # ranks that save, ranks that load


class Many(nn.Module):
    """`tensors` weights [8, 8] and biases [8], half and half."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(tensors // 2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh() / len(self.layers)
        loss: Tensor = x.square().mean()
        return loss


def engine_of(optimizer: str, stage: int, tensors: int) -> zero.Engine:
    torch.manual_seed(0)
    network, config = Many(tensors), recipe(optimizer, stage)
    plain = config.optim.model_copy(update={"groups": [], "no_decay": []})
    return zero.Engine(network, build_optimizer(network, plain), config,
                       micro=8 // dist.get_world_size(), accum=1, bf16=False)  # fmt: skip


def save(optimizer: str, stage: int, tensors: int, folder: Path) -> float:
    """Seconds of one save, after a step."""
    torch.compiler.set_stance("force_eager")  # Muon's kernel
    zero.start()
    engine = engine_of(optimizer, stage, tensors)
    engine.backward(engine(torch.ones(8 // dist.get_world_size(), 8)))
    engine.step()
    begin = time.perf_counter()
    engine.save(folder)
    return time.perf_counter() - begin


def load(optimizer: str, stage: int, tensors: int, folder: Path) -> dict[str, float]:
    """Seconds of one load, and how often it called what."""
    torch.compiler.set_stance("force_eager")
    zero.start()
    engine = engine_of(optimizer, stage, tensors)
    calls: Counter[str] = Counter()
    with counting(calls):
        begin = time.perf_counter()
        engine.load(folder)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, **calls}


def counting(calls: Counter[str]) -> ExitStack:
    """Within it, calls of what may cost a round trip are counted."""

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    stack = ExitStack()
    for name in COLLECTIVES:
        stack.enter_context(mock.patch.object(dist, name, counted("collectives", getattr(dist, name))))
    stack.enter_context(mock.patch.object(torch, "load", counted("files", torch.load)))
    stack.enter_context(mock.patch.object(saved.SavedState, "read", counted("reads", saved.SavedState.read)))
    return stack


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tensors", type=int, default=1000, metavar="N")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"{options.tensors} tensors; seconds of the slowest rank; calls of rank 0 per load")
    print(f"{'optimizer':10} {'stage':>5} {'ranks':>6} {'save s':>7} {'load s':>7} {'files':>6} {'reads':>6} "
          f"{'collectives':>11}")  # fmt: skip
    wrong = False
    for optimizer in options.optimizers:
        for stage in (0, 1, 2, 3):
            for before, after in MOVES:
                with tempfile.TemporaryDirectory() as folder:
                    at = optimizer, stage, options.tensors, Path(folder)
                    saving, found = spawn_ranks(save, before, *at), spawn_ranks(load, after, *at)
                slowest, first = max(each["seconds"] for each in found), found[0]
                wrong |= max(first.get("files", 0), first.get("collectives", 0)) >= options.tensors
                print(f"{optimizer:10} {stage:5} {before:>3}->{after} {max(saving):8.2f} {slowest:7.2f} "
                      f"{first.get('files', 0):6} {first.get('reads', 0):6} {first.get('collectives', 0):11}",
                      flush=True)  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
