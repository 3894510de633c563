"""The law of a step: seconds of its parts on a cluster, from what one rank does in it.

Each of W ranks has `accum` passes a step:

    compute     passes, and the update (optimizer and teachers; in slices of 1/W from ZeRO stage 1 on)
    statistics  small sums of BatchNorms and of what is recorded, within forward and backward, so never hidden
    gather      what an objective exchanges between ranks, in the same way
    zero        gradients (and at stage 3 weights) between ranks; what of it is not hidden behind backward
    stragglers  the ranks meet in every step: the slowest of W draws of a log-normal distribution of step times
    data        what a rank's readers take longer than all of the above
    checkpoint  seconds of a save over the steps between two
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clusters.law import Cluster, Collective, bucketed, prefetched, seconds_of, slowest


@dataclass(frozen=True)
class Work:
    """What one rank does in a step.

    passes, update: seconds of compute. backward: of one pass. accum: passes. collectives: of the objective, in a step.
    stage: of ZeRO. trained, weights: bytes of gradients and of all weights. bucket: bytes. overlap: of reducing with
    backward. slices: at stages 1 and 2 each slice of the gradients is reduced to its owner, instead of all to all.
    layers: of stage 3. samples: a step and rank. sample_bytes, samples_per_open: of shards.
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
    slices: bool
    layers: int
    samples: float
    sample_bytes: float
    samples_per_open: float
    readers: float
    whole: float
    sliced: float
    every: int
    spread: float


SMALL = 256 * 1024
"""Bytes below which a sum counts as one of statistics (BatchNorm, metrics), not of embeddings."""


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


REUSED = 4e9
"""Bytes of weights up to which stage 3 keeps from forward to backward what it gathered (stage3_max_reuse_distance)."""


def zero_traffic(work: Work, world: int) -> list[Collective]:
    """What ZeRO sends in a step, as DeepSpeed 0.19 does it: stages 1 and 2 all-reduce gradients or reduce slices of
    them to their owners, stage 2 in every pass, and gather what was updated; stage 3 gathers weights in each pass and
    scatters gradients. Two small sums, of the norm and of what overflowed, from stage 1 on."""
    if world == 1:
        return []
    norm = [Collective("all_reduce", 8, 2)] if work.stage else []
    if work.stage == 0:
        return [Collective("all_reduce", work.trained)]
    if work.stage < 3:
        kind = "reduce" if work.slices else "all_reduce"
        gradients = Collective(kind, work.trained, work.accum if work.stage == 2 else 1)
        return [gradients, Collective("all_gather", work.trained), *norm]
    gathers = 1 if work.weights <= REUSED else 2
    return [Collective("all_gather", work.weights, gathers * work.accum),
            Collective("reduce_scatter", work.trained, work.accum), *norm]  # fmt: skip


def zero_seconds(work: Work, cluster: Cluster, world: int) -> float:
    """Exposed seconds of `zero_traffic`."""
    spent = 0.0
    for each in zero_traffic(work, world):
        if each.bytes <= SMALL and each.kind == "all_reduce":
            spent += each.count * seconds_of(each, cluster, world)
        elif work.stage == 3 and each.kind == "all_gather":
            one = seconds_of(Collective(each.kind, each.bytes / work.layers), cluster, world) * work.layers
            forward = work.passes / work.accum - work.backward
            beside = [forward, work.backward][: round(each.count / work.accum)]
            waits = [prefetched(t, one, work.layers) if work.overlap else one for t in beside]
            spent += work.accum * sum(waits)
        elif each.kind == "all_gather":  # of updated weights: nothing to hide behind
            spent += seconds_of(each, cluster, world)
        else:
            spent += each.count * bucketed(each.bytes, work.bucket, work.backward, each.kind, cluster, world,
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
        small = each.bytes <= SMALL and each.kind == "all_reduce"
        name = "statistics" if each.norms or small else "gather"
        groups[name] += each.count * seconds_of(each, cluster, world)
    zero = zero_seconds(work, cluster, world)
    late = slowest(work.spread, world) * compute
    busy = compute + sum(groups.values()) + zero + late
    name, rate = min(supply(work, cluster, world).items(), key=lambda pair: pair[1])
    data = max(0.0, work.samples / rate - busy)
    saving = save_seconds(work, cluster, world) / work.every
    traffic = {"zero": sum(c.bytes * c.count for c in zero_traffic(work, world)),
               "objective": sum(c.bytes * c.count for c in work.collectives) if world > 1 else 0.0}  # fmt: skip
    held_by = name if data else ""
    return Parts(compute, groups["statistics"], groups["gather"], zero, late, data, saving, held_by, traffic)
