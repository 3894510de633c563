"""Maps of features [B, D, h, w] of pictures: of any image backbone, and of the raw pixels that it has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import normalise
from bigssl.transfer.labelled.examples import KEPT

FINEST = 64  # cells of a map a side at most
CHANNELS_LAST = ("hiera",)  # whose reshaped states are [B, h, w, D]
STRIDE, AROUND = 4, 12  # pixels from one cell of the raw map to the next, and a side that each cell sees
PATCHES = "patches of raw pixels"

Maps = list[Tensor]


def stage_maps(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Maps:
    """Collated views on the model's device -> its maps float32 [B, D, h, w], the finest first.

    Of a network of patches the last layer, without class and register tokens; of one with stages the last layer of
    each that has at most FINEST cells a side. Raises DataError where the tokens are no grid.
    """
    row = MODALITIES["image"]
    inputs = row.inputs(model, batch)
    output = model(**inputs, output_hidden_states=True)
    last = row.tokens(model, inputs, output.last_hidden_state)[0]
    found = {grid_of(each): each for each in (*_stages(model, output), _grid(model, last, inputs[row.main]))}
    fine = {side: each for side, each in found.items() if max(side) <= FINEST} or found
    return [fine[side].float() for side in sorted(fine, reverse=True)]


def grid_of(each: Tensor) -> tuple[int, int]:
    """Height and width of a map, in cells."""
    return each.shape[-2], each.shape[-1]


def _stages(model: PreTrainedModel, output: object) -> Maps:
    """Of a network whose layers are of several sizes, all layers as maps; none of another."""
    states: Sequence[Tensor] = getattr(output, "hidden_states", None) or ()
    shaped: Sequence[Tensor] | None = getattr(output, "reshaped_hidden_states", None)
    if shaped is not None:
        return [each.movedim(-1, 1) for each in shaped] if model.config.model_type in CHANNELS_LAST else list(shaped)
    if all(each.dim() == 4 for each in states):
        return list(states)
    if len({each.shape[1] for each in states}) < 2:
        return []
    return [_square(each) for each in states]


def _grid(model: PreTrainedModel, tokens: Tensor, pixels: Tensor) -> Tensor:
    """Tokens [B, T, D] of patches row by row -> [B, D, h, w]."""
    patch = getattr(model.config, "patch_size", None)
    if isinstance(patch, int | tuple | list):
        high, wide = (patch, patch) if isinstance(patch, int) else patch
        height, width = pixels.shape[-2] // high, pixels.shape[-1] // wide
        if height * width == tokens.shape[1]:
            return tokens.transpose(1, 2).unflatten(2, (height, width))
    return _square(tokens)


def _square(tokens: Tensor) -> Tensor:
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise DataError(f"{tokens.shape[1]} tokens of a picture are no square grid; this network has no map of it")
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def patch_maps(batch: Mapping[str, Tensor]) -> Maps:
    """image uint8 [B, C, H, W] -> one map float32 [B, C·AROUND², H/STRIDE, W/STRIDE]: the pixels around each cell."""
    pixels = normalise(batch["image"])
    border = (AROUND - STRIDE) // 2
    cells = [(side + 2 * border - AROUND) // STRIDE + 1 for side in pixels.shape[-2:]]
    return [F.unfold(pixels, AROUND, padding=border, stride=STRIDE).unflatten(2, cells)]


class KeptMaps:
    """Maps of samples by networks that stay as they are, kept on the CPU while all of them take less than KEPT:
    those of the network that is asked for in place of others, the ones that were not asked for longest first."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, dict[tuple[str, int], Maps]] = {}  # by network, the last one used at the end
        self._room = KEPT

    def lacking(self, network: Hashable, part: str, rows: Sequence[int]) -> list[int]:
        """Of samples of a dataset `part`, those that would have to be made, each once."""
        mine = self._kept.get(network, {})
        return [row for row in dict.fromkeys(rows) if (part, row) not in mine]

    def of(self, network: Hashable, part: str, rows: Sequence[int], make: Callable[[Sequence[int]], Maps]) -> Maps:
        """Those of samples `rows` of a dataset `part`, batched. make: of samples that are not kept."""
        mine = self._kept[network] = self._kept.pop(network, {})
        fresh: dict[int, Maps] = {}
        if lacking := self.lacking(network, part, rows):
            made = [each.cpu() for each in make(lacking)]
            fresh = {row: [each[at].clone() for each in made] for at, row in enumerate(lacking)}
        for row, maps in fresh.items():
            if self._takes(size := _bytes(maps)):
                mine[part, row] = maps
                self._room -= size
        found = [fresh[row] if row in fresh else mine[part, row] for row in rows]
        return [torch.stack(stage) for stage in zip(*found, strict=True)]

    def _takes(self, size: int) -> bool:
        """Whether there is room, that of other networks if need be."""
        while size > self._room and len(self._kept) > 1:
            self._room += sum(map(_bytes, self._kept.pop(next(iter(self._kept))).values()))
        return size <= self._room


def _bytes(maps: Maps) -> int:
    return sum(each.nbytes for each in maps)
