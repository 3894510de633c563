"""One epoch of a dataset in closed form: the list of its samples, the lanes it is cut into, and who is next.

    list:     the shards in an order keyed by (seed, epoch), their samples in a row, turned by a number keyed likewise
    lanes:    L contiguous ranges of the list; a lane is turned by a number of its own and cut into blocks of `window`
              samples, each of which is permuted
    place q:  sample q div L of lane π(q mod L); the first N mod L lanes in that order are one sample longer

π spreads any few consecutive places over the whole list, so that a batch of B is a stratified sample of it whatever the
order in which the data was packed: L = odd · 2^k, and for every j the first odd · 2^j places of π, like any odd · 2^j
in a row, take each of as many equal pieces of the list once. It is the sequence of van der Corput (1935), the digits of
q mod L read backwards, scrambled as by Owen (1995): below each piece the order of its halves is a coin of its own, or
all places of a batch would look at the same part of their pieces, and data that repeats (shards each of which is sorted
by class) would come one class at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from bigssl.data.order import rng

MIXING = 4096  # lanes that mix the largest batch of which the promise speaks, one sample from each
_LARGE = 1 << 32  # lanes × samples up to which there are so many: beyond, each lane may be a shard (and a sidecar) open
_ODD = 127
_STEPS = 40  # bits for the number of a sample in its lane
_AT_ONCE = 1 << 20  # random words in memory at one time


def lanes_of(samples: int, wanted: int) -> int:
    """How many lanes `samples` are cut into: `wanted` or more.

    Up to 2^20 samples 4,096, and half as many for each doubling from there, are the least: with fewer lanes than a
    batch has samples, neighbours would come in it together. What is no power of two, nor a small multiple of one (of
    use to 3, 6, 12 ... ranks), is raised to one, as is what exceeds the samples.
    """
    least = min(MIXING, _power_below(max(_LARGE // samples, 1)))
    lanes = min(max(wanted, least), samples)
    return lanes if lane_pieces(lanes)[0] <= _ODD and lanes < samples else 1 << (lanes - 1).bit_length()


def _power_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def lane_pieces(lanes: int) -> list[int]:
    """The numbers odd · 2^j: so many places in a row, or a multiple, take the same number from each of as many equal
    pieces of the list."""
    odd = lanes // (lanes & -lanes)
    return [odd << level for level in range((lanes // odd).bit_length())]


def spread_lanes(lanes: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [lanes]: π, the lane of each of `lanes` places in a row."""
    levels = lane_pieces(lanes)
    cells = rng.permutation(levels[0], "lanes", seed, epoch)
    coins = rng.key("halves", seed, epoch)
    for level in levels[:-1]:
        first = 2 * cells + (rng.words(coins, level + cells) & np.uint64(1)).astype(np.int64)
        cells = np.concatenate([first, first ^ 1])
    return cells


class _Row(NamedTuple):
    """The shards of an epoch one after another: where each begins, and what makes a place in the row a number in the
    index."""

    starts: np.ndarray
    jumps: np.ndarray

    @classmethod
    def shuffled(cls, counts: np.ndarray, seed: int, epoch: int) -> _Row:
        shards = rng.permutation(len(counts), "shards", seed, epoch)
        starts = np.cumsum(counts[shards]) - counts[shards]
        return cls(starts, (np.cumsum(counts) - counts)[shards] - starts)


class Epoch:
    """The order of one epoch of shards with int64 [S] `counts` samples. Costs O(S + lanes) once, then O(1) a sample."""

    def __init__(self, counts: np.ndarray, lanes: int, window: int, seed: int, epoch: int) -> None:
        self._size, self._window = int(counts.sum()), window
        self._row = _Row.shuffled(counts, seed, epoch)
        self._starts, self._jumps = self._row.starts.tolist(), self._row.jumps.tolist()
        self._key = rng.key("block", seed, epoch)
        self.slots = spread_lanes(lanes, seed, epoch)
        self._slots: list[int] = self.slots.tolist()
        short, longer = divmod(self._size, lanes)
        self._lengths = np.full(lanes, short)
        self._lengths[self.slots[:longer]] += 1
        # the list is turned, or one of few shards would be cut at the same places each epoch; and each lane in itself,
        # or lanes would go through data that repeats in step
        self._begins = np.cumsum(self._lengths) - self._lengths + rng.offset(self._size, "turn", seed, epoch)
        turns = rng.words(rng.key("turns", seed, epoch), np.arange(lanes))
        self._turns = (turns % np.maximum(self._lengths, 1).astype(np.uint64)).astype(np.int64)
        self._held: list[tuple[int, list[int]]] = [(-1, [])] * lanes

    def number(self, place: int) -> int:
        """The sample at `place` of the epoch, as the index counts. Keeps the block of each lane that was read last."""
        step, slot = divmod(place, len(self._slots))
        lane = self._slots[slot]
        block, inside = divmod(step, self._window)
        held, numbers = self._held[lane]
        if held != block:
            begin = block * self._window
            extent = min(self._window, int(self._lengths[lane]) - begin)
            if extent == 1:  # of small data each lane is one sample: nothing to order, and arrays would cost the most
                return self._alone(lane, begin)
            at = begin + block_order(extent, self._key, lane, begin)
            numbers = self._numbers(np.array(lane), at).tolist()
            self._held[lane] = block, numbers
        return numbers[inside]

    def _alone(self, lane: int, at: int) -> int:
        """`_numbers` of one sample."""
        turned = (at + int(self._turns[lane])) % int(self._lengths[lane])
        place = (int(self._begins[lane]) + turned) % self._size
        return place + self._jumps[bisect_right(self._starts, place) - 1]

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """`number` of int64 [n] places at once."""
        steps, slots = np.divmod(places, len(self._slots))
        lanes = self.slots[slots]
        blocks, inside = np.divmod(steps, self._window)
        codes, at = lanes << _STEPS | blocks, blocks * self._window
        order = np.argsort(codes, kind="stable")
        new = np.diff(codes[order], prepend=-1) != 0
        found, which = codes[order[new]], np.cumsum(new) - 1
        width = min(self._window, int(self._lengths.max()))
        group = max(1, _AT_ONCE // width)
        for first in range(0, len(found), group):
            begin, end = np.searchsorted(which, (first, first + group))
            rows = order[begin:end]
            at[rows] += self._orders(found[first : first + group], width)[which[begin:end] - first, inside[rows]]
        return self._numbers(lanes, at)

    def _orders(self, codes: np.ndarray, width: int) -> np.ndarray:
        """int64 [n, width]: `block_order` of each of n blocks; what is beyond its samples comes last."""
        lanes, begins = codes >> _STEPS, (codes & (1 << _STEPS) - 1) * self._window
        inside = np.arange(width)
        words = rng.words(self._key, (lanes << _STEPS)[:, None] + begins[:, None] + inside)
        words[inside >= (self._lengths[lanes] - begins)[:, None]] = np.iinfo(np.uint64).max
        return np.argsort(words, axis=1, kind="stable")

    def _numbers(self, lanes: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Numbers in the index of samples `at` of their (turned) lanes."""
        places = (self._begins[lanes] + (at + self._turns[lanes]) % self._lengths[lanes]) % self._size
        row = np.searchsorted(self._row.starts, places, side="right") - 1
        found: np.ndarray = places + self._row.jumps[row]
        return found


def block_order(size: int, key: int, lane: int, begin: int) -> np.ndarray:
    """int64 [size]: the order in which the samples from `begin` on of a lane are read."""
    words = rng.words(key, (lane << _STEPS) + np.arange(begin, begin + size))
    return np.argsort(words, kind="stable")
