"""What the tasks share that ask for the places of tiles: their fields, the side of a tile, and the guards.

A tile has the resolution that the picture has where the network is used: what it learns of 16 of 64 pixels is there
again when it sees all 64. A network that takes pictures of one size only (a vision transformer with learnt positions)
sees each tile enlarged to that size.
"""

from __future__ import annotations

from typing import Any, Literal

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
from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import mean_of
from bigssl.nets.towers import Tower
from bigssl.nets.weightless import feature_size
from bigssl.objectives.base import Losses, ObjectiveConfig
from bigssl.objectives.seeing import picture_of

Colours = Literal["drop", "project", "keep"]
SMALLEST = 4  # pixels a side of a tile: below, nothing is left after the first layers of any network


class TiledConfig(ObjectiveConfig):
    """Fields of the tasks over tiles."""

    backbone: str = "image"
    tile: int | None = Field(
        None, ge=SMALLEST, description="pixels a side of a tile; default as many as the grid has room for in a picture "
        "of the backbone's size, or that size where the network takes no other",
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
        self.channels = int(getattr(tower.model.config, "num_channels", 3))
        if self.channels == 1 and config.colours not in (None, "keep"):
            raise ConfigError(
                f"objective.colours: value {config.colours}, but backbone {config.backbone!r} takes one channel, which "
                f"has no colour fringes; allowed: keep, or none"
            )
        self.colours: Colours = config.colours or ("drop" if self.channels == 3 else "keep")
        self.grid = TileGrid.of_shares(count, _side(config, tower, self.channels, count), config.gap, config.jitter)

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
        found: Tensor = self.tower.features({"image": given.flatten(0, 1)})
        return found.unflatten(0, tiles.shape[:2])


def without_fringes(tiles: Tensor) -> Tensor:
    """[..., 3, h, w] in 0..255 -> float32: colours without what they have of green against magenta, the direction a =
    (−1, 2, −1) in which the fringes of most lenses lie: x − a (a·x) / (a·a) (Doersch et al. 2015, section 3.1)."""
    away = torch.tensor([-1.0, 2.0, -1.0], device=tiles.device)
    kept = torch.eye(3, device=tiles.device) - torch.outer(away, away) / away.square().sum()
    return torch.einsum("ij,...jhw->...ihw", kept, tiles.float())


def classifier(width: int, hidden: int, classes: int) -> nn.Module:
    """[B, width] -> [B, classes], with one hidden layer and no BatchNorm, which would make one sample see another."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, classes))


def told_apart(logits: Tensor, labels: Tensor, blind: float, blind_name: str, features: Tensor) -> Losses:
    """The cross-entropy of [B, classes] logits and int64 [B] labels; features [N, D] are those that must differ."""
    loss = F.cross_entropy(logits.float(), labels)
    right = (logits.detach().argmax(1) == labels).float().mean()
    spread = {"features": distributed.spread(features)}
    return Losses(loss, blind, blind_name=blind_name, stats={"accuracy": right}, spread=spread)


def _side(config: TiledConfig, tower: Tower, channels: int, count: int) -> int:
    """Pixels a side of a tile. Raises ConfigError where the network does not take it."""
    fitting = TileGrid.within(tower.size, count, config.gap, config.jitter).side
    if config.tile is None:
        return fitting if fitting >= SMALLEST and _takes(tower, channels, fitting) else tower.size
    if not _takes(tower, channels, config.tile):
        raise ConfigError(
            f"objective.tile: value {config.tile}: backbone {config.backbone!r}, of type "
            f"{tower.model.config.model_type}, takes no pictures of {config.tile} pixels; allowed: its size "
            f"{tower.size}, or a network that takes any (resnet, convnext)"
        )
    return config.tile


def _takes(tower: Tower, channels: int, side: int) -> bool:
    """Whether its network takes pictures of `side` pixels, and not only those of its size."""
    row = MODALITIES["image"]

    def inputs() -> dict[str, Any]:
        return {row.main: torch.zeros(2, channels, side, side)}

    if side == tower.size:
        return True
    try:
        feature_size("", tower.model.config, inputs, lambda model, given: mean_of(*row.run(model, given)), _any)
    except ConfigError:
        return False
    return True


def _any(model: nn.Module) -> None:
    """What a network is was checked when its tower was made."""
