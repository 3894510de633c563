"""Blocks of the linear cross-entropy kernels, one per architecture, kernel and width of an element.

The products walk over features or classes in blocks, so that one block serves every width of a model.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bigssl_kernels.configs import FALLBACK, Block, architecture, tuned
from bigssl_kernels.contrastive.similarity_triton import _seconds


def _table() -> dict[tuple[str, str, int], Block]:
    with (Path(__file__).parents[1] / "tables" / "linear_ce.csv").open() as file:
        _, *lines = csv.reader(file)
    return {(arch, kernel, int(width)): Block(*map(int, rest)) for arch, kernel, width, *rest in lines}


SHIPPED = _table()


def block_for(kernel: str, data: Tensor, dtype: torch.dtype, launch: Callable[[Block], object] | None = None) -> Block:
    """The block of "ce_statistics", "ce_panel" or "ce_product" for products in `dtype` on the device of `data`.

    `launch` runs a block; while tuning it is timed. None where it must not be repeated.
    """
    shipped = SHIPPED.get((architecture(data.device), kernel, dtype.itemsize), FALLBACK)
    same = [block for (_, name, width), block in SHIPPED.items() if (name, width) == (kernel, dtype.itemsize)]
    time = None if launch is None else _seconds(launch)
    return tuned(f"{kernel}/{dtype}", data.device, shipped, [*same, FALLBACK], time)
