"""Which of several datasets serves a position: exact shares, as even as they can be, in closed form.

Two datasets with whole weights a and b: of the first n positions, the first dataset serves

    a(n) = ⌊n·a / (a + b) + ½⌋          (a Beatty sequence, written so by Bresenham 1965 and Morse and Hedlund 1940)

and the second the other n − a(n): each is within ½ of its share for every n. More datasets are a tree of such pairs,
the longest-processing-time split (Graham 1969) of the weights into two halves, and again of each half. A half of two
or more datasets then holds at most ⅔ of its parent, so the error of an inner node is below ½ + ⅔·(½ + ⅔·(…)) = 3/2 and
that of a dataset below ½ + 3/2 = 2: its count among the first n positions differs from its share of n by less than 2,
whatever n, the number of datasets and the weights (Tijdeman 1980 gives < 1, but greedily, in n steps).

All is integer arithmetic: position 10⁹ costs what position 0 does, and there is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np

from bigssl.data.errors import DataError

Count = TypeVar("Count", int, np.ndarray)  # int64 arrays element by element
LARGEST = 2**30  # sum of the whole weights: products of two stay within int64


@dataclass(frozen=True)
class _Pair:
    """An inner node: of every `total` positions, `share` go to the left."""

    left: _Pair | int
    right: _Pair | int
    share: int
    total: int

    def lefts(self, count: Count) -> Count:
        """How many of the first `count` positions go to the left."""
        whole, rest = divmod(count, self.total)
        return whole * self.share + (2 * rest * self.share + self.total) // (2 * self.total)

    def unleft(self, number: int) -> int:
        """The position of the left's `number`-th."""
        return -(-self.total * (2 * number + 1) // (2 * self.share)) - 1

    def unright(self, number: int) -> int:
        """The position of the right's `number`-th."""
        return self.total * (2 * number + 1) // (2 * (self.total - self.share))


class Schedule:
    """Deals positions 0, 1, 2, … to len(weights) datasets in proportion to `weights` (> 0, of any sum).

    Raises DataError for weights that are no ratios of whole numbers up to about 10⁹.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = _whole(weights)
        self.total = sum(self.weights)
        self._root = _tree(self.weights, sorted(range(len(weights)), key=lambda i: (-self.weights[i], i)))

    def deal(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] positions -> int64 [n] dataset of each, int64 [n] how many positions it served before."""
        dataset, count = np.zeros_like(positions), np.array(positions)
        work = [(self._root, np.arange(len(positions)))]
        while work:
            node, rows = work.pop()
            if isinstance(node, int):
                dataset[rows] = node
                continue
            before = node.lefts(count[rows])
            left = node.lefts(count[rows] + 1) > before
            count[rows] = np.where(left, before, count[rows] - before)
            work += [(node.left, rows[left]), (node.right, rows[~left])]
        return dataset, count

    def deal_one(self, position: int) -> tuple[int, int]:
        """`deal` of one position."""
        node, count = self._root, int(position)
        while isinstance(node, _Pair):
            before = node.lefts(count)
            left = node.lefts(count + 1) > before
            node, count = (node.left, before) if left else (node.right, count - before)
        return node, count

    def position(self, dataset: int, number: int) -> int:
        """Where `dataset` serves for the `number`-th time: the inverse of `deal`."""
        for node, left in reversed(self._path(dataset)):
            number = node.unleft(number) if left else node.unright(number)
        return number

    def most(self, dataset: int, positions: int) -> int:
        """An upper bound of how many of any `positions` in a row are from `dataset`."""
        for node, left in self._path(dataset):
            positions = -(-positions * (node.share if left else node.total - node.share) // node.total)
        return positions

    def _path(self, dataset: int) -> list[tuple[_Pair, bool]]:
        """From the root: the pairs above `dataset`, and whether it lies to their left."""
        stack: list[tuple[_Pair | int, list[tuple[_Pair, bool]]]] = [(self._root, [])]
        while stack:
            node, path = stack.pop()
            if node == dataset:
                return path
            if isinstance(node, _Pair):
                stack += [(node.left, [*path, (node, True)]), (node.right, [*path, (node, False)])]
        raise IndexError(f"dataset {dataset} of {len(self.weights)}")


def _whole(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the ratio of `weights` as they are written: 0.7 is 7/10."""
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise DataError(f"mixture: weights are {list(weights)}, allowed are numbers > 0")
    ratios = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(ratio.denominator for ratio in ratios))
    whole = [int(ratio * scale) for ratio in ratios]
    divisor = math.gcd(*whole)
    whole = [number // divisor for number in whole]
    if sum(whole) > LARGEST:
        raise DataError(
            f"mixture: weights {list(weights)} need whole numbers that sum to {sum(whole)}, allowed is {LARGEST}; "
            "write them with fewer digits, or as whole numbers (1 and 2, not 0.333333333333 and 0.666666666667)"
        )
    return whole


def _tree(weights: Sequence[int], members: list[int]) -> _Pair | int:
    """The pair of two halves of `members` (heaviest first): each goes to the half that is lighter so far."""
    if len(members) == 1:
        return members[0]
    halves: tuple[list[int], list[int]] = ([], [])
    sums = [0, 0]
    for member in members:
        lighter = int(sums[1] < sums[0])
        halves[lighter].append(member)
        sums[lighter] += weights[member]
    return _Pair(_tree(weights, halves[0]), _tree(weights, halves[1]), sums[0], sum(sums))
