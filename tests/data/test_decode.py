"""Decoding: right pixels, every failure a DataError with its cause."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bigssl.data import decode
from bigssl.data.errors import DataError
from bigssl.data.stream import Sample


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_lossless_pictures_are_exact(form: str) -> None:
    picture = gradient(40, 30)
    decoded = decode.image(encoded(picture, form, lossless=True))
    assert (decoded.mode, decoded.size) == ("RGB", (40, 30))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))


def test_jpeg_at_reduced_size() -> None:
    data = encoded(gradient(512, 256), "JPEG", quality=95)
    assert decode.image(data).size == (512, 256)
    sizes = {size: decode.image(data, size=size).size for size in (200, 128, 100, 64, 32, 16)}
    assert sizes == {200: (512, 256), 128: (256, 128), 100: (256, 128), 64: (128, 64), 32: (64, 32), 16: (64, 32)}
    small = np.asarray(decode.image(data, size=64), dtype=float)
    reference = np.asarray(gradient(512, 256).resize((128, 64), Image.Resampling.BOX), dtype=float)
    assert np.abs(small - reference).mean() < 2


def test_transparency_is_laid_on_white() -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((0, 0, 3, 7), fill=(255, 0, 0, 255))
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    palette = picture.quantize(4)
    for source in (picture, palette):
        pixels = np.asarray(decode.image(encoded(source, "PNG")))
        assert pixels[0, 0].tolist() == [255, 0, 0]
        assert pixels[0, 7].tolist() == [255, 255, 255]
    assert np.asarray(decode.image(encoded(half, "PNG")))[0, 0].tolist() == [127, 127, 127]


def test_grey_pictures() -> None:
    deep = Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], dtype=np.uint16))
    assert np.asarray(decode.image(encoded(deep, "PNG")))[0].tolist() == [[0] * 3, [0x12] * 3, [255] * 3]
    assert np.asarray(decode.image(encoded(deep, "PNG"), mode="L")).tolist() == [[0, 0x12, 255]]
    flat = encoded(Image.new("L", (4, 4), 7), "JPEG")
    assert np.asarray(decode.image(flat)).shape == (4, 4, 3)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(DataError, match=f"undecodable image of {len(data)} bytes"):
        decode.image(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures_cut_off_anywhere(form: str) -> None:
    data = encoded(gradient(64, 64), form)
    for keep in range(0, len(data) - 20, 37):
        with pytest.raises(DataError, match="undecodable image"):
            decode.image(data[:keep])


def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(Image.new("1", (10_000, 10_000)), "PNG")
    with pytest.raises(DataError, match="10000×10000|decompression bomb"):
        decode.image(bomb)
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="picture of 11×10 pixels; at most 100"):
        decode.image(encoded(gradient(11, 10), "PNG"))


def test_field_takes_the_first_there_is() -> None:
    sample = Sample("k", {"png": b"1", "jpeg": b"2"}, 0, 0, "s.tar", "")
    assert decode.field(sample, decode.IMAGES) == b"2"
    with pytest.raises(DataError, match=r"shard s\.tar, sample 'k': no field txt or json; it has jpeg, png"):
        decode.field(sample, ("txt", "json"))


def test_text_meta_series() -> None:
    assert decode.text("größe".encode()) == "größe"
    with pytest.raises(DataError, match="byte 2 is 0xff"):
        decode.text(b"ab\xff")
    assert decode.meta(b'{"a": 1}') == {"a": 1}
    with pytest.raises(DataError, match="not JSON"):
        decode.meta(b"{")
    with pytest.raises(DataError, match="JSON list, an object"):
        decode.meta(b"[]")


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_series_shapes() -> None:
    assert decode.series(saved(np.arange(5))).shape == (5, 1)
    assert decode.series(saved(np.ones((5, 2), np.float64))).dtype == np.float32
    for bad in (np.ones((2, 2, 2)), np.array(1.0), np.array(["a"]), np.array([object()])):
        with pytest.raises(DataError, match="series is"):
            decode.series(saved(bad))
