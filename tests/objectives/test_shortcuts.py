"""Tasks over tiles cannot be solved by what no eye looks at: borders that go on in the next tile, a lens's fringes.

The pictures are noise, blurred over a few pixels: alike everywhere, and independent beyond these few. Whatever a
classifier finds out about the places of their tiles it has from the shortcut, and it finds none with the guards; taken
out, it does, so that the test can fail. Classifiers are logistic regressions on all that a border, or a fringe, can say
of a place: products of the borders of two tiles; differences of colours times the slope of the brightness; and, beside
each, means of a tile and of its borders, which differ where what is around a picture is seen, or a border is marked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.objectives.base import Objective
from bigssl.objectives.jigsaw import Jigsaw, normalised_tiles
from bigssl.objectives.patch_position import PatchPosition
from bigssl.objectives.tiled import without_fringes

TRAIN, TEST, CLASSES = 900, 800, 8
ERROR = 3.3 * (0.125 * 0.875 / TEST) ** 0.5  # of an accuracy of 1/8: .039, beyond which one in a thousand lies
TILE = 16


def noise(rng: np.random.Generator, side: int, reach: int, colours: int) -> np.ndarray:
    """uint8 [side, side, 3]: pixels `reach` or more apart are independent; `colours` channels of its own, or one."""
    white = rng.standard_normal((side + reach, side + reach, colours)).astype(np.float32)
    smooth = cv2.blur(white, (reach, reach), borderType=cv2.BORDER_REFLECT)[reach // 2 :, reach // 2 :]
    picture = 128 + 40 * reach * smooth.reshape(*smooth.shape[:2], colours)[:side, :side]
    return np.broadcast_to(picture.round().clip(0, 255), (side, side, 3)).astype(np.uint8)


def through_a_lens(picture: np.ndarray) -> np.ndarray:
    """Green is 8 % larger about the centre than red and blue, as glass does it (and less of it)."""
    matrix = cv2.getRotationMatrix2D(((len(picture) - 1) / 2,) * 2, 0, 1.08)
    green = cv2.warpAffine(np.ascontiguousarray(picture[..., 1]), matrix, picture.shape[:2], flags=cv2.INTER_CUBIC,
                           borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    return np.stack([picture[..., 0], green, picture[..., 2]], -1)


def tiles_and_labels(
    task: Objective, monkeypatch: pytest.MonkeyPatch, made: Callable[[np.random.Generator, int], np.ndarray]
) -> tuple[Tensor, Tensor]:
    """float32 [N, T, 3, h, w], as `prepare` cuts them of `made` pictures in which its grid just fits, and labels."""
    monkeypatch.setattr("bigssl.objectives.tiled.picture_of", lambda sample, tower, size: sample)
    prepared = []
    for number in range(TRAIN + TEST):
        rng = np.random.default_rng(number)
        prepared.append(task.prepare(made(rng, task.tiles.grid.whole), rng, None))  # type: ignore[arg-type, union-attr]
    field = "tiles" if isinstance(task, Jigsaw) else "patches"
    tiles = torch.from_numpy(np.stack([each[field] for each in prepared])).float()
    return tiles, torch.tensor([each["label"] for each in prepared])


def accuracy(seen: Tensor, labels: Tensor) -> float:
    """Of a logistic regression on [N, K] values, on samples that it has not seen."""
    values = (seen - seen[:TRAIN].mean(0)) / (seen[:TRAIN].std(0) + 1e-6)
    weight = torch.zeros(seen.shape[1] + 1, CLASSES, requires_grad=True)
    values = F.pad(values, (0, 1), value=1.0)
    optimizer = torch.optim.LBFGS([weight], max_iter=40)

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(values[:TRAIN] @ weight, labels[:TRAIN]) + 0.01 * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return float(((values[TRAIN:] @ weight).argmax(1) == labels[TRAIN:]).float().mean())


def borders(tiles: Tensor) -> Tensor:
    """What the outermost pixels of each two tiles have in common: side by side, corner by corner, [N, T (T − 1) 32]."""
    around = tiles - 128
    sides = torch.stack([around[..., 0, :], around[..., -1, :], around[..., :, 0], around[..., :, -1]], 2)
    corners = around[..., [0, 0, -1, -1], [0, -1, 0, -1]].movedim(-1, 2)  # [N, T, 4, 3]
    alike = [torch.einsum("nsix,ntjx->nstij", each, each) for each in (sides.flatten(3), corners)]
    pairs = ~torch.eye(tiles.shape[1], dtype=torch.bool)
    return torch.cat([each[:, pairs].flatten(1) for each in alike], 1)


def means(tiles: Tensor) -> Tensor:
    """Of each tile, its sides and its corners by themselves, in each colour: [N, T · 27]."""
    sides = torch.stack([tiles[..., 0, :], tiles[..., -1, :], tiles[..., :, 0], tiles[..., :, -1]], 2).mean(-1)
    corners = tiles[..., [0, 0, -1, -1], [0, -1, 0, -1]].movedim(-1, 2)
    return torch.cat([each.flatten(1) for each in (tiles.mean((-2, -1)), sides, corners)], 1)


def fringes(tiles: Tensor) -> Tensor:
    """By how much the colours of each tile seem moved against each other, down and to the right, [N, T · 4]."""
    slopes = torch.gradient(tiles.mean(2), dim=(-2, -1))
    moved = [((tiles[:, :, c] - tiles[:, :, c + 1]) * slope).mean((-2, -1)) for c in (0, 1) for slope in slopes]
    return torch.cat(moved, 1)


def task_of(objective: Any, kind: type[Objective], **fields: Any) -> Any:
    name = "jigsaw" if kind is Jigsaw else "patch_position"
    more = {"permutations": CLASSES} if kind is Jigsaw else {}
    return objective(kind, name, **{"tile": TILE, "min_scale": 1.0} | more | fields)


@pytest.mark.parametrize("kind", [PatchPosition, Jigsaw])
def test_borders_tell_no_place_across_the_gaps(
    kind: type[Objective], objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that reaches as far as the gap leaves room for; without gap and jitter the borders go on."""
    task = task_of(objective, kind, colours="keep")
    reach = task.tiles.grid.nearest + 1

    def made(rng: np.random.Generator, side: int) -> np.ndarray:
        return noise(rng, side, reach, 3)

    def seen(**gaps: int) -> float:
        task.tiles.grid = replace(task.tiles.grid, **gaps)
        tiles, labels = tiles_and_labels(task, monkeypatch, made)
        shown = normalised_tiles(tiles) if kind is Jigsaw else tiles
        return accuracy(torch.cat([borders(shown), means(shown)], 1), labels)

    assert 3 <= reach <= 8
    assert abs(seen() - 1 / CLASSES) < ERROR
    assert seen(gap=0, jitter=0) > 0.4  # which a recipe cannot ask for


@pytest.mark.parametrize("kind", [PatchPosition, Jigsaw])
def test_small_pictures_tell_no_place_by_what_is_around_them(
    kind: type[Objective], objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are cut from, too, and enlarged; with a border of black in the place of that, corners show."""
    task = task_of(objective, kind, colours="keep", min_scale=0.7)

    def small(rng: np.random.Generator, side: int) -> np.ndarray:
        return noise(rng, side * 3 // 4, 3, 3)

    def padded(rng: np.random.Generator, side: int) -> np.ndarray:
        picture = small(rng, side)
        return cv2.copyMakeBorder(picture, *[(side - len(picture)) // 2] * 4, cv2.BORDER_CONSTANT)

    def seen(made: Callable[[np.random.Generator, int], np.ndarray]) -> float:
        tiles, labels = tiles_and_labels(task, monkeypatch, made)
        return accuracy(means(normalised_tiles(tiles) if kind is Jigsaw else tiles), labels)

    assert abs(seen(small) - 1 / CLASSES) < ERROR
    assert seen(padded) > 0.25


@pytest.mark.parametrize("kind", [PatchPosition, Jigsaw])
def test_fringes_of_a_lens_tell_no_place_where_colours_are_guarded(
    kind: type[Objective], objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the default, and by projection."""

    def seen(colours: str | None) -> float:
        task = task_of(objective, kind, colours=colours)
        tiles, labels = tiles_and_labels(task, monkeypatch, lambda rng, side: through_a_lens(noise(rng, side, 3, 1)))
        shown = without_fringes(tiles) if task.tiles.colours == "project" else tiles
        shown = shown.round(decimals=2)  # of a grey level: what is below is of the arithmetic, and no network sees it
        shown = normalised_tiles(shown) if kind is Jigsaw else shown
        return accuracy(torch.cat([fringes(shown), means(shown)], 1), labels)

    assert abs(seen(None) - 1 / CLASSES) < ERROR
    assert abs(seen("project") - 1 / CLASSES) < ERROR
    assert seen("keep") > 0.4


def test_the_mean_and_contrast_of_a_tile_tell_no_place_in_a_puzzle(
    objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that are lighter and livelier below: seen of each tile, before it is normalised, and not afterwards."""

    def made(rng: np.random.Generator, side: int) -> np.ndarray:
        picture = noise(rng, side, 3, 3).astype(np.float32) - 128
        ramp = np.linspace(-1, 1, side, dtype=np.float32)[:, None, None]
        return (128 + 40 * ramp + picture * (0.5 + 0.3 * ramp) + 20 * ramp[:, 0]).clip(0, 255).astype(np.uint8)

    tiles, labels = tiles_and_labels(task_of(objective, Jigsaw, colours="keep"), monkeypatch, made)

    def moments(shown: Tensor) -> Tensor:
        return torch.cat([shown.mean((-2, -1)).flatten(1), shown.std((2, 3, 4))], 1)

    assert accuracy(moments(tiles), labels) > 0.9
    assert abs(accuracy(moments(normalised_tiles(tiles)).round(decimals=2), labels) - 1 / CLASSES) < ERROR
