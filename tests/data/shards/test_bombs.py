"""Files that claim far more than they hold: refused by every way of reading them, before memory is taken."""

from __future__ import annotations

import io
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.shards.index import build_index, scan
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.verify import verify


def encoded(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG with this header, further chunks, and the pixels of a small one."""
    data = encoded("PNG")
    header = chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29])
    return data[:8] + header + b"".join(more) + data[33:]


def webp(width: int, height: int) -> bytes:
    """A lossless WebP that claims this size (at most 16384 each)."""
    data = bytearray(encoded("WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    rest = int.from_bytes(data[at : at + 4], "little") >> 28
    data[at : at + 4] = ((width - 1) | (height - 1) << 14 | rest << 28).to_bytes(4, "little")
    return bytes(data)


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def npy(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(64)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "png header": ("png", lambda: png(10_000, 8_900), "image_pixels"),
    "png of PIL's own limit": ("png", lambda: png(60_000, 60_000), "refused|undecodable"),
    "png text": ("png", lambda: png(16, 16, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80 << 20)))), "[Tt]oo large"),
    "png profile": ("png", lambda: png(16, 16, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(80 << 20)))), ""),
    "webp header": ("webp", lambda: webp(8_900, 10_000), "image_pixels"),
    "webp of PIL's own limit": ("webp", lambda: webp(16_384, 16_384), "refused|undecodable"),
    "jpeg header": ("jpg", lambda: jpeg(8_900, 10_000), "image_pixels"),
    "npy shape": ("npy", lambda: npy((1 << 40, 1 << 10)), "its header promises .* 64 follow"),
    "npy of nothing": ("npy", lambda: npy((1 << 62, 0)), ""),
    "npy pickle": ("npy", pickled, "pickled objects are never read"),
    "json nesting": ("json", lambda: b'{"a":' * 200_000, "not JSON"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_no_memory(tmp_path: Path, name: str) -> None:
    field, make, cause = BOMBS[name]
    data = make()
    index = pack([Item("a", "a", lambda: {field: data})], tmp_path / "x", name="x")[""]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = list(verify(index.url))
    if cause:
        assert [(f.key, f.cause.startswith(f"field {field!r}: ")) for f in found] == [("a", True)]
        with pytest.raises(DataError, match=cause):
            decode.check_field(field, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10  # KiB


def foreign_tar() -> bytes:
    """A tar with long names, pax headers and folders, as other programs write them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.txt", "b" * 120 + ".txt", "größe.txt"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"hallo"))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer, mode="a", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("c" * 150 + ".txt")
        tar.addfile(info)
    return buffer.getvalue()


TAR = foreign_tar()
CHECKED = st.sampled_from(range(0, len(TAR), 512))


@settings(max_examples=120, deadline=None)
@given(CHECKED, st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_no_header_breaks_the_walker(tmp_path_factory, block: int, edits: list[tuple[int, int]], sealed: bool) -> None:
    """Any bytes in a header, with a right checksum or not: samples, or a DataError, never another exception."""
    data = bytearray(TAR)
    for at, value in edits:
        data[block + at] = value
    if sealed:
        data[block + 148 : block + 156] = b" " * 8
        data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    path.write_bytes(data)
    try:
        rows, _, size = scan(str(path))
    except DataError as error:
        assert "fuzz.tar" in str(error) and error.offset is not None
        return
    assert size == len(data)
    assert all(".." not in row.key.split("/") for row in rows)
    if rows:
        build_index([path], path.parent / "fuzz-index")
