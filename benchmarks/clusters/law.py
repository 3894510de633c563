"""The law of collectives and of waiting: seconds of what ranks exchange, and of what hides behind computing.

Collectives (n bytes whole, W ranks, B bytes/s of the slowest place that a ring passes; a turn is the latency of the
hops of a ring, once round, of which one a node leaves it):

    all-reduce                   min(2 turns + 2 (W-1)/W n/B, 2 log-depth + 2 n/B)    ring or tree, whichever is faster
    all-gather, reduce-scatter   turn + (W-1)/W n/B                                   ring
    broadcast                    log-depth + n/B
    reduce, to owners of slices  turns for as many owners as a bucket has + (W-1)/W n/B
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NORMAL = statistics.NormalDist()


@dataclass(frozen=True)
class Cluster:
    """Facts of a cluster. Bandwidths in bytes/s, one direction; latencies in seconds a hop of a collective.

    per_node: GPUs. peak: 16-bit FLOP/s of a GPU. memory: its bytes; memory_speed: of its memory. inner: of a GPU to the
    others of its node. outer: of a node to the others, all its cards. reading, writing: of a node from and to the
    store; store_read, store_write: of the store over all nodes; opens: files a second that the store opens. stream:
    that one rank writes and hashes. launch: host seconds to issue one operator. cores: of a machine whose ranks compute
    on cores, with a thread each; 0 where each rank has a GPU.
    """

    name: str
    per_node: int
    peak: float
    memory: float
    memory_speed: float
    inner: float
    inner_latency: float
    outer: float
    outer_latency: float
    reading: float
    writing: float
    store_read: float
    store_write: float
    opens: float
    stream: float
    launch: float
    cores: int = 0
    sources: str = ""

    def nodes(self, world: int) -> int:
        return -(-world // self.per_node)

    def crowding(self, world: int) -> float:
        """How many ranks want each core that is there for one, at least 1. Only machines that compute on cores say
        how many they have."""
        return max(1.0, min(world, self.per_node) / self.cores) if self.cores else 1.0


@dataclass(frozen=True)
class Collective:
    """bytes: of the whole result of an all-gather, the whole input of a reduce-scatter, else of the tensor. count:
    how many in a step. norms: of a BatchNorm's moments."""

    kind: str
    bytes: float
    count: float = 1.0
    norms: bool = False


def turn(cluster: Cluster, world: int) -> float:
    """Latency of the hops of a ring, once round."""
    nodes = cluster.nodes(world)
    if nodes == 1:
        return (world - 1) * cluster.inner_latency
    return (world - nodes) * cluster.inner_latency + (nodes - 1) * cluster.outer_latency


def depth(cluster: Cluster, world: int) -> float:
    """Latency from a leaf of a tree to its root."""
    nodes = cluster.nodes(world)
    inside = math.ceil(math.log2(min(world, cluster.per_node)))
    return inside * cluster.inner_latency + math.ceil(math.log2(nodes)) * cluster.outer_latency


def bandwidth(cluster: Cluster, world: int) -> float:
    """Bytes/s of a ring over `world` ranks: rings share the cards of a node between them."""
    return cluster.inner if cluster.nodes(world) == 1 else min(cluster.inner, cluster.outer)


def seconds_of(what: Collective, cluster: Cluster, world: int) -> float:
    """One collective of `what`; 0 for a single rank.

    Raises:
        ValueError: for a kind that has no law here.
    """
    if world == 1:
        return 0.0
    sent, once, speed = (world - 1) / world * what.bytes, turn(cluster, world), bandwidth(cluster, world)
    crowd = cluster.crowding(world)
    if what.kind == "all_reduce":
        ring = 2 * once + 2 * sent / speed
        return crowd * min(ring, 2 * depth(cluster, world) + 2 * what.bytes / speed)
    if what.kind in ("all_gather", "reduce_scatter"):
        return crowd * (once + sent / speed)
    if what.kind == "broadcast":
        return crowd * (depth(cluster, world) + what.bytes / speed)
    known = "all_reduce, all_gather, reduce_scatter, broadcast"
    raise ValueError(f"no law for the collective {what.kind!r}; there are: {known}")


def exposed(ready: Sequence[float], pieces: Sequence[float], end: float) -> float:
    """Seconds after `end` until the last of `pieces` (seconds each, one after the other, in order) is through, where
    piece i may not begin before `ready[i]`."""
    left, last = sum(pieces), end
    for when, piece in zip(ready, pieces, strict=True):
        last = max(last, when + left)
        left -= piece
    return last - end


def bucketed(total: float, bucket: float, backward: float, kind: str, cluster: Cluster, world: int, *,
             overlap: bool) -> float:  # fmt: skip
    """Exposed seconds of reducing `total` bytes in buckets, which fill evenly over the seconds of `backward`; without
    `overlap`, each stops it. kind: of a collective, or "reduce" to the owners of slices."""
    count = max(1, math.ceil(total / bucket))
    sizes = [min(bucket, total - n * bucket) for n in range(count)]
    if kind == "reduce":
        sent = (world - 1) / world / bandwidth(cluster, world)
        owners = [max(1.0, world * size / total) for size in sizes]
        once = turn(cluster, world)
        pieces = [cluster.crowding(world) * (n * once + size * sent) for n, size in zip(owners, sizes, strict=True)]
    else:
        pieces = [seconds_of(Collective(kind, size), cluster, world) for size in sizes]
    if not overlap:
        return sum(pieces)
    filled = [backward * min(1.0, (n + 1) * bucket / total) for n in range(count)]
    return exposed(filled, pieces, backward)


def prefetched(compute: float, gather: float, layers: int) -> float:
    """Seconds that `layers` equal layers (`compute` for all) wait for their weights, gathered one after the other
    (`gather` for all) while the layer before computes: for all of the first, and for what takes longer than a layer. To
    fetch further ahead is of no use where layers are equal."""
    return gather / layers + max(0.0, gather - compute) * (layers - 1) / layers


def slowest(spread: float, world: int, points: int = 2000) -> float:
    """E[max of `world` draws] / E[draw] − 1 of a log-normal distribution whose logarithm deviates by `spread`."""
    if spread == 0 or world == 1:
        return 0.0
    middles = ((n + 0.5) / points for n in range(points))
    most = statistics.fmean(math.exp(spread * NORMAL.inv_cdf(u ** (1 / world))) for u in middles)
    return most / math.exp(spread**2 / 2) - 1
