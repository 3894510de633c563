"""The law of our own cost: seconds of a step's parts on a cluster, from what a step does.

One step of W ranks, each with `accum` passes of `micro` samples:

    passes      accum × (time of one forward and backward), beside which the host issues kernels
    update      optimizer and teachers; in slices of 1/W from ZeRO stage 1 on
    collectives what an objective and its BatchNorms exchange: within forward and backward, so never hidden
    zero        gradients (and at stage 3 weights) between ranks; what of it is not hidden behind backward
    stragglers  the ranks meet in every step: the slowest of W draws of a log-normal distribution of step times
    data        what a rank's readers take longer than all of the above
    checkpoint  seconds of a save over the steps between two

Collectives (n bytes whole, W ranks, B bytes/s of the slowest place that a ring passes; a turn is the latency of a ring's
hops, once round, of which one a node leaves it):

    all-reduce                   min(2 turns + 2 (W−1)/W n/B, 2 log-depth + 2 n/B)      ring or tree (NCCL takes the faster)
    all-gather, reduce-scatter   turn + (W−1)/W n/B                                     ring
    broadcast                    log-depth + n/B
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    how many in a step."""

    kind: str
    bytes: float
    count: float = 1.0


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
    raise ValueError(f"no law for the collective {what.kind!r}; there are: all_reduce, all_gather, reduce_scatter, broadcast")


def exposed(ready: Sequence[float], pieces: Sequence[float], end: float) -> float:
    """Seconds after `end` until the last of `pieces` (seconds each, one after the other, in order) is through, where
    piece i may not begin before `ready[i]`."""
    left, last = sum(pieces), end
    for when, piece in zip(ready, pieces, strict=True):
        last = max(last, when + left)
        left -= piece
    return last - end


def bucketed(total: float, bucket: float, backward: float, cost: Collective, cluster: Cluster, world: int, *,
             overlap: bool) -> float:  # fmt: skip
    """Exposed seconds of reducing `total` bytes in buckets, which fill evenly over the seconds of `backward`; without
    `overlap`, each stops it."""
    count = max(1, math.ceil(total / bucket))
    sizes = [min(bucket, total - n * bucket) for n in range(count)]
    pieces = [seconds_of(Collective(cost.kind, size), cluster, world) for size in sizes]
    if not overlap:
        return sum(pieces)
    filled = [backward * min(1.0, (n + 1) * bucket / total) for n in range(count)]
    return exposed(filled, pieces, backward)


def prefetched(compute: float, gather: float, layers: int, ahead: int) -> float:
    """Seconds that `layers` equal layers (`compute` for all) wait for their weights, gathered one after the other
    (`gather` for all), at most `ahead` layers before the one that computes."""
    here, done, starts = 0.0, 0.0, list[float]()
    for n in range(layers):
        allowed = starts[n - ahead] if n >= ahead else 0.0
        done = max(done, allowed) + gather / layers
        starts.append(max(here, done))
        here = starts[-1] + compute / layers
    return here - compute


def slowest(spread: float, world: int, points: int = 2000) -> float:
    """E[max of `world` draws] / E[draw] − 1 of a log-normal distribution whose logarithm deviates by `spread`."""
    if spread == 0 or world == 1:
        return 0.0
    middles = ((n + 0.5) / points for n in range(points))
    most = statistics.fmean(math.exp(spread * NORMAL.inv_cdf(u ** (1 / world))) for u in middles)
    return most / math.exp(spread**2 / 2) - 1


@dataclass(frozen=True)
class Work:
    """What one rank does in a step.

    passes, update: seconds of compute. backward: of one pass. accum: passes. collectives: of the objective, in one step.
    stage: of ZeRO. trained, weights: bytes of gradients and of all weights. bucket: bytes. overlap: of reducing with
    backward. layers, ahead: of stage 3. samples: a step and rank. sample_bytes, samples_per_open: of shards.
    readers: samples/s that the loader workers of one rank prepare. whole, sliced: bytes of a checkpoint that rank 0
    writes, and that all ranks share. every: steps between two. spread: of log step time.
    """

    passes: float
    update: float
    backward: float
    accum: int
    collectives: tuple[Collective, ...]
    stage: int
    trained: float
    weights: float
    bucket: float
    overlap: bool
    layers: int
    ahead: int
    samples: float
    sample_bytes: float
    samples_per_open: float
    readers: float
    whole: float
    sliced: float
    every: int
    spread: float


SMALL = 256 * 1024
"""Bytes below which a collective counts as one of statistics (BatchNorm, metrics), not of embeddings."""


@dataclass(frozen=True)
class Parts:
    """Seconds of one step by cause; `data` knows what holds it up."""

    compute: float
    statistics: float
    gather: float
    zero: float
    stragglers: float
    data: float
    checkpoint: float
    held_by: str = ""
    traffic: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.seconds().values())

    def seconds(self) -> dict[str, float]:
        names = ("compute", "statistics", "gather", "zero", "stragglers", "data", "checkpoint")
        return {name: getattr(self, name) for name in names}

    def first_limit(self) -> str:
        """The largest part beside compute; "" where all of them are under a hundredth of the step."""
        name, most = max(((n, s) for n, s in self.seconds().items() if n != "compute"), key=lambda pair: pair[1])
        return name if most > 0.01 * self.total else ""


def zero_traffic(work: Work, world: int) -> list[Collective]:
    """What ZeRO sends in a step; as DeepSpeed 0.19 does it. Stages 1 and 2 all-reduce gradients (its default, though
    each rank needs a slice), stage 2 in every pass, and gather what was updated; stage 3 gathers weights in each forward
    and backward, and scatters gradients. Two small sums, of the norm and of what overflowed, from stage 1 on."""
    if world == 1:
        return []
    norm = [Collective("all_reduce", 8, 2)] if work.stage else []
    gradients = Collective("all_reduce", work.trained, work.accum if work.stage == 2 else 1)
    if work.stage == 0:
        return [gradients]
    if work.stage < 3:
        return [gradients, Collective("all_gather", work.trained), *norm]
    return [Collective("all_gather", work.weights, 2 * work.accum),
            Collective("reduce_scatter", work.trained, work.accum), *norm]  # fmt: skip


def zero_seconds(work: Work, cluster: Cluster, world: int) -> float:
    """Exposed seconds of `zero_traffic`."""
    spent = 0.0
    for each in zero_traffic(work, world):
        if each.bytes <= SMALL:
            spent += each.count * seconds_of(each, cluster, world)
        elif work.stage == 3 and each.kind == "all_gather":
            one = seconds_of(Collective(each.kind, each.bytes / work.layers), cluster, world) * work.layers
            forward = work.passes / work.accum - work.backward
            if work.overlap:
                waits = [prefetched(t, one, work.layers, work.ahead) for t in (forward, work.backward)]
                spent += work.accum * sum(waits)
            else:
                spent += each.count * one
        elif each.kind == "all_gather":  # of updated weights: nothing to hide behind
            spent += seconds_of(each, cluster, world)
        else:
            spent += each.count * bucketed(each.bytes, work.bucket, work.backward, each, cluster, world,
                                           overlap=work.overlap)  # fmt: skip
    return spent


def supply(work: Work, cluster: Cluster, world: int) -> dict[str, float]:
    """Samples/s of one rank that each part of the way from the store allows."""
    here = min(world, cluster.per_node)
    return {
        "workers": work.readers / cluster.crowding(world),
        "node": cluster.reading / here / work.sample_bytes,
        "store": cluster.store_read / world / work.sample_bytes,
        "opens": cluster.opens * work.samples_per_open / world,
    }


def save_seconds(work: Work, cluster: Cluster, world: int) -> float:
    """One checkpoint: rank 0 writes its whole part and its slice, the nodes and the store take all, ranks meet twice
    (all files are there; the folder has its name)."""
    share = work.sliced / world
    here = min(world, cluster.per_node)
    barrier = 2 * seconds_of(Collective("all_reduce", 4), cluster, world)
    return barrier + max(
        (work.whole + share) / cluster.stream,
        (work.whole + here * share) / cluster.writing,
        (work.whole + work.sliced) / cluster.store_write,
    )


def parts_of(work: Work, cluster: Cluster, world: int) -> Parts:
    """A step of `world` ranks."""
    crowd = cluster.crowding(world)
    compute = crowd * (work.passes + work.update)
    groups = {"statistics": 0.0, "gather": 0.0}
    for each in work.collectives:
        name = "statistics" if each.bytes <= SMALL and each.kind == "all_reduce" else "gather"
        groups[name] += each.count * seconds_of(each, cluster, world)
    zero = zero_seconds(work, cluster, world)
    late = slowest(work.spread, world) * compute
    busy = compute + sum(groups.values()) + zero + late
    name, rate = min(supply(work, cluster, world).items(), key=lambda pair: pair[1])
    data = max(0.0, work.samples / rate - busy)
    saving = save_seconds(work, cluster, world) / work.every
    traffic = {"zero": sum(c.bytes * c.count for c in zero_traffic(work, world)),
               "objective": sum(c.bytes * c.count for c in work.collectives) if world > 1 else 0.0}  # fmt: skip
    return Parts(compute, groups["statistics"], groups["gather"], zero, late, data, saving, name if data else "", traffic)
