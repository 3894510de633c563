"""Windows of long series through the index: bytes read beside those needed, and time: `python benchmarks/windows.py`

Two years of minutes, seven channels, in one shard. First every kind of reading is compared with slices of the arrays;
where they differ nothing is timed. `ours`: 500 windows of an epoch, each read by its bytes and verified. `whole`: the
sample that holds the window is read and verified whole, then cut, as without `windows`. Steps in turn; the ratio is
that of the medians. `read` is the bytes that were read over those of the windows' numbers; the aim is 1.2.

Rows go to benchmarks/results/windows_MACHINE.csv. Exit status 1 where numbers differ or the aim is missed.
"""

from __future__ import annotations

import argparse
import io
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from measure import RESULTS, device_name, in_turn, write_rows

from bigssl.data.npy import npy_bytes
from bigssl.data.order.stream import SampleReader, Stream
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.storage import RangeReader
from bigssl.data.shards.windows import WindowIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item

YEAR, CHANNELS, AIM = 525_600, 7, 1.2
LENGTHS = (96, 512, 2048)
CPU = torch.device("cpu")


def values(year: int) -> np.ndarray:
    return np.random.default_rng(year).normal(size=(YEAR, CHANNELS)).astype(np.float32)


@contextmanager
def counting() -> Iterator[list[int]]:
    """The bytes of each read of a local file."""
    taken, real = list[int](), RangeReader.read

    def counted(self: RangeReader, url: str, offset: int, length: int) -> bytes:
        taken.append(length)
        return real(self, url, offset, length)

    with mock.patch.object(RangeReader, "read", counted):
        yield taken


def row_of(
    base: DatasetIndex, arrays: dict[str, np.ndarray], length: int, windows: int, rounds: int
) -> dict[str, Any]:
    """A row of results. Raises SystemExit where numbers differ."""
    index = WindowIndex(base, length, max(1, length // 2))
    stream, reader = Stream(index, seed=0), SampleReader(base)
    places = [index.row(stream.locate(position)[1])[1].key.split("@") for position in range(windows)]
    numbers = {base.row(number)[1].key: number for number in range(len(base))}

    def ours() -> list[np.ndarray]:
        return [np.load(io.BytesIO(stream.read(position).fields["npy"])) for position in range(windows)]

    def whole(most: int = windows) -> list[np.ndarray]:
        found = []
        for key, start in places[:most]:
            array = np.load(io.BytesIO(reader.read(numbers[key]).fields["npy"]))
            found.append(array[int(start) : int(start) + length])
        return found

    few = windows // 25
    with counting() as taken:
        read = ours()
    slices = [arrays[key][int(start) : int(start) + length] for key, start in places]
    if not all(map(np.array_equal, read, slices)) or not all(map(np.array_equal, whole(few), slices)):
        raise SystemExit(f"windows of {length} rows differ from slices of the array; nothing is timed")
    times = in_turn({"ours": ours, "whole": lambda: whole(few)}, CPU, rounds, "cpu")
    mine, other = times["ours"][1] / windows, times["whole"][1] / few
    return {
        "rows": length, "read": round(sum(taken) / (windows * length * CHANNELS * 4), 3),
        "us_ours": round(mine * 1e6, 1), "us_whole": round(other * 1e6, 1), "times": round(other / mine, 1),
        "device": device_name(CPU),
        "versions": f"numpy {np.__version__}, Python {platform.python_version()}",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="windows-") as folder:
        arrays = {f"y{year}": values(year) for year in range(2)}
        items = [Item(key, key, lambda key=key: {"npy": npy_bytes(arrays[key])}) for key in arrays]
        base = pack(items, Path(folder) / "d", name="s")[""]
        rows = [row_of(base, arrays, length, given.windows, given.rounds) for length in LENGTHS]
        base.close()
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    write_rows(given.out / f"windows_{device_name(CPU).replace(' ', '-').replace('(R)', '')}.csv", rows)
    return int(any(row["read"] > AIM for row in rows))


if __name__ == "__main__":
    sys.exit(main())
