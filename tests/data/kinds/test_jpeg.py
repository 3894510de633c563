"""Plain JPEGs without Pillow: its bytes, and its judgement of what is not plain or not whole."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode, pictures
from bigssl.data.kinds.jpeg import plain_jpeg

WRITTEN = {
    "4:2:0": {}, "4:2:2": {"subsampling": 1}, "4:4:4": {"subsampling": 0}, "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3, "quality": 30},
}  # fmt: skip


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(cv2.blur(noise, (3, 3))).convert(mode)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_plain_jpegs_are_pillows_to_the_byte_at_every_size(kind: str, mode: str) -> None:
    for width, height in ((64, 48), (131, 77), (1, 9), (16, 300)):
        data = encoded(photograph(width, height, mode), **WRITTEN[kind])
        for size in (None, 1, 5, 16, 31, 64):
            for wanted in ("RGB", "L"):
                found = plain_jpeg(data, size, wanted)
                assert (found is None) == (wanted == "L" and mode == "RGB")
                expected = np.asarray(decode.image(data, size=size, mode=wanted))
                array = decode.picture_array(data, size=size, mode=wanted)
                np.testing.assert_array_equal(array.squeeze(), expected.squeeze())


UNUSUAL = {
    "turned": encoded(photograph(40, 20), exif=exif(6)),
    "xmp": encoded(photograph(40, 20), xmp=b"<x:xmpmeta xmlns:tiff='t' tiff:Orientation='8'/>"),
    "two of app1": encoded(photograph(40, 20), exif=exif(1), xmp=b"<x/>"),
    "cmyk": encoded(photograph(40, 20, "CMYK")),
    "png": encoded(photograph(40, 20), "PNG"),
    "transparent": encoded(photograph(40, 20, "RGBA"), "PNG"),
    "16 bits": encoded(Image.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40) * 80), "PNG"),
    "padded marker": (lambda data: data[:2] + b"\xff" + data[2:])(encoded(photograph(40, 20))),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_unusual_is_pillows(kind: str) -> None:
    data = UNUSUAL[kind]
    assert plain_jpeg(data) is None
    np.testing.assert_array_equal(decode.picture_array(data), np.asarray(decode.image(data)))


def test_exif_of_an_upright_picture_does_not_slow_it_down() -> None:
    data = encoded(photograph(40, 20), exif=exif(1))
    np.testing.assert_array_equal(plain_jpeg(data), np.asarray(decode.image(data)))


def outcome(data: bytes, size: int | None = None) -> np.ndarray | str:
    try:
        return decode.picture_array(data, size=size)
    except DataError as error:
        return str(error)


def reference(data: bytes, size: int | None = None) -> np.ndarray | str:
    try:
        return np.asarray(decode.image(data, size=size))
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("kind", ["4:2:0", "progressive"])
def test_a_jpeg_cut_off_anywhere_is_never_taken_as_whole(kind: str) -> None:
    data = encoded(photograph(64, 48), **WRITTEN[kind])
    for keep in range(len(data)):
        assert plain_jpeg(data[:keep]) is None, keep
    for keep in range(0, len(data) - 1, 97):
        with pytest.raises(DataError, match="undecodable image"):
            decode.picture_array(data[:keep], size=16)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_is_judged_as_pillow_judges_it() -> None:
    """Bytes changed anywhere, in markers and in the scan: the same picture or the same words."""
    data, rng, refused = encoded(photograph(48, 32), exif=exif(1)), np.random.default_rng(0), 0
    for number in range(400):
        broken = bytearray(data)
        for place in rng.integers(0, len(data) if number % 2 else 200, size=1 + number % 3):
            broken[place] ^= int(rng.integers(1, 256))
        found, expected = outcome(bytes(broken)), reference(bytes(broken))
        refused += isinstance(expected, str)
        np.testing.assert_array_equal(found, expected)
    assert 20 < refused < 380


def test_limits_hold_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photograph(40, 20))
    monkeypatch.setattr(pictures, "image", lambda *_, **__: pytest.fail("a plain one went to Pillow"))
    assert decode.picture_array(data).shape == (20, 40, 3)
    monkeypatch.undo()
    with (
        limits.applied(limits.Limits(image_pixels=799)),
        pytest.raises(DataError, match="picture of 40×20 pixels refused"),
    ):
        decode.picture_array(data)
