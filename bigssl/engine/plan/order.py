"""Who reads what: the real order of an epoch, dealt out to the ranks on paper. Needs the manifests only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigssl.config.errors import ConfigError
from bigssl.data.order.lanes import lane_pieces, lanes_of
from bigssl.data.order.order import Order
from bigssl.data.order.sequential import SequentialStream

EXACT = 4_000_000  # an epoch of up to so many samples is gone through whole
SAMPLED = 150_000  # of a longer one so many, in steps spread evenly over it


@dataclass(frozen=True)
class Spread:
    """One quantity over ranks or nodes."""

    least: float
    mean: float
    most: float

    @property
    def imbalance(self) -> float:
        """The most over the mean: 1 is even."""
        return self.most / self.mean if self.mean else 1.0


@dataclass(frozen=True)
class Reading:
    """What the ranks read of one source in an epoch (of a mixture: as many positions as it holds samples).

    Attributes:
        steps: steps of an epoch.
        share: of the epoch that was gone through; below 1, shards opened are a lower bound.
        bytes: size of all shards. rank_bytes, node_bytes: read by a rank or node, with a sample counted as the mean of
            its shard (windows that overlap are more than the shards together).
        rank_shards, node_shards: shards opened by a rank or node. openings: ranks that open a shard, on average.
        rank_share: shards a rank would open if each had its own, at least 1.
        repeated: samples of an epoch that came twice (a fault: 0 by construction), or None where not all were seen.
    """

    samples: int
    shards: int
    bytes: int
    steps: float
    share: float
    rank_bytes: Spread
    node_bytes: Spread
    rank_shards: Spread
    node_shards: Spread
    openings: float
    rank_share: float
    repeated: int | None

    @property
    def own(self) -> bool:
        """Whether each rank reads shards of its own, but for the edges: a shard may lie across two ranks' lanes."""
        return self.rank_shards.mean <= 1.1 * self.rank_share + 1.5


def simulate(order: Order, size: int, world: int, per_node: int) -> Reading:
    """Deal an epoch of `order` out in steps of `size` samples to `world` ranks, `per_node` of them on a node."""
    positions, ranks, share = _dealt(order, size, world)
    epochs, numbers = order.locate_many(positions)
    shards = [shard for index in order.indexes.values() for shard in index.shards]
    counts = np.array([shard.samples for shard in shards])
    lengths = np.concatenate([index.bytes_of_samples() for index in order.indexes.values()])
    opened = np.searchsorted(np.cumsum(counts), numbers, side="right")
    weights = lengths[opened] / share
    nodes = ranks // per_node
    rank_shards = _distinct(ranks, opened, world, len(shards))
    return Reading(
        samples=len(order),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        steps=len(order) / size,
        share=share,
        rank_bytes=_spread(np.bincount(ranks, weights, world)),
        node_bytes=_spread(np.bincount(nodes, weights, -(-world // per_node))),
        rank_shards=rank_shards,
        node_shards=_distinct(nodes, opened, -(-world // per_node), len(shards)),
        openings=rank_shards.mean * world / len(shards),
        rank_share=max(1.0, len(shards) / world),
        repeated=_repeats(epochs, numbers) if share == 1 else None,
    )


def _dealt(order: Order, size: int, world: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Positions of the first epoch (or of steps spread over it), the rank of each, and their share of the epoch."""
    steps = np.arange(-(-len(order) // size))
    if len(order) > EXACT:
        steps = np.unique(np.linspace(0, len(order) // size - 1, max(8, SAMPLED // size)).astype(np.int64))
    positions = np.concatenate([order.global_batch(int(step), size) for step in steps])
    ranks = np.tile(np.arange(size) // (size // world), len(steps))
    inside = positions < len(order)
    return positions[inside], ranks[inside], float(inside.sum() / len(order))


def _repeats(epochs: np.ndarray, numbers: np.ndarray) -> int:
    return len(numbers) - len(np.unique(epochs * (numbers.max() + 1) + numbers))


def repeats(order: Order) -> int | None:
    """Samples of the first epoch that come twice; None where it is not gone through: it is long, or has no index."""
    if isinstance(order, SequentialStream) or len(order) > EXACT:
        return None
    return _repeats(*order.locate_many(np.arange(len(order))))


def refuse_twice(name: str, repeated: int | None) -> None:
    """Refuse an order that gives samples twice in an epoch."""
    if repeated:
        raise ConfigError(f"data.sources.{name}: {repeated} samples come twice in an epoch; this is a fault of bigssl")


def _distinct(owners: np.ndarray, items: np.ndarray, groups: int, kinds: int) -> Spread:
    """Different items per owner."""
    pairs = np.unique(owners * kinds + items)
    return _spread(np.bincount(pairs // kinds, minlength=groups))


def _spread(values: np.ndarray) -> Spread:
    return Spread(float(values.min()), float(values.mean()), float(values.max()))


def lanes_that_keep(samples: int, lanes: int, size: int, world: int) -> int | None:
    """The least number of lanes, `lanes` or more, with which each rank stays in its own part of the list, or None."""
    odd = lane_pieces(world)[0]
    choices = (odd << level for level in range(64))
    fitting = (n for n in choices if n >= lanes and n == lanes_of(samples, n) and keep(n, size, world))
    return next(fitting, None)


def keep(lanes: int, size: int, world: int) -> bool:
    """Whether every step of `size` takes the same number of samples from each of `world` equal parts of the list."""
    return any(number % world == 0 and size % number == 0 for number in lane_pieces(lanes))
