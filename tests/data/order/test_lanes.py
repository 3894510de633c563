"""The lanes of an epoch: spread over the whole list, each rank its own part, every sample somewhere in its window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.order.lanes import MIXING, Epoch, block_order, lane_pieces, lanes_of, spread_lanes
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex, ShardInfo

allowed = st.builds(lambda odd, level: odd << level, st.sampled_from([1, 1, 1, 3, 5, 25, 127]), st.integers(0, 8))


def paper_stream(*counts: int, **options: int) -> Stream:
    """A stream without files: enough for the order."""
    infos = [ShardInfo(f"s{i}", "", "", n, 1, f"{i}", "", ()) for i, n in enumerate(counts)]
    return Stream(DatasetIndex("nowhere", infos), **{"seed": 0} | options)


@settings(max_examples=60, deadline=None)
@given(allowed, st.integers(0, 2**63), st.integers(0, 10**6))
def test_any_places_in_a_row_take_equal_pieces_of_the_list_equally(lanes: int, seed: int, epoch: int) -> None:
    """Every run of p places, over the end of π as well, takes each of p equal pieces once, for every p of `pieces`."""
    order = spread_lanes(lanes, seed, epoch)
    assert sorted(order.tolist()) == list(range(lanes))
    for number in lane_pieces(lanes):
        piece = np.concatenate([order, order])[: lanes + number] * number // lanes
        for begin in {0, 1, lanes // 3, lanes - number // 2 - 1}:
            assert sorted(piece[begin : begin + number].tolist()) == list(range(number))


def coins(epoch: int) -> np.ndarray:
    """int64 [63]: of each of 1, 2, 4 ... 32 equal pieces, whether its right half comes first."""
    order = spread_lanes(64, 5, epoch)
    levels = []
    for number in (1, 2, 4, 8, 16, 32):
        halves = order[:number] * 2 * number // 64
        levels.append((halves % 2)[np.argsort(halves // 2)])
    return np.concatenate(levels)


def test_below_a_piece_the_order_of_halves_is_a_coin_of_its_own() -> None:
    """Else the places of a batch would look at the same part of their pieces. Over epochs, every coin is fair and no
    two of them, of whatever levels, agree more often than chance."""
    drawn = np.array([coins(epoch) for epoch in range(1000)]) * 2 - 1
    assert np.abs(drawn.mean(axis=0)).max() < 0.16  # 5 standard deviations
    together = drawn.T @ drawn / len(drawn) - np.eye(63)
    assert np.abs(together).max() < 0.16


def test_an_odd_number_of_pieces_is_taken_in_a_random_order() -> None:
    firsts = np.array([spread_lanes(5, 0, epoch) for epoch in range(500)])
    for place in range(5):
        assert np.abs(np.bincount(firsts[:, place], minlength=5) - 100).max() < 45


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 20_000))
def test_lanes_are_at_least_what_mixes_and_no_more_than_samples_need(samples: int, wanted: int) -> None:
    lanes = lanes_of(samples, wanted)
    assert lane_pieces(lanes)[0] <= 127 and lane_pieces(lanes)[-1] == lanes
    assert lanes >= min(samples, wanted, MIXING) and lanes < 2 * max(samples, 1)
    if samples <= 1 << 20:
        assert lanes >= min(samples, MIXING)
    if wanted in (1 << 12, 3 << 11, 5 << 10) and wanted <= samples:
        assert lanes == wanted


def test_huge_datasets_have_the_lanes_that_were_asked_for() -> None:
    assert [lanes_of(n, 256) for n in (10**6, 2**21, 2**23, 10**8)] == [4096, 2048, 512, 256]
    assert lanes_of(10**8, 24) == 32 and lanes_of(10**8, 240) == 240 and lanes_of(10**8, 251) == 256


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 9000), st.integers(1, 400), st.integers(0, 5))
def test_lanes_are_ranges_and_are_read_by_blocks(samples: int, lanes: int, window: int, epoch: int) -> None:
    """The slow truth of two lanes: each is a range of the list, turned in itself, read in whole blocks."""
    stream = paper_stream(samples, lanes=lanes, window=window)
    places = np.arange(samples) + epoch * samples
    lane_of, numbers = stream.lanes_at(places), stream.locate_many(places)[1]
    lengths = np.bincount(lane_of, minlength=stream.lanes)
    begins, turns = np.cumsum(lengths) - lengths, set()
    for lane in {int(lane_of[0]), int(lane_of[-1])}:
        found, length = numbers[lane_of == lane], int(lengths[lane])
        first = next((n for n in found.tolist() if (n - 1) % samples not in found), 0)
        inside = (found - first) % samples
        assert sorted(inside) == list(range(length))  # one range of the list, which is the one shard, turned
        turns.add((first - int(begins[lane])) % samples if length < samples else None)
        for begin in range(0, length, stream.window):
            block = np.sort(inside[begin : begin + stream.window])
            gaps = np.flatnonzero(np.diff(block) != 1)
            assert len(gaps) == 0 or (len(gaps) == 1 and block[0] == 0 and block[-1] == length - 1)  # over the turn
    assert len(turns - {None}) <= 1


def test_the_window_is_shared_out_over_the_lanes() -> None:
    """As many samples are shuffled among themselves as were asked for, whatever the number of lanes becomes."""
    assert (paper_stream(10**6).lanes, paper_stream(10**6).window) == (4096, 64)
    assert paper_stream(10**8).window == 1024 and paper_stream(10**8, lanes=4096, window=7).window == 7
    assert paper_stream(10**6, window=1).window == 1


def test_lanes_are_turned_apart() -> None:
    """In data that repeats with the length of a lane, lanes that began alike would give a batch of equals."""
    lanes, length = 4096, 100
    numbers = paper_stream(lanes * length, lanes=lanes, window=1).locate_many(np.arange(lanes))[1]
    assert np.bincount(numbers % length, minlength=length).max() < 80


@pytest.mark.parametrize("world", [2, 4, 8, 64])
@pytest.mark.parametrize("share", [1, 3, 8, 50])
def test_a_rank_stays_in_its_part_of_the_list(world: int, share: int) -> None:
    """Exactly, at any batch, where the ranks are a power of two; batches over the end of an epoch hardly leave it."""
    stream, size = paper_stream(30_011, lanes=7), share * world
    for step in (0, 1, 5, 30_011 // size - 1, 30_011 // size):
        lanes = [stream.lanes_at(stream.micro_batch(step, size, rank, world, 0, 1)) for rank in range(world)]
        parts = [np.unique(own * world // stream.lanes).tolist() for own in lanes]
        if (step + 1) * size <= len(stream):
            assert parts == [[rank] for rank in range(world)]
        else:
            reach = 1 + 6 * world // size
            assert all(abs(part - rank) <= reach for rank, own in enumerate(parts) for part in own)


def test_an_epoch_is_the_list_of_its_shards() -> None:
    """Lanes in order are whole shards one after another, but for the one at which the list was turned."""
    counts = np.array([70, 0, 130, 1, 50, 49])
    epoch = Epoch(counts, 256, 4, seed=1, epoch=2)
    numbers = epoch.numbers(np.arange(300))
    lanes = epoch.slots[np.arange(300) % 256]
    shards = np.searchsorted(np.cumsum(counts), numbers[np.argsort(lanes, kind="stable")], side="right")
    changes = int((np.diff(shards) != 0).sum())
    assert 4 <= changes <= 5 + 2  # 5 shards with samples, one of them cut; a lane of two samples is turned


def test_every_part_of_the_order_is_drawn_anew_by_seed_and_epoch() -> None:
    counts = np.full(40, 1024)
    epochs = {at: Epoch(counts, 4096, 10, *at) for at in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    parts = {
        "lanes": {at: epoch.slots for at, epoch in epochs.items()},
        "turn of the list": {at: epoch._begins[:1] for at, epoch in epochs.items()},
        "turns of lanes": {at: epoch._turns for at, epoch in epochs.items()},
        "shards": {at: epoch._row.jumps for at, epoch in epochs.items()},
        "blocks": {at: block_order(10, epoch._key, 0, 0) for at, epoch in epochs.items()},
    }
    for name, drawn in parts.items():
        assert len({tuple(values.tolist()) for values in drawn.values()}) == 4, name
    again = Epoch(counts, 4096, 10, 1, 1).numbers(np.arange(40_960))
    assert (again == epochs[1, 1].numbers(np.arange(40_960))).all()


def test_blocks_are_shuffled_fairly_and_apart() -> None:
    """Every sample of a block comes at every place of it equally often, whatever comes in the blocks beside it."""
    orders = np.stack([block_order(8, 77, lane, begin) for lane in range(100) for begin in range(0, 80, 8)])
    for place in range(8):
        assert np.abs(np.bincount(orders[:, place], minlength=8) - 125).max() < 5 * (1000 / 8 * 7 / 8) ** 0.5
    assert abs(np.corrcoef(orders[1:, 0], orders[:-1, 0])[0, 1]) < 0.15
    assert abs(np.corrcoef(orders[10:, 0], orders[:-10, 0])[0, 1]) < 0.15
