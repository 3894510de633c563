"""Windows of series overlap, and a plan says the bytes that are read for them."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from bigssl.data.npy import npy_bytes
from bigssl.data.order.stream import Stream
from bigssl.data.shards.storage import RangeReader
from bigssl.data.shards.windows import WindowIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine.plan.order import simulate


@pytest.mark.parametrize(("length", "stride"), [(96, 24), (96, 96), (500, 7), (96, 300)])
def test_the_bytes_of_windows_are_those_that_are_read(tmp_path: Path, length: int, stride: int) -> None:
    """Of series that are read in parts, and of one so short that it is read whole: an epoch, to the byte."""
    arrays = {f"k{n}": np.random.default_rng(n).normal(size=(rows, 7)).astype(np.float32)
              for n, rows in enumerate((3000, 2000, 500))}  # fmt: skip
    items = [Item(key, key, lambda key=key: {"npy": npy_bytes(arrays[key])}) for key in arrays]  # type: ignore[misc]
    base = pack(items, tmp_path / "d", name="s", shard_size=1)[""]
    index = WindowIndex(base, length, stride)
    stream, taken, real = Stream(index, seed=0), list[int](), RangeReader.read

    def counted(self: RangeReader, url: str, offset: int, many: int) -> bytes:
        taken.append(many)
        return real(self, url, offset, many)

    with mock.patch.object(RangeReader, "read", counted):
        for position in range(len(stream)):
            stream.read(position)
    found = simulate(stream, size=len(stream), world=1, per_node=1)
    assert found.rank_bytes.most == pytest.approx(sum(taken), rel=1e-9)
    assert found.bytes == sum(shard.bytes for shard in base.shards)
    if stride < length:
        assert found.rank_bytes.most > 2 * found.bytes
    each = [sum(index.row(n)[1].length for n in range(len(index)) if index.shard_of(n) == at) for at in range(3)]
    assert (index.bytes_of_samples() * [shard.samples for shard in index.shards]).tolist() == pytest.approx(each)
    stream.close()
    base.close()
