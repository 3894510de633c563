"""Drawn samples from a server: the same as from a disk, and fetched together, not one round trip after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigssl.data.loading import loader as loading
from bigssl.data.loading.loader import make_loader
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample
from bigssl.data.shards import prefetch
from bigssl.data.shards.index import DatasetIndex

COUNTS = (5, 1, 13, 2, 8, 8)
DRAWS, SIZE, STEPS = 3, 12, 3  # within one epoch
RUNS: list[str] = []


def with_negatives(sample: Sample, rng: np.random.Generator, more: Any) -> dict[str, Any]:
    RUNS.append(sample.key)
    drawn = [more(rng) for _ in range(DRAWS)]
    return {"drew": " ".join(f"{d.key}:{len(d.fields['jpg'])}" for d in drawn), "at": rng.random()}


def batches(index: DatasetIndex, workers: int = 0, **options: Any) -> list[Any]:
    stream = Stream(index, seed=3, lanes=4, window=4, **options)
    given = {"rank": 0, "world": 1, "accum": 1, "workers": workers, "start_step": 0, "stop_step": STEPS}
    loader = make_loader({"": stream}, {"": SIZE}, with_negatives, dict, seed=0, device_pin=False, **given)
    found = [(batch.keys, batch.data[""]["drew"], batch.data[""]["at"].tolist(), batch.errors) for batch in loader]
    stream.close()
    return found


@pytest.mark.parametrize("cache", [False, True])
def test_they_are_those_of_the_disk_whatever_breaks(dataset, serve, quick, cache: bool) -> None:
    local = dataset(COUNTS, pictures=True)
    server = serve(Path(local.url))
    index = DatasetIndex.load(server.url + "/", quick(cache=cache))
    expected = batches(local)
    server.set(faults=[{"kind": kind, "status": 503, "path": ".tar"} for kind in ("cut", "status", "short", "flip")])
    assert batches(index) == expected
    assert batches(index, workers=2) == expected


def test_what_a_group_draws_is_fetched_together(dataset, serve, quick, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 samples that draw 3 each, one after the other: 3 waits for all of them, not 36; no request for nothing."""
    index = DatasetIndex.load(serve(Path(dataset(COUNTS, pictures=True).url)).url + "/", quick(gap=0))
    index.prepare(range(37))  # sidecars, which are read once
    waits, alone = list[int](), list[Any]()
    announce, read = prefetch.ExtentReader.announce, prefetch.Remote.read
    monkeypatch.setattr(prefetch.ExtentReader, "announce", lambda *args: waits.append(1) or announce(*args))
    monkeypatch.setattr(prefetch.Remote, "read", lambda *args: alone.append(args) or read(*args))
    RUNS.clear()
    for _, drew, _, _ in batches(index):
        assert all(len(row.split()) == DRAWS for row in drew)
    assert not alone, "a sample was fetched by itself"
    assert len(waits) == STEPS * (1 + DRAWS)
    assert len(RUNS) <= STEPS * SIZE * (1 + DRAWS)  # begun again at each draw: draw before costly work
    assert loading._TOGETHER >= SIZE


def test_the_requests_are_one_for_each_sample(dataset, serve, quick) -> None:
    server = serve(Path(dataset(COUNTS, pictures=True).url))
    index = DatasetIndex.load(server.url + "/", quick(gap=0))
    drawn = [d.split(":")[0] for _, drew, _, _ in batches(index) for row in drew for d in row.split()]
    most = STEPS * SIZE * (1 + DRAWS)  # what several of a group draw comes once
    assert len(drawn) == STEPS * SIZE * DRAWS and most // 2 < len(server.ranges()) <= most
    assert len([path for path, _ in server.log()["requests"] if path.endswith(".idx")]) == len(COUNTS)
