"""Windows of long series from a server: those of the disk, of few bytes, whatever breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigssl.data.npy import npy_bytes
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.windows import WindowIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item, json_bytes


def long(number: int) -> Item:
    values = np.random.default_rng(number).normal(size=(9000, 7)).astype(np.float32)
    fields = {"npy": npy_bytes(values), "json": json_bytes({"step": 60})}
    return Item(f"k{number}", f"k{number}", lambda: fields)


@pytest.mark.parametrize("cache", [False, True])
def test_windows_of_a_server_are_those_of_the_disk(tmp_path: Path, serve: Any, quick: Any, cache: bool) -> None:
    local = pack(map(long, range(3)), tmp_path / "d", name="s", shard_size=2)[""]
    server = serve(tmp_path / "d")
    index = WindowIndex(DatasetIndex.load(server.url + "/", quick(cache=cache, gap=0)), 512, 1000)
    opening = server.ranges()
    server.set(faults=[{"kind": kind, "status": 503, "path": ".tar"} for kind in ("cut", "status", "short", "flip")])
    expected = [sample.fields for sample in read_in_order(WindowIndex(local, 512, 1000))]
    assert [sample.fields for sample in read_in_order(index)] == expected
    if not cache:
        asked = sum(stop - start for start, stop in server.ranges()[len(opening) :])
        assert sum(stop - start for start, stop in opening) <= 3 * 2048
        needed = len(index) * 512 * 7 * 4
        assert asked <= 1.2 * needed + 5 * 16_384  # what broke was asked again
