"""What is measured of a sample, against plain recomputation, however many processes do it."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigssl.data.errors import DataError
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.survey import Measured, Survey, grey_values, measure, series_spread, still_channels, survey


def png(values: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, form)
    return buffer.getvalue()


def npy(values: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, np.float32))
    return buffer.getvalue()


def surveyed(folder: Path, samples: dict[str, dict[str, bytes]], jobs: int = 1) -> Survey:
    items = [Item(key, key, lambda fields=fields: fields) for key, fields in samples.items()]  # type: ignore[misc]
    return survey(pack(items, folder, name="x", shard_size=2)[""], jobs)


NOISE = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def test_measures_of_each_kind() -> None:
    picture = measure("left.png", png(NOISE))
    assert (picture["width"], picture["height"], picture["bytes"]) == (30, 20, len(png(NOISE)))
    assert picture["spread"] == pytest.approx(NOISE.std())
    assert measure("txt", " ö-1 ".encode()) == {"bytes": 6, "characters": 5, "letters": 2}
    series = measure("npy", npy([[1, 5], [np.nan, 5], [4, np.inf]]))
    assert series == {"bytes": len(npy(np.zeros((3, 2)))), "steps": 3, "channels": 2, "nonfinite": 2, "spread": 3}
    assert measure("cls", b"12") == {"bytes": 2}
    with pytest.raises(DataError, match="no known picture format"):
        measure("jpg", b"no picture")
    with pytest.raises(DataError, match="not JSON"):
        measure("json", b"{")


def test_measures_of_audio() -> None:
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((4000, 2), np.float32), 8000, format="FLAC")
    facts = {"bytes": len(buffer.getvalue()), "seconds": 0.5, "channels": 2, "rate": 8000}
    assert measure("flac", buffer.getvalue()) == facts | {"peak": 0, "clipped": 0}


def image_spread(data: bytes) -> float:
    return float(grey_values(data).std())


def test_measures_of_documents_and_metadata() -> None:
    assert measure("json", b'["two", "words!"]') == {"bytes": 17, "characters": 10, "letters": 8}
    assert measure("json", b'{"text": "-"}') == {"bytes": 13, "characters": 1, "letters": 0}
    assert measure("json", b'{"number": 3}') == {"bytes": 13}
    assert measure("json", b'{"text": null}') == {"bytes": 14}


def test_documents_that_are_none_are_damage(tmp_path: Path) -> None:
    """What `verify` finds and training would skip, `clean --drop damaged` drops."""
    samples = {"a": {"json": b'{"text": null}'}, "b": {"json": b'{"text": null}', "txt": b"fine"},
               "c": {"json": b'{"text": "\\udc00"}'}, "d": {"json": b'{"text": "fine"}'}}  # fmt: skip
    found = surveyed(tmp_path / "x", samples)
    assert sorted(found.damage) == [0, 2]
    assert "no document but None" in found.damage[0] and "half of a surrogate pair" in found.damage[2]


def test_spread_of_pictures() -> None:
    assert image_spread(png(np.full((9, 9, 3), 77, np.uint8))) == 0
    assert image_spread(png(np.full((9, 9, 3), 200, np.uint8), "JPEG")) < 0.5
    half = np.zeros((10, 10), np.uint8)
    half[:5] = 100
    assert image_spread(png(half)) == 50
    deep = half.astype(np.uint16) * 40  # 12 bits in 16: not blank, though its upper 8 bits nearly are
    assert image_spread(png(deep)) == pytest.approx(127.5)
    assert image_spread(png(np.full((4, 4), 3000, np.uint16))) == 0


def test_channels_that_never_change() -> None:
    nan = np.nan
    assert still_channels(np.array([[1, 2, 0], [1, 3, 0]], np.float32)) == [0, 2]
    assert still_channels(np.array([[1, nan, 5], [2, nan, nan], [1, nan, 5]], np.float32)) == [1, 2]
    assert still_channels(np.array([[1, 2], [1, 2]], np.float32)) == []  # that is a constant series
    assert still_channels(np.zeros((0, 2), np.float32)) == []


def test_spread_of_series() -> None:
    assert series_spread(np.array([[1, 2], [1, 2]], np.float32)) == 0
    assert series_spread(np.array([[1, 2], [1, -3]], np.float32)) == 5
    assert series_spread(np.full((3, 2), np.nan, np.float32)) == 0
    assert series_spread(np.array([[np.nan], [1], [np.inf], [3]], np.float32)) == 2
    assert series_spread(np.array([[np.nan, 1], [np.nan, 4]], np.float32)) == 3


SAMPLES = {
    "a": {"txt": b"one", "png": png(NOISE)},
    "b": {"txt": b"two!"},
    "c": {"png": b"no picture", "txt": b"one"},
    "d": {"npy": npy([[1.0], [2.0]])},
    "e": {"txt": b"\xff"},
}


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_are_samples_in_the_order_of_the_index(tmp_path: Path, jobs: int) -> None:
    facts = surveyed(tmp_path / "x", SAMPLES, jobs)
    nan = np.nan
    for name, expected in (("txt", [3, 4, 3, nan, 1]), ("npy", [nan, nan, nan, len(SAMPLES["d"]["npy"]), nan])):
        np.testing.assert_array_equal(facts.of("bytes")[name], expected)
    np.testing.assert_array_equal(facts.columns[Measured("txt", "letters")], [3, 3, 3, nan, nan])
    np.testing.assert_array_equal(facts.columns[Measured("png", "width")], [30, nan, nan, nan, nan])
    assert {number: cause.split(":")[0] for number, cause in facts.damage.items()} == {
        2: "field 'png'",
        4: "field 'txt'",
    }
    assert set(facts.digests) == {"txt", "png", "npy"}
    assert facts.digests["txt"][1].tobytes() == hashlib.blake2b(b"two!", digest_size=16).digest()
    assert facts.digests["txt"][3].tolist() == [0, 0]


def test_bytes_that_cannot_be_read_are_damage(tmp_path: Path) -> None:
    index = surveyed(tmp_path / "x", {"a": {"txt": b"abc"}, "b": {"txt": b"def"}}).index
    path = Path(index.shards[0].url)
    path.write_bytes(path.read_bytes().replace(b"def", b"dXf"))
    ((number, cause),) = survey(index).damage.items()
    assert (number, cause.split(":")[0]) == (1, "field 'txt' differs from its checksum")
