"""Pictures as people make them, seen as transformers' `load_image` shows them; transparent on white."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from transformers.image_utils import load_image

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.pictures import upright_size
from bigssl.data.tools.survey import measure


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def corners(width: int, height: int) -> Image.Image:
    """A picture whose quarters have four colours, so that no turn of it looks like another."""
    pixels = np.zeros((height, width, 3), np.uint8)
    half = (slice(None, height // 2), slice(height // 2, None)), (slice(None, width // 2), slice(width // 2, None))
    colours = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 60))
    for number, colour in enumerate(colours):
        pixels[half[0][number // 2], half[1][number % 2]] = colour
    return Image.fromarray(pixels)


def by_transformers(data: bytes) -> Image.Image:
    return load_image(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_as_their_exif_says(form: str) -> None:
    """All eight orientations, also at reduced size, as grey, and in what `stats` measures."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(corners(64, 32), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
        expected = by_transformers(data)
        assert expected.size == ((64, 32) if orientation < 5 else (32, 64))
        np.testing.assert_array_equal(np.asarray(decode.image(data)), np.asarray(expected))
        small = decode.image(data, size=8)
        scale = 4 if form == "JPEG" else 1
        assert small.size == (expected.width // scale, expected.height // scale)
        reference = np.asarray(expected.resize(small.size, Image.Resampling.BOX), dtype=float)
        assert np.abs(np.asarray(small, dtype=float) - reference).mean() < 6
        assert decode.image(data, mode="L").size == expected.size
        facts = measure("jpg", data)
        assert (facts["width"], facts["height"]) == expected.size


def test_deep_pictures_are_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000
    data = encoded(Image.fromarray(values), "PNG", exif=exif)
    np.testing.assert_array_equal(decode.grey(data), np.rot90(values, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_leaves_the_picture_as_it_is_stored() -> None:
    data = encoded(corners(16, 8), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff nonsense")
    assert decode.image(data).size == (16, 8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, colour: int, row: list[int], clear: bytes, palette: bytes = b"") -> bytes:
    """A PNG of one row by hand: bit depth, colour type (0 grey, 2 RGB, 3 palette), its values, its tRNS."""
    width = len(row) // (3 if colour == 2 else 1)
    bits = "".join(f"{value:0{depth}b}" for value in row)
    bits += "0" * (-len(bits) % 8)
    line = b"\0" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header)] + ([chunk(b"PLTE", palette)] if palette else [])
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"tRNS", clear), chunk(b"IDAT", zlib.compress(line)),
                                            chunk(b"IEND", b"")])  # fmt: skip


WHITE = [255] * 3
CLEAR = {
    "grey 1": (png(1, 0, [0, 1], struct.pack(">H", 0)), [WHITE, WHITE]),
    "grey 1 of white": (png(1, 0, [0, 1], struct.pack(">H", 1)), [[0] * 3, WHITE]),
    "grey 2": (png(2, 0, [0, 1, 2], struct.pack(">H", 1)), [[0] * 3, WHITE, [170] * 3]),
    "grey 4": (png(4, 0, [0, 1, 2, 15], struct.pack(">H", 2)), [[0] * 3, [17] * 3, WHITE, WHITE]),
    "grey 8": (png(8, 0, [7, 6], struct.pack(">H", 7)), [WHITE, [6] * 3]),
    "grey 16": (png(16, 0, [0x0102, 0x0103], struct.pack(">H", 0x0102)), [WHITE, [1] * 3]),
    "RGB 8": (png(8, 2, [255, 0, 255, 255, 0, 254], struct.pack(">HHH", 255, 0, 255)), [WHITE, [255, 0, 254]]),
    "RGB 16": (png(16, 2, [0x0102, 3, 4, 0x0202, 3, 4], struct.pack(">HHH", 0x0102, 3, 4)), [WHITE, [2, 0, 0]]),
    "palette": (png(2, 3, [0, 1, 2], b"\xff\0", bytes(range(9))), [[0, 1, 2], WHITE, [6, 7, 8]]),
    "palette half": (png(2, 3, [0, 1], b"\x80", bytes([0, 0, 0, 9, 9, 9])), [[127] * 3, [9] * 3]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLEAR)
def test_the_transparent_value_of_a_png_is_white(kind: str) -> None:
    data, expected = CLEAR[kind]
    assert np.asarray(decode.image(data))[0].tolist() == expected
    assert np.asarray(decode.image(data, mode="L"))[0].tolist() == [
        Image.new("RGB", (1, 1), tuple(colour)).convert("L").getpixel((0, 0)) for colour in expected
    ]


def test_transparent_and_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = Image.new("RGB", (2, 1), (255, 0, 255))
    picture.putpixel((0, 0), (1, 2, 3))
    data = encoded(picture, "PNG", transparency=(255, 0, 255), exif=exif)
    assert np.asarray(decode.image(data))[0].tolist() == [WHITE, [1, 2, 3]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_channels_are_laid_on_white(mode: str, form: str) -> None:
    alpha = np.array([[0, 51, 255]], np.uint8)
    layer = Image.merge(mode, [Image.new("L", (3, 1), 100)] * (len(mode) - 1) + [Image.fromarray(alpha)])
    pixels = np.asarray(decode.image(encoded(layer, form, **({"lossless": True} if form == "WEBP" else {}))))
    assert np.abs(pixels[0].astype(int) - np.array([[255], [224], [100]])).max() <= 1


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_seen(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **lossless)
    np.testing.assert_array_equal(np.asarray(decode.image(data)), np.asarray(by_transformers(data)))
    assert decode.image(data).getpixel((0, 0))[0] >= 254
    decode.check_field("png", data)


def test_transparent_gifs_are_laid_on_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    assert np.asarray(decode.image(encoded(picture, "GIF", transparency=0)))[0].tolist() == [WHITE, [10, 20, 30]]


def test_cmyk_and_profiles_are_seen_as_transformers_shows_them() -> None:
    """Profiles are not applied: an exported model gets its pictures from `load_image`, which does not."""
    cmyk = corners(16, 16).convert("CMYK")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    pictures = [encoded(picture, "PNG") for picture in (corners(16, 16).quantize(8), corners(16, 16).convert("1"))]
    pictures += [encoded(picture, "TIFF") for picture in (cmyk, Image.new("LAB", (16, 16), (90, 120, 140)))]
    pictures += [encoded(cmyk, "JPEG", quality=95), encoded(corners(16, 16), "PNG", icc_profile=profile)]
    for data in pictures:
        theirs = by_transformers(data)
        np.testing.assert_array_equal(np.asarray(decode.image(data)), np.asarray(theirs))
        assert decode.image(data, size=8).size == ((8, 8) if data[:2] == b"\xff\xd8" else (16, 16))


def test_the_reduced_size_of_a_turned_picture_is_that_of_the_turned_one() -> None:
    """Drawn at 1/8 and turned, or turned and then drawn: the same picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = (encoded(corners(256, 128), "JPEG", quality=95, **kind) for kind in ({}, {"exif": exif}))
    expected = decode.image(plain, size=16).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(np.asarray(decode.image(turned, size=16)), np.asarray(expected))
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).size == (128, 256)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colour", [0, 3], ids=["grey", "palette"])
def test_a_mask_is_the_numbers_that_a_png_stores(bits: int, colour: int) -> None:
    """Of few bits too, which Pillow spreads over 0 to 255 where they are grey."""
    values = np.arange(2**bits, dtype=np.uint8)
    packed = np.packbits((values[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).ravel()).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, bits, colour, 0, 0, 0))
    data += chunk(b"PLTE", bytes(3 * 2**bits)) if colour == 3 else b""
    data += chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode.mask(data), values[None])


def test_a_mask_of_16_bits_is_read_and_colours_and_large_numbers_are_not() -> None:
    deep = np.array([[0, 3, 255]], np.uint16)
    np.testing.assert_array_equal(decode.mask(encoded(Image.fromarray(deep), "PNG")), deep)
    with pytest.raises(DataError, match="a mask with values from 0 to 256; allowed: classes from 0 to 254, and 255"):
        decode.mask(encoded(Image.fromarray(np.array([[0, 256]], np.uint16)), "PNG"))
    for mode in ("RGB", "RGBA", "LA"):
        with pytest.raises(DataError, match=f"a mask is grey or of a palette, .* this one is {mode}"):
            decode.mask(encoded(Image.new(mode, (2, 2)), "PNG"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_picture_as_it_is_shown(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("JPEG", "PNG"):
        data = encoded(corners(10, 6), form, exif=exif)
        assert upright_size(data) == (*decode.image(data).size, orientation)
