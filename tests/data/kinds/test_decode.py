"""Decoding: right pixels, every failure a DataError with its cause."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample


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


def test_decompression_bombs_are_refused() -> None:
    bomb = encoded(Image.new("1", (10_000, 10_000)), "PNG")
    with pytest.raises(DataError, match="10000×10000|decompression bomb"):
        decode.image(bomb)
    with (
        limits.applied(limits.Limits(image_pixels=100)),
        pytest.raises(DataError, match="picture of 11×10 pixels refused: 110 is over the limit image_pixels = 100"),
    ):
        decode.image(encoded(gradient(11, 10), "PNG"))


def test_field_takes_the_first_there_is() -> None:
    sample = Sample("k", {"png": b"1", "jpeg": b"2"}, 0, 0, "s.tar", "")
    assert decode.field(sample, decode.IMAGES) == b"2"
    with pytest.raises(DataError, match=r"shard s\.tar, sample 'k': no field txt or json; it has jpeg, png"):
        decode.field(sample, ("txt", "json"))


def test_text_and_meta() -> None:
    assert decode.text("größe".encode()) == "größe"
    assert decode.text(b"\xef\xbb\xbfno mark") == "no mark"
    with pytest.raises(DataError, match="byte 2 is 0xff"):
        decode.text(b"ab\xff")
    assert decode.meta(b'{"a": 1}') == {"a": 1}
    with pytest.raises(DataError, match="not JSON"):
        decode.meta(b"{")
    with pytest.raises(DataError, match="JSON list, an object"):
        decode.meta(b"[]")


HALVES = [
    b'"broken \\ud83d here"', b'{"text": "broken \\ud83d here"}', b'["fine", "broken \\uDE00"]',
    b'{"sentences": ["\\ud83d\\ud83d"]}', b'{"text": "fine", "meta": {"\\udc00": [1, {"a": "b"}]}}',
]  # fmt: skip


@pytest.mark.parametrize("data", HALVES)
def test_half_a_surrogate_pair_is_no_text(data: bytes) -> None:
    """As scraped texts have it where an emoji was cut in two: valid JSON, but no tokenizer takes it."""
    for read in (lambda: decode.document(sample(json=data)), lambda: decode.check_field("json", data)):
        with pytest.raises(DataError, match=r"json holds \\ud[8c-f]\w\w, half of a surrogate pair"):
            read()
    whole = b'{"text": "\\ud83d\\ude00 \\\\ud83d"}'  # a pair, and a backslash before the letters
    assert decode.document(sample(json=whole)) == "\U0001f600 \\ud83d"


def test_only_text_must_be_text() -> None:
    """What training would refuse, verify finds; beside a txt the object is metadata and may say what it likes."""
    for data in (b'{"text": null}', b'{"text": 7}', b'{"sentences": [1]}', b'{"text": NaN}'):
        decode.check_field("json", data)
        with pytest.raises(DataError, match="json"):
            decode.check_field("json", data, only_text=True)
    decode.check_field("json", b'{"label": 7}', only_text=True)


def sample(**fields: bytes) -> Sample:
    return Sample("k", fields, 0, 0, "s.tar", "")


DOCUMENTS = [
    (b'"One. Two."', "One. Two."),
    (b'{"text": "raw", "label": 3}', "raw"),
    (b'["One.", "Two."]', ["One.", "Two."]),
    ('{"sentences": ["Größe.", ""]}'.encode(), ["Größe.", ""]),
]


@pytest.mark.parametrize(("data", "expected"), DOCUMENTS)
def test_documents(data: bytes, expected: object) -> None:
    assert decode.document(sample(json=data)) == expected
    assert decode.document(sample(json=data, txt=b"first")) == "first"
    decode.check_field("json", data)


def test_running_text() -> None:
    assert decode.running_text(sample(json=b'["One.", "Two."]')) == "One. Two."
    assert decode.running_text(sample(txt=b"One.\nTwo.")) == "One.\nTwo."


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b'{"label": 1}', "no document but an object with label"),
        (b"{}", "an object with nothing"),
        (b"7", "no document but 7"),
        (b'{"text": null}', "no document but None"),
        (b'["a", 3]', "sentence 1 is int 3, not text"),
        (b'["a"', "not JSON"),
        (b'"a\xff"', "byte 2 is 0xff"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_document(data: bytes, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        decode.document(sample(json=data))
    with pytest.raises(DataError, match="no field txt or json; it has png"):
        decode.document(sample(png=b""))


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int16)])
def test_deep_grey_pictures_keep_their_values(kind: str, dtype: type) -> None:
    values = np.array([[0, 1000, 4095], [-1024 if dtype == np.int16 else 50_000, 7, 32_000]]).astype(dtype)
    data = encoded(Image.fromarray(values), kind)
    np.testing.assert_array_equal(decode.grey(data), values.astype(np.float32))
    assert decode.grey(data).dtype == np.float32
    windowed = np.asarray(decode.image(data, mode="L", window=(0, 4095)))
    assert windowed.tolist() == np.clip(np.round(values / 4095.0 * 255), 0, 255).tolist()


def test_the_other_byte_order() -> None:
    """A TIFF by hand, as scanners of the other byte order write it."""
    values = np.array([[0x0102, 0xFF00]], ">u2")
    tags = [(256, 2), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, values.nbytes)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    directory = struct.pack(">H", len(tags)) + entries + bytes(4)
    data = b"MM\0*" + struct.pack(">I", 8 + values.nbytes) + values.tobytes() + directory
    assert decode.grey(data).tolist() == [[0x0102, 0xFF00]]
    assert np.asarray(decode.image(data, mode="L")).tolist() == [[0x01, 0xFF]]


def test_grey_pictures_of_8_bits_and_in_colour() -> None:
    assert decode.grey(encoded(Image.new("L", (2, 2), 7), "PNG")).tolist() == [[7, 7], [7, 7]]
    with pytest.raises(DataError, match="mode RGB is not grey"):
        decode.grey(encoded(gradient(2, 2), "PNG"))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_values_without_a_range_need_a_window(dtype: type) -> None:
    data = encoded(Image.fromarray(np.array([[-5, 300]], dtype)), "TIFF")
    with pytest.raises(DataError, match=r"values from -5.* to 300.* has no range of its own; give a window"):
        decode.image(data)
    assert np.asarray(decode.image(data, window=(-5, 300)))[0].tolist() == [[0] * 3, [255] * 3]
    with pytest.raises(ValueError, match="window is \\(5, 5\\); its first value must be the lower one"):
        decode.image(data, window=(5, 5))


def test_several_pages_are_refused() -> None:
    pages = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    with pytest.raises(DataError, match="a TIFF of 2 pages; one is allowed"):
        decode.image(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


def test_a_cameras_jpeg_with_a_preview_is_one_picture() -> None:
    data = encoded(gradient(64, 32), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert decode.image(data).size == (64, 32)
    assert decode.image(data, size=16).size == (32, 16)


def test_other_formats_are_not_opened() -> None:
    with pytest.raises(DataError, match="no known picture format"):
        decode.image(encoded(gradient(8, 8), "EPS"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_flipped_bytes_give_a_picture_or_a_cause(form: str) -> None:
    data = encoded(gradient(24, 24), form)
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for place in rng.integers(0, min(len(data), 200), size=3):
            broken[place] ^= int(rng.integers(1, 256))
        try:
            assert decode.image(bytes(broken)).mode == "RGB"
        except DataError as error:
            assert re.match("undecodable image|refused image|field is a", str(error))


@pytest.mark.parametrize("kind", ["jpg", "tif", "flac", "txt", "json", "npy"])
def test_check_finds_damage_of_every_kind(kind: str) -> None:
    with pytest.raises(DataError):
        decode.check_field(f"left.{kind}", b"\xff\x00 damaged")
    decode.check_field(f"{kind}.cls", b"\xff\x00 not a kind that is known")
