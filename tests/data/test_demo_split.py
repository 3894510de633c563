"""What the bundled data promise: nobody is validated on a picture, a glyph or a document that was trained on."""

from __future__ import annotations

import io
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigssl.data.kinds import decode
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "bigssl" / "demo"
Pictures = dict[str, tuple[bytes, np.ndarray]]


def pictures(part: str) -> Pictures:
    """Bytes and pixels uint8 [64, 64, 3] of each picture by its key."""
    found = {}
    for sample in read_in_order(DatasetIndex.load(str(DEMO / "emoji" / part))):
        data = decode.field(sample, decode.IMAGES)
        found[sample.key] = data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return found


@pytest.fixture(scope="module")
def emoji() -> tuple[Pictures, Pictures]:
    return pictures("train"), pictures("val")


def test_no_picture_of_val_has_a_twin_in_train(emoji: tuple[Pictures, Pictures]) -> None:
    """No equal bytes, and no centred cosine above .97: less the mean picture of train or each picture's own mean, in
    full size or half of it."""
    train, val = emoji
    assert not {data for data, _ in train.values()} & {data for data, _ in val.values()}
    rows = [np.stack([pixels for _, pixels in part.values()]).astype(np.float32) for part in emoji]
    halves = [each.reshape(len(each), 32, 2, 32, 2, 3).mean((2, 4)) for each in rows]
    for known, asked in (rows, halves):
        for centre in ("mean picture", "own mean"):
            sides = [each.reshape(len(each), -1) for each in (known, asked)]
            means = [sides[0].mean(0)] * 2 if centre == "mean picture" else [x.mean(1, keepdims=True) for x in sides]
            units = [x - mean for x, mean in zip(sides, means, strict=True)]
            units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in units]
            nearest = (units[1] @ units[0].T).max(1)
            worst = int(nearest.argmax())
            assert nearest[worst] <= 0.97, (centre, list(val)[worst], nearest[worst])


def test_no_glyph_of_val_is_in_train_in_another_tone_gender_or_sequence(emoji: tuple[Pictures, Pictures]) -> None:
    tones = {f"1f3f{x}" for x in "bcdef"}
    people = {"1f468", "1f469", "1f9d1"}

    def glyph(key: str) -> str:
        first = key.rsplit("-", 1)[0].split("-200d-")[0]
        bare = [part for part in first.split("-") if part not in tones | {"fe0f"}]
        return "person" if people & set(bare) else "-".join(bare)

    train, val = ({glyph(key) for key in part} for part in emoji)
    assert not train & val
    assert "person" in train and len(val) > 200


def test_documents_are_on_one_side() -> None:
    train, val = (
        {decode.running_text(sample) for sample in read_in_order(DatasetIndex.load(str(DEMO / "text" / part)))}
        for part in ("train", "val")
    )
    assert not train & val


@pytest.fixture(scope="module")
def grouping() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "launch" / "group_demo.py"))


@pytest.mark.parametrize(
    ("code", "glyph"),
    [
        ("1f600", "1f600"),
        ("1f44b-1f3fd", "1f44b"),  # waving hand, skin tone
        ("1f3c3-200d-2640-fe0f", "1f3c3"),  # woman running
        ("1f469-1f3fd-200d-1f692", "1f9d1"),  # woman firefighter: a person
        ("1f408-200d-2b1b", "1f408"),  # black cat: a cat
        ("2764-fe0f-200d-1f525", "2764"),  # heart on fire: a heart
        ("1f1e9-1f1ea", "1f1e9-1f1ea"),  # a flag is two letters
        ("0023-fe0f-20e3", "0023-20e3"),  # a keycap
        ("2640-fe0f", "2640-fe0f"),  # the sign alone
    ],
)
def test_base_glyph(grouping: dict[str, Any], code: str, glyph: str) -> None:
    assert grouping["base_glyph"](code) == glyph


def test_groups_are_closed_under_chains(grouping: dict[str, Any]) -> None:
    found = grouping["components"]("abcdefg", [("g", "c"), ("c", "b"), ("e", "f"), ("b", "a")])
    assert found == {"a": "a", "b": "a", "c": "a", "g": "a", "d": "d", "e": "e", "f": "e"}
