"""The simulated reading against a plain walk through the order, one position at a time."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.order.mixture import Mixture
from bigssl.data.order.order import Order
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex, ShardInfo
from bigssl.data.shards.sidecar import MEMORY
from bigssl.engine.plan import order as plan_order
from bigssl.engine.plan.data import duplicates, sidecar_bytes
from bigssl.engine.plan.order import keep, lanes_that_keep, simulate


def paper_index(counts: tuple[int, ...], prefix: str = "s", checksum: str = "") -> DatasetIndex:
    """An index without files; a sample of shard i has 100 + i bytes."""
    infos = [
        ShardInfo(f"{prefix}{i}", "", "s3://none", n, n * (100 + i), f"{checksum or prefix}{i}", "", ("jpg", "txt"))
        for i, n in enumerate(counts)
    ]
    return DatasetIndex("nowhere", infos)


def walk(order: Order, size: int, world: int) -> tuple[list[float], list[set[int]]]:
    """Bytes and shards by rank in the first epoch: the slow truth."""
    starts = np.cumsum([0, *(s.samples for index in order.indexes.values() for s in index.shards)])
    local = [i for index in order.indexes.values() for i in range(len(index.shards))]
    read, opened = [0.0] * world, [set() for _ in range(world)]  # type: ignore[var-annotated]
    for step in range(-(-len(order) // size)):
        for rank in range(world):
            for position in order.micro_batch(step, size, rank, world, 0, 1):
                if position < len(order):
                    shard = int(np.searchsorted(starts, order.locate(int(position))[1], side="right")) - 1
                    read[rank] += 100 + local[shard]
                    opened[rank].add(shard)
    return read, opened


counts = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(sum).map(tuple)


@settings(max_examples=50, deadline=None)
@given(counts, counts, st.booleans(), st.integers(1, 20), st.sampled_from([1, 2, 3, 4]))
def test_simulation_is_the_order(
    first: tuple[int, ...], second: tuple[int, ...], mixed: bool, lanes: int, world: int
) -> None:
    indexes = {"a": paper_index(first, "a"), "b": paper_index(second, "b")}
    with mock.patch("bigssl.data.order.lanes.MIXING", 1):
        order: Order = Mixture(indexes, {"a": 2, "b": 1}, seed=1, lanes=lanes) if mixed else Stream(
            indexes["a"], seed=1, lanes=lanes
        )  # fmt: skip
    found = simulate(order, 12, world, per_node=2)
    read, opened = walk(order, 12, world)
    nodes = [set().union(*opened[begin : begin + 2]) for begin in range(0, world, 2)]
    assert (found.rank_bytes.least, found.rank_bytes.most) == (min(read), max(read))
    assert (found.rank_shards.least, found.rank_shards.most) == (min(map(len, opened)), max(map(len, opened)))
    assert (found.node_shards.least, found.node_shards.most) == (min(map(len, nodes)), max(map(len, nodes)))
    assert found.node_bytes.mean * len(nodes) == pytest.approx(sum(read))
    assert found.openings == pytest.approx(sum(map(len, opened)) / found.shards)
    assert found.repeated == 0 and found.share == 1
    if not mixed:
        assert sum(read) == found.bytes


def test_long_epochs_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Stream(paper_index((500,) * 40), seed=0, lanes=64)
    whole = simulate(order, 64, 4, per_node=2)
    monkeypatch.setattr(plan_order, "EXACT", 1000)
    monkeypatch.setattr(plan_order, "SAMPLED", 4000)
    part = simulate(order, 64, 4, per_node=2)
    assert part.share == pytest.approx(0.2, abs=0.01) and part.repeated is None
    assert part.rank_bytes.mean == pytest.approx(whole.rank_bytes.mean, rel=0.05)
    assert 0.5 * whole.rank_shards.mean < part.rank_shards.mean <= whole.rank_shards.mean


@settings(max_examples=100, deadline=None)
@given(st.integers(5000, 40_000), st.integers(1, 300), st.integers(1, 60), st.sampled_from([1, 2, 3, 5, 8, 24, 40]))
def test_lanes_that_keep_keep(samples: int, lanes: int, share: int, world: int) -> None:
    """With that many lanes, every rank's lanes are its own part of the list, in every step within an epoch."""
    size = share * world
    kept = lanes_that_keep(samples, lanes, size, world)
    stream = Stream(paper_index((samples,)), seed=0, lanes=kept or lanes)
    assert kept is None or (kept == stream.lanes and keep(kept, size, world))
    assert kept is not None or world & (world - 1)  # a power of two is kept by any lanes
    for step in range(min(4, samples // size)):
        for rank in range(world):
            parts = set(stream.lanes_at(stream.micro_batch(step, size, rank, world, 0, 1)) * world // stream.lanes)
            assert kept is None or parts == {rank}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1000, 60_000), st.integers(1, 9000), st.integers(1, 2000), st.integers(1, 200),
    st.sampled_from([2, 4, 8, 16, 32]), st.integers(2, 60), st.integers(0, 2**40),
)  # fmt: skip
def test_a_rank_opens_its_share_of_shards(
    samples: int, lanes: int, window: int, share: int, world: int, each: int, seed: int
) -> None:
    """At most 1.1 times it, beside those that lie over an edge of its part; so a whole epoch with its last batch."""
    shards, size = min(each * world, samples // 4), min(share, samples // (4 * world)) * world
    counts = tuple(np.diff(np.linspace(0, samples, shards + 1).astype(int)).tolist())
    found = simulate(Stream(paper_index(counts), seed=seed, lanes=lanes, window=window), size, world, per_node=world)
    assert found.rank_shards.mean <= 1.05 * shards / world + 1.5
    assert found.rank_shards.most <= 1.1 * shards / world + 3


@pytest.mark.parametrize(("share", "allowed"), [(32, 1.35), (128, 1.1)])
def test_mixtures_open_about_their_share(share: int, allowed: float) -> None:
    """Weights do not divide the ranks: the edges of a rank's part move by a few samples of its share of a batch."""
    indexes = {"a": paper_index((100,) * 730, "a"), "b": paper_index((100,) * 270, "b")}
    found = simulate(Mixture(indexes, {"a": 0.73, "b": 0.27}, seed=3), share * 8, 8, per_node=8)
    assert found.rank_shards.mean <= allowed * 1000 / 8 + 2


def test_copies_are_found() -> None:
    twice = Mixture({"a": paper_index((4, 5), "a"), "b": paper_index((4, 5), "a", "b")}, {"a": 1, "b": 1}, seed=0)
    warnings, notes = duplicates({"web": twice})
    assert not warnings and "2 shard names occur in several datasets (a0 in a, b)" in notes[0]
    same = Mixture({"a": paper_index((4, 5), "a"), "b": paper_index((4,), "a")}, {"a": 1, "b": 1}, seed=0)
    (warning,), _ = duplicates({"web": same})
    assert "data.sources.web: 1 of 3 shards are copies by checksum (a/a0, b/a0" in warning
    shared: Any = {name: Stream(paper_index((4, 5)), seed=0) for name in ("x", "y")}
    warnings, notes = duplicates(shared)
    assert not warnings and notes == ["data.sources: x and y share 2 shards (a run sees these samples in both)"]


def test_sidecars_in_memory_are_bounded() -> None:
    order = Mixture({"a": paper_index((400,), "a"), "b": paper_index((600,), "b")}, {"a": 1, "b": 1}, seed=0)
    assert sidecar_bytes(order, 500, cached=False) == 500 * (4 + 70 + 2 * 40)
    assert sidecar_bytes(order, 10**7, cached=True) == 10**7 * 4 + 2 * MEMORY // 2
    assert sidecar_bytes(order, 10**7, cached=False) == 2 * MEMORY
