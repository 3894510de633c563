"""Segmentation and detection from shards to the row: on pictures of coloured rectangles, which nothing but the right
pixels in the right places can explain."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from bigssl.data.errors import DataError
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.transfer.dense import learning
from bigssl.transfer.dense.learning import DenseJob
from bigssl.transfer.labelled.fit import _batches
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.scorecard import score
from bigssl.transfer.tasks.detect import Detect
from bigssl.transfer.tasks.segment import Segment

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
Change = Callable[[dict[str, Any]], None]


def scene(rng: np.random.Generator) -> dict[str, Any]:
    """A wide or a high picture, larger than the view, with a rectangle in its middle square."""
    width, height = [(60, 44), (40, 64)][int(rng.integers(2))]
    name = list(COLOURS)[int(rng.integers(2))]
    pixels = rng.normal(128, 12, (height, width, 3)).clip(0, 255).astype(np.uint8)
    side = min(width, height)
    wide, high = (int(rng.integers(side // 4, side // 2)) for _ in range(2))
    left = (width - side) // 2 + int(rng.integers(1, side - wide))
    top = (height - side) // 2 + int(rng.integers(1, side - high))
    pixels[top : top + high, left : left + wide] = COLOURS[name]
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + high, left : left + wide] = 3 if name == "red" else 7
    return {"pixels": pixels, "mask": mask, "boxes": [[left, top, wide, high]], "labels": [name]}


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def shards(folder: Path, counts: dict[str, int], change: Change = lambda each: None) -> Path:
    for seed, (part, count) in enumerate(counts.items()):
        rng, items = np.random.default_rng(seed), []
        for number in range(count):
            each = scene(rng)
            change(each)
            facts = json.dumps({"boxes": each["boxes"], "labels": each["labels"]}).encode()
            fields = {"png": png(each["pixels"]), "mask.png": png(each["mask"]), "json": facts}
            items.append(Item(f"{part}-{number}", f"{number}", fields.copy))
        pack(items, folder / part, name="scenes")
    return folder


def places(folder: Path) -> dict[str, Any]:
    return {"train": str(folder / "train"), "queries": str(folder / "val"), "seeds": 1, "fractions": [1.0],
            "fit_batch": 8, "lr": 0.01, "least_steps": 0}  # fmt: skip


def weights(run: Path) -> bytes:
    return (run / "export/image/model.safetensors").read_bytes()


def test_what_is_there_is_found_where_it_is(run: Path, tmp_path: Path) -> None:
    """The whole of it: masks and boxes through a view of other sizes, heads that learn them, measures of pixels and of
    boxes brought back. And the exported network stays as it was, though all weights are tuned."""
    data, before = places(shards(tmp_path / "data", {"train": 32, "val": 12})), weights(run)
    data |= {"tune": "all", "backbone_lr": 0.01}
    found = score(run, {"seg": Segment(**data, epochs=10), "det": Detect(**data, epochs=20)}, seed=0)["tasks"]
    assert found["seg"]["blind"] < 0.35 < 0.65 < found["seg"]["trained"], found["seg"]
    assert found["det/ap50"]["blind"] < 0.2 < 0.85 < found["det/ap50"]["trained"], found["det/ap50"]
    assert found["det"]["trained"] > 0.25 and found["seg"]["raw_name"] == "patches of raw pixels"
    assert weights(run) == before


def test_frozen_maps_that_are_kept_are_those_that_are_made_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = places(shards(tmp_path / "data", {"train": 12, "val": 6})) | {"epochs": 2, "seeds": 2}
    found = []
    for room in (1 << 28, 2000, 0):
        monkeypatch.setattr("bigssl.transfer.dense.maps.KEPT", room)
        found.append(score(run, {"x": Segment(**data)}, seed=0)["tasks"]["x"]["seeds"])
    for other in found[1:]:
        np.testing.assert_allclose([*other.values()], [*found[0].values()], atol=1e-3)  # other batches round otherwise
    assert len(set(found[0]["random_net"])) == 2


def test_frozen_maps_are_float32_while_a_head_is_trained_as_for_queries(
    monkeypatch: pytest.MonkeyPatch, cuda_autocast: Callable[[], AbstractContextManager[None]]
) -> None:
    def maps(network: Any, views: Any) -> list[torch.Tensor]:
        assert not torch.is_autocast_enabled("cuda")
        return [torch.zeros(2, 3, 1, 1)]

    monkeypatch.setattr(learning, "_maps", maps)
    of = Mock(batch=lambda rows: {})
    job, trial = DenseJob(Mock(device="cpu"), Mock(), Mock(), of, of), Trial("trained", 1.0, 0, torch.arange(2))
    with cuda_autocast():
        assert job._maps(trial, Mock(), False, "train", [0, 1])[0].shape == (2, 3, 1, 1)


def noted(run: Path, section: Any) -> tuple[dict[str, Any], Sequence[str]]:
    card = score(run, {"x": section}, seed=0)
    return card["tasks"], card["notes"]


def test_classes_that_nobody_could_learn_count_as_missed_and_are_named(run: Path, tmp_path: Path) -> None:
    folder = shards(tmp_path / "data", {"train": 12}, lambda each: each.update(
        mask=np.where(each["mask"] == 7, 3, each["mask"]).astype(np.uint8), labels=["red"]))  # fmt: skip
    shards(tmp_path / "other", {"skip": 1, "val": 8})
    data = places(folder) | {"queries": str(tmp_path / "other/val"), "epochs": 2}
    rows, notes = noted(run, Segment(**data))
    assert any("classes [7] are in no mask of train" in note for note in notes) and rows["x"]["classes"] == 2
    assert rows["x"]["trained"] < 2 / 3 + 1e-9  # of three classes that occur
    rows, notes = noted(run, Detect(**data))
    assert any("the classes blue are in no picture of train" in note for note in notes)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (Segment, lambda each: each.update(mask=each["mask"] * 0), r"x.train: masks hold the classes \[0\]; allowed"),
        (Segment, lambda each: each.update(mask=(each["mask"] > 0).astype(np.uint8) * 255), r"hold the classes \[0\]"),
        (Segment, lambda each: each.update(mask=each["mask"][1:]), r"sample 'train-\d': mask.png is \d+×\d+ pixels"),
        (Detect, lambda each: each.update(boxes=[], labels=[]), "x.train: no picture has a box in its middle square"),
        (Detect, lambda each: each.update(boxes=[[0, 0, 99, 9]]), r"sample 'train-\d': box \[0, 0, 99, 9\] of a pi"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_by_name(
    run: Path, tmp_path: Path, kind: Any, change: Change, message: str
) -> None:
    data = places(shards(tmp_path / "data", {"train": 3, "val": 2}, change)) | {"epochs": 1}
    with pytest.raises(DataError, match=message):
        score(run, {"x": kind(**data)}, seed=0)


def test_pictures_of_any_mode_and_without_boxes_are_taken(run: Path, tmp_path: Path) -> None:
    def change(each: dict[str, Any]) -> None:
        alpha = np.full(each["mask"].shape, 255, np.uint8)
        each["pixels"] = np.dstack([each["pixels"], alpha]) if each["labels"] == ["red"] else each["pixels"][..., 0]
        each["boxes"], each["labels"] = (each["boxes"], each["labels"]) if each["labels"] == ["red"] else ([], [])

    data = places(shards(tmp_path / "data", {"train": 8, "val": 8}, change)) | {"epochs": 1}
    rows = score(run, {"seg": Segment(**data), "det": Detect(**data)}, seed=0)["tasks"]
    assert torch.isfinite(torch.tensor([rows[name]["trained"] for name in rows])).all()


def test_few_samples_are_seen_in_as_many_epochs_as_the_least_number_of_steps_asks_for() -> None:
    section = Segment(train="a", queries="b", least_steps=30, fit_batch=8, epochs=4)
    steps = [len(list(_batches(count, section, 0))) for count in (1, 8, 20, 80, 800)]
    assert steps == [30, 30, 10 * 3, 4 * 10, 4 * 100]
