"""How fair a sample of the data the batches of an order are, as a number: no payload, no labels, the index is enough.

The mixing of an order for samples with classes is the mean entropy of the classes in its batches over that in random
batches: 1 where batches look random, above 1 where they are stratified, 0 where each holds one class. What the classes
of a dataset are is not in its index, so it is asked for those that would be hardest: data that was packed class by
class, and shards each of which was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from bigssl.data.order.order import Order

PROMISED = 0.98  # of data packed class by class
KINDS = (3, 10, 100, 1000)  # classes in a dataset
_SAMPLES = 1 << 16  # so many are looked at, in batches evenly over two epochs or more,
_BATCHES = 64  # but not fewer of these,
_EPOCHS = 256  # nor, of small data, over more of these: each costs the making of its order
_RUN = 8  # so many in a row each time: they share blocks of a lane


class Classes(NamedTuple):
    """of: int64 [n] numbers of samples -> int64 [n] classes, none in two datasets; sizes: samples of each class, by
    dataset, an int64 [C] each."""

    of: Callable[[np.ndarray], np.ndarray]
    sizes: Sequence[np.ndarray]


def labelled(order: Order, labels: np.ndarray) -> Classes:
    """Classes that are known: int64 [N], as `order` numbers the samples."""
    first = np.cumsum([0, *map(len, order.indexes.values())])
    sizes = [np.bincount(labels[begin:end]) for begin, end in zip(first[:-1], first[1:], strict=True)]
    return Classes(labels.__getitem__, sizes)


def packed(order: Order) -> Iterator[Classes]:
    """The classes of samples that were packed class by class: in each dataset as a whole, and in each shard."""
    indexes = list(order.indexes.values())
    yield from (_sorted([[len(index)] for index in indexes], kinds) for kinds in KINDS)
    shards = [[shard.samples for shard in index.shards if shard.samples] for index in indexes]
    if sum(map(sum, shards)) == len(order):  # those of a pipe are not known
        yield from (_sorted(shards, kinds) for kinds in KINDS)


def _sorted(parts: list[list[int]], kinds: int) -> Classes:
    """`kinds` classes per dataset, where each of the `parts` of a dataset is sorted by them."""
    lengths = np.concatenate([np.array(part) for part in parts])
    first = np.repeat(np.arange(len(parts)) * kinds, list(map(len, parts)))
    starts = np.cumsum(lengths) - lengths

    def of(numbers: np.ndarray) -> np.ndarray:
        part = np.searchsorted(starts, numbers, side="right") - 1
        found: np.ndarray = first[part] + (numbers - starts[part]) * kinds // lengths[part]
        return found

    sizes = [np.zeros(kinds, np.int64) for _ in parts]
    for dataset, part in enumerate(parts):
        for length, times in zip(*np.unique(part, return_counts=True), strict=True):
            sizes[dataset] += times * np.diff(-(-np.arange(kinds + 1) * length // kinds))
    return Classes(of, sizes)


def mixing(order: Order, batches: np.ndarray, classes: Classes) -> float:
    """Mixing of int64 [n, B] `batches` (see `drawn`) of samples with these classes."""
    size = batches.shape[1]
    ends = np.cumsum(list(map(len, order.indexes.values())))
    datasets = np.searchsorted(ends, batches, side="right")

    @cache
    def chance(dataset: int, count: int) -> float:
        return random_entropy(classes.sizes[dataset], count, size)

    counts = [np.bincount(row, minlength=len(ends)).tolist() for row in datasets]
    random = np.mean([sum(chance(dataset, count) for dataset, count in enumerate(row)) for row in counts])
    found = entropies(classes.of(batches.ravel()).reshape(batches.shape)).mean()
    return float(found / random) if random > 0 else 1.0


def entropies(classes: np.ndarray) -> np.ndarray:
    """float64 [n]: entropy in nats of the classes in each of n batches; classes: int64 [n, B]."""
    batches, size = classes.shape
    kinds = int(classes.max()) + 1
    codes, counts = np.unique(np.arange(batches)[:, None] * kinds + classes, return_counts=True)
    shares = counts / size
    return np.bincount(codes // kinds, -shares * np.log(shares), batches)


def random_entropy(sizes: np.ndarray, drawn: int, size: int) -> float:
    """The mean of what classes of int64 [C] `sizes` add to the entropy of a batch of `size`, of which `drawn` are from
    them at random: none twice before each of them came once. Exact, by the hypergeometric distribution."""
    total = int(sizes.sum())
    whole, rest = divmod(drawn, total)
    entropy = 0.0
    for members, times in zip(*np.unique(sizes[sizes > 0], return_counts=True), strict=True):
        hits = np.arange(max(0, rest - (total - members)), min(members, rest) + 1)
        ways = _log_choices(members, hits) + _log_choices(total - members, rest - hits) - _log_choices(total, rest)
        shares = (hits + whole * members) / size
        entropy -= times * float(np.sum(np.exp(ways) * shares * np.log(np.where(shares > 0, shares, 1))))
    return entropy


_log_gamma = np.frompyfunc(math.lgamma, 1, 1)


def _log_choices(many: int, few: np.ndarray | int) -> np.ndarray:
    """ln of `many` choose `few`."""
    kept = np.asarray(few, dtype=float)
    ways = math.lgamma(many + 1) - _log_gamma(kept + 1) - _log_gamma(many - kept + 1)
    return np.asarray(ways, dtype=float)


def drawn(order: Order, size: int, steps: np.ndarray) -> np.ndarray:
    """int64 [n, size]: numbers of the samples of the global batches at int64 [n] `steps`."""
    positions = steps[:, None] * size + np.arange(size)
    return order.locate_many(positions.ravel())[1].reshape(positions.shape)


def sampled_steps(order: Order, size: int) -> np.ndarray:
    """int64 [n]: short runs of steps over the first two epochs or more (of a mixture: twice what it holds)."""
    last = max(min(max(2 * len(order), _SAMPLES), _EPOCHS * len(order)) // size, _BATCHES)
    first = np.linspace(0, last, max(_BATCHES, _SAMPLES // size) // _RUN).astype(np.int64)
    return np.unique(first[:, None] + np.arange(_RUN))


def worst_mixing(order: Order, size: int) -> float:
    """The least `mixing` of batches of `size` over everything that may be `packed`."""
    batches = drawn(order, size, sampled_steps(order, size))
    return min(mixing(order, batches, classes) for classes in packed(order))
