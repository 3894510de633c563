"""Patch position, jigsaw and rotation: what is asked for is what is shown; labels are as often as each other; what
cannot be is refused by its field."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, make_towers
from PIL import Image

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Objective, build, discover
from bigssl.objectives.jigsaw import DEVIATION, MEAN, Jigsaw, normalised_tiles
from bigssl.objectives.patch_position import AROUND, PatchPosition
from bigssl.objectives.rotation import Rotation, every_turn
from bigssl.objectives.tiled import classified, without_fringes

AT = Progress(0, 10)


def numbered(sample: Any, tower: Any, size: int | None = None) -> np.ndarray:
    """A picture whose pixels say where they are: row, column, and nothing."""
    rows, columns = np.mgrid[:100, :100]
    return np.stack([rows, columns, rows * 0], -1).astype(np.uint8)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("tiled", "rotation"):
        monkeypatch.setattr(f"bigssl.objectives.{file}.picture_of", numbered)


def drawn(task: Objective, count: int) -> list[dict[str, Any]]:
    return [task.prepare(None, np.random.default_rng(n), None) for n in range(count)]  # type: ignore[arg-type]


def is_even(labels: list[int], classes: int) -> bool:
    """chi² below its .999 quantile (Wilson and Hilferty 1931)."""
    counts, expected = np.bincount(labels, minlength=classes), len(labels) / classes
    freedom = classes - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    return len(counts) == classes and bool(((counts - expected) ** 2 / expected).sum() < bound)


def test_the_second_patch_lies_where_its_label_says(objective: Any, made: None) -> None:
    """Row by row around the first, about a patch and a half away; every side as often."""
    task = objective(PatchPosition, "patch_position", tile=24, min_scale=1.0)
    ways = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    scale = 100 / task.tiles.grid.whole
    prepared, distances = drawn(task, 800), []
    for each in prepared:
        first, second = each["patches"][:, :2].mean((-2, -1))
        down_right = (second - first) / scale / (24 + 12)
        assert tuple(np.rint(down_right)) == ways[each["label"]]
        distances.append(np.abs(down_right - ways[each["label"]]).max() * 36)
    assert 2.0 < max(distances) < 5.0  # two pixels of jitter each
    assert is_even([each["label"] for each in prepared], len(AROUND))


def test_a_slot_of_the_puzzle_holds_the_tile_that_its_permutation_says(objective: Any, made: None) -> None:
    task = objective(Jigsaw, "jigsaw", grid=3, tile=16, permutations=30, min_scale=1.0)
    prepared = drawn(task, 900)
    for each in prepared:
        where = each["tiles"][:, :2].mean((-2, -1)) / 100 * 3  # [9, 2] in tiles
        assert np.array_equal(np.floor(where) @ [3, 1], task.permutations[each["label"]])
    assert is_even([each["label"] for each in prepared], 30)


def test_a_tile_is_shown_with_one_mean_and_one_deviation(objective: Any) -> None:
    """In loops; a tile that shows nothing stays flat."""
    tiles = torch.randint(0, 256, (2, 4, 3, 5, 5), dtype=torch.uint8)
    tiles[1, 2] = 200
    tiles[0, 1, :2] = 127  # dropped colours
    found = normalised_tiles(tiles)
    for sample in range(2):
        for place in range(4):
            tile = tiles[sample, place].numpy().astype(np.float64)
            centred = np.stack([channel - channel.mean() for channel in tile])
            deviation = max(math.sqrt((centred**2).mean()), 1.0)
            np.testing.assert_allclose(found[sample, place].numpy(), MEAN + DEVIATION * centred / deviation, rtol=1e-4)
    assert (found[1, 2] == MEAN).all() and found[0, 1, 2].std() > 1.6 * DEVIATION


def test_projection_leaves_nothing_of_green_against_magenta() -> None:
    """x − a (a·x) / (a·a), in loops; greys stay as they are."""
    tiles, away = torch.rand(2, 2, 3, 3, 3) * 255, np.array([-1.0, 2.0, -1.0])
    found = without_fringes(tiles)
    for index in np.ndindex(2, 2, 3, 3):
        pixel = tiles[index[0], index[1], :, index[2], index[3]].numpy()
        kept = found[index[0], index[1], :, index[2], index[3]].numpy()
        np.testing.assert_allclose(kept, pixel - away * (away @ pixel) / 6, rtol=1e-4)
        assert abs(away @ kept) < 1e-3
    grey = torch.full((1, 3, 2, 2), 77, dtype=torch.uint8)
    torch.testing.assert_close(without_fringes(grey), grey.float())


def test_a_picture_is_turned_to_the_left_pixel_by_pixel(objective: Any, made: None) -> None:
    """All turns or one by chance: the same pictures, of which half are mirrored."""
    pictures = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    turned, turns = every_turn(pictures)
    for row, (picture, turn) in enumerate(zip(turned, turns.tolist(), strict=True)):
        assert np.array_equal(picture.numpy(), np.rot90(pictures[row % 3].numpy(), turn, (1, 2)))
    whole, one = (objective(Rotation, "rotation", all_turns=every, min_scale=1.0) for every in (True, False))
    straight, prepared = drawn(whole, 400), drawn(one, 400)
    for first, second in zip(straight, prepared, strict=True):
        assert np.array_equal(np.rot90(first["image"], second["turn"], (1, 2)), second["image"])
    assert is_even([each["turn"] for each in prepared], 4)
    assert is_even([int(each["image"][1, 0, 0] > 50) for each in straight], 2)


def test_the_loss_is_the_cross_entropy_beside_that_of_guessing(objective: Any, batch: Any) -> None:
    """In loops; a head that says nothing has the blind line exactly: ln 8, ln N, ln 4."""
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    surprise = [math.log(sum(math.exp(v) for v in row)) - row[label]
                for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]  # fmt: skip
    losses = classified(logits, labels, 1.0, "", torch.randn(6, 3))
    assert losses.total.item() == pytest.approx(sum(surprise) / 6, rel=1e-6)
    for kind, name, classes in ((PatchPosition, "patch_position", 8), (Jigsaw, "jigsaw", 4), (Rotation, "rotation", 4)):
        task = objective(kind, name)
        last = task.head if isinstance(task.head, torch.nn.Linear) else task.head[-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        losses = task(batch(task), AT)
        assert losses.total.item() == pytest.approx(math.log(classes), rel=1e-6) == losses.blind


def refused(name: str, backbone: BackboneConfig, **fields: Any) -> str:
    config = discover()[name].config_type(name, {}).model_validate({"name": name, "source": "x", **fields})
    with pytest.raises(ConfigError) as caught:
        build(config, make_towers({"image": backbone}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tile_has_the_side_that_fits_and_that_the_network_takes() -> None:
    def side(backbone: BackboneConfig, name: str = "patch_position", **fields: Any) -> int:
        config = discover()[name].config_type(name, {}).model_validate({"name": name, "source": "x", **fields})
        return build(config, make_towers({"image": backbone})).tiles.grid.side  # type: ignore[union-attr, no-any-return]

    assert side(TINY["vit"]) == 32 and side(TINY["vit"], tile=16) == 16
    assert side(TINY["resnet"]) == 8  # a place of its map; 7 would fit: 3 · 7 + 2 · 4 + 2 · 1 of 32
    assert side(TINY["resnet"], gap=0.1, jitter=0.0) == 10 and side(TINY["resnet"], tile=48) == 48
    assert "value 20: backbone 'image' is of type vit with patch_size 8; allowed: a multiple" in refused(
        "patch_position", TINY["vit"], tile=20)  # fmt: skip
    assert "value 7: backbone 'image' is of type resnet, and a place of its last map covers 8 pixels" in refused(
        "jigsaw", TINY["resnet"], tile=7)  # fmt: skip
    touching = "objective.gap: value 0.0 with jitter 0.0: tiles of 10 pixels may touch, .* allowed: a gap >= 0.1 "
    assert re.match(touching, refused("patch_position", TINY["resnet"], gap=0.0, jitter=0.0))
    over = "objective.gap: value 0.1 with jitter 0.2: tiles of 20 pixels may be 6 pixels over .* a gap >= 0.45 "
    assert re.match(over, refused("jigsaw", TINY["resnet"], tile=20, gap=0.1, jitter=0.2))
    convnext = BackboneConfig(type="convnext", size=224, config={
        "hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1]})  # patches of 4, places of 32
    assert side(convnext) == 52 and side(convnext, "jigsaw", tile=64) == 64  # 3 · 54 + 2 · 27 + 2 · 4 is 224
    assert side(convnext, "jigsaw") == 60 and side(convnext, gap=2.0) == 32  # no place would fit
    assert "value 54: backbone 'image' is of type convnext with patch_size 4; allowed: a multiple" in refused(
        "jigsaw", convnext, tile=54)  # fmt: skip
    levit = BackboneConfig(type="levit", size=64, config={
        "hidden_sizes": [16, 24, 32], "depths": [1, 1, 1], "num_attention_heads": [2, 2, 2], "key_dim": [4, 4, 4]})
    assert side(levit) == 64 and "takes no pictures of another side than its size; allowed: 64" in refused(
        "jigsaw", levit, tile=68)  # fmt: skip


def test_a_network_of_one_channel_sees_grey_tiles() -> None:
    """In which no fringes are: the guard is off, and one that is asked for refused."""
    grey = TINY["resnet"].model_copy(update={"channels": 1})
    config = Jigsaw.config_type("jigsaw", {}).model_validate({"name": "jigsaw", "source": "x"})
    task = build(config, make_towers({"image": grey}))
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(out, "PNG")
    sample = Sample("x", {"png": out.getvalue()}, 0, 0, "", "x")
    assert task.prepare(sample, np.random.default_rng(0), None)["tiles"].shape == (9, 1, 8, 8)  # type: ignore[arg-type]
    assert "objective.colours: value drop, but backbone 'image' takes one channel" in refused(
        "jigsaw", grey, colours="drop")  # fmt: skip


def test_what_cannot_be_is_refused(objective: Any) -> None:
    assert "objective.permutations: value 25; allowed: <= 24, all that there are of 2×2 tiles" in refused(
        "jigsaw", TINY["resnet"], grid=2, permutations=25)  # fmt: skip
    task = objective(PatchPosition, "patch_position")
    out = io.BytesIO()
    Image.new("RGB", (9, 30)).save(out, "PNG")
    small = Sample("small", {"png": out.getvalue()}, 0, 0, "", "x")
    with pytest.raises(DataError, match=r"^sample 'small': a picture of 9×30 pixels: a grid of 3×3 tiles needs 1\d or"):
        task.prepare(small, np.random.default_rng(0), None)
