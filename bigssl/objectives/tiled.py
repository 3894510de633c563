"""What the tasks share that ask for the places of tiles: their fields, the side of a tile, and the guards.

A tile has about the resolution that the picture has where the network is used: what is learnt of 56 of 224 pixels is
there again when the network sees all 224. It has a place in the network's last map at least (32 pixels of a ResNet):
layers behind a map of one place would see padding; of a network that sees only what fills a patch, whole patches. A
vision transformer, to which such a tile would be a patch or two, sees each tile enlarged to its size.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.kinds.tiles import TileGrid, drop_colours
from bigssl.data.sample import Sample
from bigssl.nets.modality.kinds import TRANSFORMERS, WHOLE_PATCHES
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, ObjectiveConfig
from bigssl.objectives.seeing import picture_of, places_of

Colours = Literal["drop", "project", "keep"]
SMALL = {
    "type": "convnext",
    "size": 32,
    "config": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_scale_init_value": 1.0},
}
"""The network of their presets."""


class TiledConfig(ObjectiveConfig):
    """Fields of the tasks over tiles."""

    backbone: str = "image"
    tile: int | None = Field(
        None, ge=1, description="pixels a side of a tile; default as many as the grid has room for in a picture of the "
        "backbone's size, but a place of its last map at least; of a vision transformer, its size",
    )  # fmt: skip
    gap: float = Field(0.5, ge=0, le=2, description="between tiles, in tiles")
    jitter: float = Field(7 / 96, ge=0, le=1, description="by how much a tile is moved at most, in tiles")
    min_scale: float = Field(0.3, gt=0, le=1, description="smallest share of the picture's square that the grid covers")
    colours: Colours | None = Field(
        None, description="against telling places by a lens's colour fringes: drop two channels of each tile, project "
        "away from green and magenta, or keep all; default drop (of one channel, keep)",
    )  # fmt: skip
    hidden: int = Field(4096, ge=1, description="hidden size of the classifier")


class Tiles:
    """Tiles of samples for a backbone, as the fields of a task say. Raises ConfigError for what cannot be."""

    def __init__(self, config: TiledConfig, tower: Tower, count: int) -> None:
        self.tower, self.min_scale = tower, config.min_scale
        if tower.channels == 1 and config.colours not in (None, "keep"):
            raise ConfigError(
                f"objective.colours: value {config.colours}, but backbone {config.backbone!r} takes one channel, which "
                f"has no colour fringes; allowed: keep, or none"
            )
        self.colours: Colours = config.colours or ("keep" if tower.channels == 1 else "drop")
        self.grid = TileGrid.of_shares(count, _side(config, tower, count), config.gap, config.jitter)
        _refuse_touching(config, self.grid)

    def square(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        """uint8 [whole, whole, C] of which tiles are cut. Raises DataError."""
        picture = picture_of(sample, self.tower, size=self.grid.whole)
        try:
            return self.grid.square(picture, self.min_scale, rng)
        except DataError as error:
            raise DataError(f"{sample.where}: {error}") from None

    def cut(self, square: np.ndarray, places: list[int], rng: np.random.Generator) -> np.ndarray:
        """uint8 [T, C, side, side], the tiles at `places`."""
        tiles = [self.grid.cut(square, place, rng) for place in places]
        return np.stack([drop_colours(tile, rng) for tile in tiles] if self.colours == "drop" else tiles)

    def features(self, tiles: Tensor) -> Tensor:
        """uint8 or float [B, T, C, side, side], 0 to 255 -> [B, T, dim]: each tile by itself, all in one batch."""
        given = without_fringes(tiles) if self.colours == "project" else tiles
        places = given.transpose(0, 1)  # one place of all samples after the other, as dropout wants rows
        found: Tensor = self.tower.features({"image": places.flatten(0, 1)})
        return found.unflatten(0, places.shape[:2]).transpose(0, 1)


def without_fringes(tiles: Tensor) -> Tensor:
    """[..., 3, h, w] in 0..255 -> float32: colours without what they have of green against magenta, the direction a =
    (−1, 2, −1) in which the fringes of most lenses lie: x − a (a·x) / (a·a) (Doersch et al. 2015, section 3.1)."""
    away = torch.tensor([-1.0, 2.0, -1.0], device=tiles.device)
    kept = torch.eye(3, device=tiles.device) - torch.outer(away, away) / away.square().sum()
    return torch.einsum("ij,...jhw->...ihw", kept, tiles.float())


def classifier(width: int, hidden: int, classes: int) -> nn.Module:
    """[B, width] -> [B, classes], with one hidden layer and no BatchNorm, which would make one sample see another."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, classes))


def classified(logits: Tensor, labels: Tensor, blind: float, blind_name: str, features: Tensor) -> Losses:
    """The cross-entropy of [B, classes] logits and int64 [B] labels; features [N, D] are those that must differ."""
    loss = F.cross_entropy(logits.float(), labels)
    right = (logits.detach().argmax(1) == labels).float().mean()
    spread = {"features": distributed.spread(features)}
    return Losses(loss, blind, blind_name=blind_name, stats={"accuracy": right}, spread=spread)


def _side(config: TiledConfig, tower: Tower, count: int) -> int:
    """Pixels a side of a tile. Raises ConfigError where the network does not take it."""
    kind, patch = tower.model.config.model_type, getattr(tower.model.config, "patch_size", 1)
    whole = patch if kind in WHOLE_PATCHES else 1
    least = round(tower.size / math.isqrt(places_of(tower, tower.size) or 1))
    if config.tile is None:
        fitting = TileGrid.within(tower.size, count, config.gap, config.jitter).side // whole * whole
        fitting = max(fitting, least)  # a place is of whole patches
        return tower.size if kind in TRANSFORMERS or not places_of(tower, fitting) else fitting
    where = f"objective.tile: value {config.tile}: backbone {config.backbone!r} is of type {kind}"
    if config.tile % whole:
        raise ConfigError(f"{where} with patch_size {patch}; allowed: a multiple of it")
    if config.tile < least:
        raise ConfigError(
            f"{where}, and a place of its last map covers {least} pixels a side: of less, its last layers would see "
            f"nothing but padding; allowed: >= {least}"
        )
    if not places_of(tower, config.tile):
        raise ConfigError(f"{where}, which takes no pictures of another side than its size; allowed: {tower.size}")
    return config.tile


def _refuse_touching(config: TiledConfig, grid: TileGrid) -> None:
    """Borders that meet tell which tiles are neighbours."""
    if grid.nearest >= 1:
        return
    wanted = math.ceil(1000 * (2 * grid.jitter + 1) / grid.side) / 1000
    far = f"be {-grid.nearest} pixels over each other" if grid.nearest else "touch"
    raise ConfigError(
        f"objective.gap: value {config.gap} with jitter {config.jitter}: tiles of {grid.side} pixels may {far}, and "
        f"places be told by borders alone; allowed: a gap >= {wanted} between such tiles, or less jitter"
    )
