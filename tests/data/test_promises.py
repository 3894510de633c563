"""Real loaders: 1 to 37 uneven shards on 1 to 8 ranks with 0 to 3 workers are one order, each sample once an epoch."""

from __future__ import annotations

from collections import Counter

import pytest

from bigssl.data.loading.loader import make_loader
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex, build_index
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item

COUNTS = [(7 * number) % 5 + 1 for number in range(37)]  # 1 to 5 samples
WORLDS = (1, 2, 3, 4, 8)
SIZE = 24  # divisible by each of them

Ledger = list[list[str]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """37 shards."""
    folder, first = tmp_path_factory.mktemp("shards"), 0
    for number, count in enumerate(COUNTS):
        pack([item(n) for n in range(first, first + count)], folder / str(number), name=f"shard{number:02d}")
        first += count
    return build_index(sorted(folder.glob("*/*.tar"), key=lambda path: path.name), folder)


def item(number: int) -> Item:
    key = f"k{number:03d}"
    return Item(key, key, lambda: {"txt": key.encode()})


def first_shards(index: DatasetIndex, number: int) -> DatasetIndex:
    return DatasetIndex(index.url, index.shards[:number])


@pytest.fixture(autouse=True)
def few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small datasets would else have a lane for each sample, and no windows."""
    monkeypatch.setattr("bigssl.data.order.lanes.MIXING", 1)


def run(stream: Stream, world: int, workers: int, start: int, stop: int, size: int = SIZE) -> Ledger:
    """The global batches of steps [start, stop): the parts of `world` loaders, in their order."""
    ranks = []
    for rank in range(world):
        loader = make_loader({"": stream}, {"": size}, lambda *_: {"n": 1}, dict, seed=0, rank=rank,
                             world=world, accum=1, workers=workers, start_step=start, stop_step=stop,
                             device_pin=False)  # fmt: skip
        ranks.append([batch.keys[""] for batch in loader])
    assert {len(steps) for steps in ranks} == {stop - start}
    assert {len(keys) for steps in ranks for keys in steps} == {size // world}
    return [[key for keys in step for key in keys] for step in zip(*ranks, strict=True)]


def is_exact(ledger: Ledger, samples: int) -> bool:
    """Whole epochs first: every key so often, and those of the epoch that has begun once more."""
    seen = Counter(key for step in ledger for key in step)
    whole, begun = divmod(sum(map(len, ledger)), samples)
    often = Counter(seen.values())
    return len(seen) == samples and often[whole + 1] == begun and often[whole] == samples - begun


@pytest.mark.parametrize("shards", range(1, 38))
def test_one_order_on_every_world(index: DatasetIndex, shards: int) -> None:
    stream = Stream(first_shards(index, shards), seed=shards, lanes=1 + shards % 9, window=1 + shards % 4)
    steps = -(-len(stream) // SIZE) + 1
    ledgers = [run(stream, world, 0, 0, steps) for world in WORLDS]
    assert all(ledger == ledgers[0] for ledger in ledgers)
    assert is_exact(ledgers[0], len(stream))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("world", WORLDS)
def test_one_order_with_workers(index: DatasetIndex, world: int, workers: int) -> None:
    for shards in (1, 37):
        stream = Stream(first_shards(index, shards), seed=3)
        assert run(stream, world, workers, 0, 5) == run(stream, 1, 0, 0, 5)


@pytest.mark.parametrize("start", range(12))
def test_a_run_goes_on_anywhere_with_other_ranks_and_workers(index: DatasetIndex, start: int) -> None:
    """12 steps of 4 are three epochs of 15 and a part of the next: after every one, all worlds, and workers in turn."""
    stream = Stream(first_shards(index, 5), seed=1, lanes=3, window=2)
    assert len(stream) == 15
    whole = run(stream, 1, 0, 0, 12, size=4)
    assert is_exact(whole, 15)
    for world in (1, 2, 4):
        assert run(stream, world, 0, start, 12, size=4) == whole[start:]
    world, workers = (1, 2, 4)[start % 3], (1, 3)[start % 2]
    assert whole[:start] + run(stream, world, workers, start, 12, size=4) == whole


def test_the_measure_of_exactness_can_fail() -> None:
    assert is_exact([["a", "b"], ["b", "a"], ["b"]], 2)
    assert not is_exact([["a", "a"], ["b"], ["b"], ["b"]], 3)
    assert not is_exact([["a", "a", "b", "a"]], 2)
