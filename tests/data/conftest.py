"""Small datasets made by the packer, and what the tests of the stream share."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from bigssl.data.shards.index import DatasetIndex, build_index
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item, json_bytes

MakeDataset = Callable[..., DatasetIndex]


def jpeg(number: int, side: int = 32) -> bytes:
    """A small picture that depends on `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def item(number: int, pictures: bool = False) -> Item:
    """Sample `s-00012`: txt, json, and a jpg where pictures are wanted."""
    key = f"s-{number:05d}"
    fields = {"txt": f"text of {key}".encode(), "json": json_bytes({"number": number})}
    fields |= {"jpg": jpeg(number)} if pictures else {}
    return Item(key, key, lambda: fields)


def make_dataset(
    folder: Path, counts: Sequence[int], *, compress: bool = False, pictures: bool = False
) -> DatasetIndex:
    """Shards of exactly `counts` samples in `folder`, numbered through."""
    first, tars = 0, []
    folder.mkdir(parents=True)
    for number, count in enumerate(counts):
        items = [item(i, pictures) for i in range(first, first + count)]
        part = folder.parent / f"{folder.name}-part-{number}"
        (shard,) = pack(items, part, name=f"shard-{number:03d}", compress=compress)[""].shards
        tars.append(Path(shard.url).rename(folder / shard.name.replace("-000000", "")))
        first += count
    return build_index(tars, folder)


@pytest.fixture
def dataset(tmp_path: Path) -> MakeDataset:
    """`dataset(counts, compress=..., pictures=...)` -> index of a fresh dataset in a temporary folder."""
    made: list[Path] = []

    def make(counts: Sequence[int], **options: bool) -> DatasetIndex:
        made.append(tmp_path / f"data-{len(made)}")
        return make_dataset(made[-1], counts, **options)

    return make


@pytest.fixture(scope="session")
def gone() -> Callable[[list[int]], bool]:
    """`gone(pids)`: whether all these processes end within 20 seconds."""

    def wait(pids: list[int]) -> bool:
        end = time.monotonic() + 20
        while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    return wait
