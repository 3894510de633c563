"""How mixed batches are whatever the order in which data was packed: the table behind the promise. Needs no data.

    python benchmarks/mixing.py [--batch 16 --batch 4096 ...] [--lanes L] [--window K]

A number is the mean entropy of the classes in a batch over that in random batches, the worst of four layouts: sorted by
class, every shard sorted by class, classes in turn, sorted classes of unequal sizes; in all batches of two epochs, and
in those that hold the end of an epoch. The exit status is 1 where one is below the promise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from bigssl.data.order.mixing import PROMISED, drawn, labelled, mixing, sampled_steps
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex, ShardInfo

DATASETS = [(533, 3, 3), (3000, 10, 7), (20_000, 100, 20), (100_000, 10, 100), (1_000_000, 1000, 1000)]
BATCHES = (16, 24, 64, 256, 1024, 4096)


def stream_of(samples: int, shards: int, lanes: int, window: int) -> Stream:
    """A stream over `samples` in `shards` that exist on paper only."""
    counts = np.diff(np.linspace(0, samples, shards + 1).astype(int)).tolist()
    infos = [ShardInfo(f"{n}", "", "", count, 1, f"{n}", "", ()) for n, count in enumerate(counts)]
    return Stream(DatasetIndex("paper", infos), seed=0, lanes=lanes, window=window)


def layouts(order: Stream, kinds: int) -> Iterator[np.ndarray]:
    """Classes of the samples, int64 [N], as they may have been packed."""
    counts = np.array([shard.samples for shard in order.index.shards])
    numbers, sizes = np.arange(len(order)), np.repeat(counts, counts)
    inside = numbers - np.repeat(np.cumsum(counts) - counts, counts)
    rare = (np.arange(1, kinds + 1) ** -1.2).cumsum()
    yield numbers * kinds // len(order)
    yield inside * kinds // sizes
    yield numbers % kinds
    yield np.searchsorted(rare / rare[-1] * len(order), numbers, side="right")


def worst(order: Stream, kinds: int, batch: int) -> float:
    """The least mixing of batches of `batch`."""
    ends = np.array([epoch * len(order) // batch for epoch in range(1, 4 + 4096 // batch)])
    groups = [drawn(order, batch, steps) for steps in (sampled_steps(order, batch), ends)]
    return min(mixing(order, group, labelled(order, classes)) for group in groups for classes in layouts(order, kinds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, action="append", metavar="B", help=f"repeatable (default: {BATCHES})")
    parser.add_argument("--lanes", type=int, default=256, metavar="L", help="data.lanes (%(default)s)")
    parser.add_argument("--window", type=int, default=1024, metavar="K", help="data.shuffle_window (%(default)s)")
    args = parser.parse_args()
    batches, least = args.batch or BATCHES, 1.0
    print("samples".rjust(10) + "classes".rjust(9) + "shards".rjust(8) + "".join(f"B={b}".rjust(8) for b in batches))
    for samples, kinds, shards in DATASETS:
        order = stream_of(samples, shards, args.lanes, args.window)
        found = [worst(order, kinds, batch) if 2 * batch <= samples else None for batch in batches]
        row = "".join(("-" if value is None else f"{value:.3f}").rjust(8) for value in found)
        print(f"{samples:10,}{kinds:9}{shards:8}{row}", flush=True)
        least = min([least, *(value for value in found if value is not None)])
    print(f"least {least:.3f}, promised {PROMISED}: {'kept' if least >= PROMISED else 'BROKEN'}")
    return int(least < PROMISED)


if __name__ == "__main__":
    raise SystemExit(main())
