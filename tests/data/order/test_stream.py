"""The order: a pure function, exactly once an epoch, the same for every world size, resumable anywhere."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.order import lanes as lanes_module
from bigssl.data.order import stream as stream_module
from bigssl.data.order.stream import Stream, read_in_order
from bigssl.data.shards.index import DatasetIndex, ShardInfo

COUNTS = (5, 1, 13, 2, 8, 8)  # 37 samples, uneven


def paper_index(counts: tuple[int, ...]) -> DatasetIndex:
    """An index without files: enough for the order."""
    return DatasetIndex("nowhere", [ShardInfo(f"s{i}", "", "", n, 1, f"{i}", "", ()) for i, n in enumerate(counts)])


def order(stream: Stream, start: int, stop: int) -> list[int]:
    return [stream.locate(position)[1] for position in range(start, stop)]


least = st.sampled_from([1, 2, 8, 4096])  # lanes there are: with 4096, every sample of a small dataset has its own


def with_least(number: int) -> Any:
    return mock.patch.object(lanes_module, "MIXING", number)


sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum).map(tuple)


@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(1, 300), st.integers(1, 50), st.integers(0, 2**63), st.integers(0, 3), least)
def test_an_epoch_is_the_dataset(
    counts: tuple[int, ...], lanes: int, window: int, seed: int, epoch: int, least: int
) -> None:
    with with_least(least):
        stream = Stream(paper_index(counts), seed=seed, lanes=lanes, window=window)
    places = [stream.locate(p) for p in range(epoch * len(stream), (epoch + 1) * len(stream))]
    assert sorted(number for _, number in places) == list(range(sum(counts)))
    assert {found for found, _ in places} == {epoch}


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 300), st.integers(1, 50), st.integers(0, 10**12), least)
def test_many_positions_are_located_as_one_is(
    counts: tuple[int, ...], lanes: int, window: int, start: int, least: int
) -> None:
    with with_least(least):
        stream = Stream(paper_index(counts), seed=1, lanes=lanes, window=window)
    positions = np.arange(start, start + 60)[::-1]
    epochs, numbers = stream.locate_many(positions)
    assert list(zip(epochs.tolist(), numbers.tolist(), strict=True)) == [stream.locate(p) for p in positions]


@settings(max_examples=60, deadline=None)
@given(
    sizes, st.integers(1, 64), st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 3]), st.integers(0, 50), least
)
def test_ranks_deal_out_the_global_batch(
    counts: tuple[int, ...], lanes: int, world: int, accum: int, step: int, least: int
) -> None:
    with with_least(least):
        stream, size = Stream(paper_index(counts), seed=3, lanes=lanes), 144
    whole = stream.global_batch(step, size)
    assert sorted(whole) == list(range(step * size, (step + 1) * size))
    for micro in range(accum):
        parts = [stream.micro_batch(step, size, rank, world, micro, accum) for rank in range(world)]
        assert {len(part) for part in parts} == {size // world // accum}
        assert np.concatenate(parts).tolist() == whole[micro::accum].tolist()


def test_epochs_and_seeds_differ() -> None:
    index = paper_index(COUNTS)
    first = Stream(index, seed=0)
    assert order(first, 0, 37) != order(first, 37, 74)
    assert order(first, 0, 37) != order(Stream(index, seed=1), 0, 37)
    assert order(first, 0, 37) == order(Stream(index, seed=0), 0, 37)


def test_the_order_is_mixed_well() -> None:
    """Over epochs, position and sample number are uncorrelated, and every sample is met early and late."""
    stream = Stream(paper_index((100,) * 10), seed=5, lanes=32)
    epochs = np.array([order(stream, e * 1000, (e + 1) * 1000) for e in range(20)])
    correlations = [np.corrcoef(np.arange(1000), numbers)[0, 1] for numbers in epochs]
    assert abs(np.mean(correlations)) < 4 / np.sqrt(20 * 1000)
    assert np.argsort(epochs, axis=1).std(axis=0).min() > 100


def test_golden_order() -> None:
    """A change here breaks the resume of runs that were started with an earlier version."""
    expected = [6, 2, 7, 3, 5, 1, 0, 4, 0, 4, 5, 2, 7, 3, 6, 1]
    assert order(Stream(paper_index((3, 5)), seed=0, lanes=3, window=2), 0, 16) == expected
    long = Stream(paper_index((30_000, 20_000)), seed=3, lanes=1, window=9 * 4096)  # lanes of 12 or 13, blocks of 9
    assert [long.locate(p)[1] for p in (0, 1, 4096 * 11, 49_999, 50_000, 10**12)] == [
        36513, 9771, 36515, 2597, 7045, 49311,
    ]  # fmt: skip


@pytest.mark.parametrize("position", [0, 36, 37, 10**9, 10**15])
def test_resume_needs_the_position_only(dataset, position: int) -> None:
    index = dataset(COUNTS)
    with with_least(1):
        used = Stream(index, seed=4, lanes=5, window=4)
        fresh = Stream(DatasetIndex.load(index.url), seed=4, lanes=5, window=4)
    before = [used.read(p) for p in range(position, position + 40)]
    assert [fresh.read(p) for p in reversed(range(position, position + 40))] == before[::-1]


def test_the_fingerprint_tells_the_version_of_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was started with another order is refused: its position would mean other samples."""
    index = paper_index(COUNTS)
    now = Stream(index, seed=0).fingerprint
    assert now == Stream(paper_index(COUNTS), seed=0).fingerprint != Stream(paper_index((5, 1)), seed=0).fingerprint
    assert now != index.fingerprint  # what the first version, without a name, wrote
    monkeypatch.setattr(stream_module, "ORDER", "another")
    assert Stream(index, seed=0).fingerprint != now


def test_streams_travel_by_pickle(dataset) -> None:
    stream = Stream(dataset(COUNTS), seed=4)
    stream.read(0)
    assert pickle.loads(pickle.dumps(stream)).read(3) == stream.read(3)


def test_a_sample_says_where_it_stands(dataset) -> None:
    stream = Stream(dataset((3, 4), compress=True), seed=0, source="text")
    sample = stream.read(9)
    assert (sample.position, sample.epoch, sample.source) == (9, 1, "text")
    number = int(sample.key[2:])
    assert stream.key(9) == sample.key
    assert sample.shard == f"shard-{int(number >= 3):03d}.tar.gz"
    assert sample.fields == {"txt": f"text of {sample.key}".encode(), "json": f'{{"number":{number}}}'.encode()}


def test_in_order_and_limit(dataset) -> None:
    index = dataset((2, 3))
    assert [sample.key for sample in read_in_order(index)] == [f"s-{i:05d}" for i in range(5)]
    assert [sample.key for sample in read_in_order(index, 3)] == [f"s-{i:05d}" for i in range(3)]


def test_stand_ins_are_the_next_of_the_epoch() -> None:
    index = paper_index((3, 2))
    assert list(Stream(index, seed=0).candidates(8)) == [8]
    assert list(Stream(index, seed=0, on_error="skip").candidates(8)) == [8, 9, 5, 6, 7]
    assert list(Stream(index, seed=0, on_error="skip", max_errors=1).candidates(4)) == [4, 0]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    index = paper_index((4,))
    for options in ({"lanes": 0}, {"window": 0}, {"on_error": "ignore"}):
        with pytest.raises(DataError, match=next(iter(options))):
            Stream(index, seed=0, **options)
    with pytest.raises(DataError, match="source 'img'.* 10 samples .*multiple of .* 2 × 2"):
        Stream(index, seed=0, source="img").micro_batch(0, 10, 0, 2, 0, 2)
