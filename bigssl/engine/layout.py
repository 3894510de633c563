"""Where DeepSpeed puts each parameter: which elements stand at which place in which rank's flat tensors.

Stage 0 keeps every parameter whole (a "flat tensor" is then the parameter itself). Stages 1 and 2 join a group's
parameters end to end and cut the row into equal partitions, one a rank. Stage 3 cuts every parameter into equal
slices and joins each rank's slices. With this written beside DeepSpeed's files, a parameter's state can be read by its
name, whatever stage and number of ranks saved it (see saved.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of the flattened parameter `name` stand from `at` on in a rank's flat tensor."""

    name: str
    at: int
    start: int
    stop: int


@dataclass(frozen=True)
class Flat:
    """One flat tensor of a parameter group; `size` elements on each rank, padding included.

    offsets: where each of `names` begins: in the row of all ranks (stages 0 to 2), or in each rank's own (stage 3).
    """

    group: int
    names: list[str]
    offsets: list[int]
    size: int


@dataclass(frozen=True)
class Layout:
    """Flat tensors of all ranks; `shapes` are those of all parameters, frozen ones (in no flat tensor) included."""

    stage: int
    world: int
    shapes: dict[str, list[int]]
    flats: list[Flat]

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Layout:
        values = json.loads(text)
        return Layout(**{**values, "flats": [Flat(**flat) for flat in values["flats"]]})

    def numel(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def slice_of(self, name: str, rank: int) -> tuple[int, int]:
        """[start, stop) of the elements of `name` that stage 3 gives to `rank`; empty where it has more ranks."""
        numel = self.numel(name)
        share = -(-numel // self.world)
        return min(rank * share, numel), min((rank + 1) * share, numel)

    def piece(self, flat: Flat, index: int, rank: int) -> Piece:
        """What `rank` holds of the parameter `flat.names[index]`; start = stop where it holds nothing."""
        name, offset = flat.names[index], flat.offsets[index]
        if self.stage == 3:
            start, stop = self.slice_of(name, rank)
            return Piece(name, offset, start, stop)
        low = rank * flat.size if self.stage else 0
        start, stop = max(low - offset, 0), min(low + flat.size - offset, self.numel(name))
        return Piece(name, offset + start - low, start, max(start, stop))

    def pieces(self, flat: Flat, rank: int) -> Iterator[Piece]:
        """What stands in `flat` on `rank`, in order; nothing of a parameter that lies elsewhere."""
        every = (self.piece(flat, index, rank) for index in range(len(flat.names)))
        return (piece for piece in every if piece.start < piece.stop)

    def whole_pieces(self, flat: Flat, rank: int) -> Iterator[Piece]:
        """As `pieces`, for state that stages 1 and 2 keep of whole parameters on each rank that has a part of them.

        (The momentum of Muon, which orthogonalises whole matrices.)
        """
        at = 0
        for piece in self.pieces(flat, rank):
            yield Piece(piece.name, at, 0, self.numel(piece.name))
            at += self.numel(piece.name)

    def owners(self, flat: Flat, index: int, start: int, stop: int) -> range:
        """Ranks that hold some of elements [start, stop) of the parameter `flat.names[index]`."""
        if start >= stop:
            return range(0)
        if self.stage == 0:
            return range(1)
        if self.stage == 3:
            offset, share = 0, -(-self.numel(flat.names[index]) // self.world)
        else:
            offset, share = flat.offsets[index], flat.size
        return range((offset + start) // share, (offset + stop - 1) // share + 1)


def keeps_whole(stage: int, settings: dict[str, Any], key: str) -> bool:
    """Whether a group's state `key` lies as `whole_pieces` says."""
    return stage in (1, 2) and key == "momentum_buffer" and bool(settings.get("use_muon"))


def layout_of(module: nn.Module, optimizer: Any, stage: int, world: int) -> Layout:
    """The layout of a live engine; `optimizer` is DeepSpeed's around it (at stage 0 the plain one)."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    shapes = {name: list(getattr(p, "ds_shape", p.shape)) for p, name in names.items()}
    return Layout(stage, world, shapes, list(_flats(names, optimizer, stage)))


def _flats(names: dict[nn.Parameter, str], optimizer: Any, stage: int) -> Iterator[Flat]:
    if stage == 0:
        for group, settings in enumerate(optimizer.param_groups):
            for parameter in settings["params"]:
                yield Flat(group, [names[parameter]], [0], parameter.numel())
    elif stage < 3:
        for group, parameters in enumerate(optimizer.round_robin_bit16_groups):
            offsets = [int(offset) for offset in optimizer.round_robin_bit16_offsets[group]]
            yield Flat(group, [names[p] for p in parameters], offsets, int(optimizer.partition_size[group]))
    else:
        for number, parameters in enumerate(optimizer.fp16_groups):
            *offsets, size = accumulate((p.partition_numel() for p in parameters), initial=0)
            yield Flat(optimizer.sub_group_to_group_id[number], [names[p] for p in parameters], offsets, size)


def flat_tensors(optimizer: Any, stage: int) -> list[Tensor]:
    """This rank's fp32 flat tensors, in the order of `Layout.flats`; the optimizer's state is kept by them."""
    if stage == 0:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors: list[Tensor] = optimizer.single_partition_of_fp32_groups if stage < 3 else (
        optimizer.fp32_partitioned_groups_flat
    )  # fmt: skip
    return tensors


@torch.no_grad()
def clear_padding(layout: Layout, tensors: list[Tensor], rank: int) -> None:
    """Zero what stands between and behind the parameters of this rank's flat tensors. DeepSpeed leaves there what the
    memory held before, at stage 3: nobody reads it, but it would be in checkpoints, and may be NaN."""
    for flat, tensor in zip(layout.flats, tensors, strict=True):
        end = 0
        for piece in layout.pieces(flat, rank):
            tensor[end : piece.at] = 0
            end = piece.at + piece.stop - piece.start
        tensor[end:] = 0


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer of the recipe, within DeepSpeed's."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
