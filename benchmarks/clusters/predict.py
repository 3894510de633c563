"""From a recipe, a cluster and what was measured, a row for each number of GPUs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from bigssl.config.recipe import Recipe
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective
from bigssl.objectives.joint import Joint
from clusters.law import Cluster, Collective
from clusters.measured import Fitted
from clusters.paper import NORMS, Counts, OnShapes
from clusters.profiles import SAMPLE_BYTES, SHARD, SPREAD, UTILISATION, WORKER
from clusters.step import SMALL, Parts, Work, parts_of, save_seconds

ADVICE = {
    "host": "the host issues operators slower than the GPU runs them: a larger micro-batch, or `compile`",
    "statistics": "small sums of BatchNorm and statistics, latency of each: fewer, larger micro-batches; a network "
    "without BatchNorm; a faster network does not help",
    "gather": "embeddings of all ranks, more with each GPU: smaller `dim`, fewer GPUs with larger batch.accum",
    "zero": "gradients after backward: more samples between two updates (batch.accum, or micro-batch), "
    "zero.options.overlap_comm=true with a reduce_bucket_size of a fraction of the gradients, a faster network",
    "stragglers": "the slowest rank of each step: clocks, other jobs, uneven data; fewer, longer steps",
    "data workers": "data.workers, or cheaper augmentation",
    "data node": "bytes/s of a node from the store: a local copy (data.remote.cache), smaller samples",
    "data store": "bytes/s of the store: a local copy (data.remote.cache), smaller samples, more stores",
    "data opens": "opens/s of the store: larger shards",
    "checkpoint": "checkpoint.every, faster store",
    "": "nothing above 1 % of a step",
}


@dataclass(frozen=True)
class Settings:
    """What is assumed of a run. mfu: None for what `UTILISATION` says. strong: the recipe's batch whatever the number
    of GPUs; else the samples of a GPU stay as on `base` GPUs."""

    workers: int
    mfu: float | None = None
    strong: bool = False
    base: int = 8
    sample_bytes: float | None = None
    worker_rate: float | None = None


@dataclass(frozen=True)
class Row:
    """recipe at `gpus`: Parts of its step, its split, its efficiency against one GPU alone with no waits."""

    recipe: str
    gpus: int
    micro: int
    accum: int
    parts: Parts
    efficiency: float
    rate: float
    limit: str
    start: float

    @property
    def advice(self) -> str:
        return ADVICE[self.limit]


def split(recipe: Recipe, shapes: OnShapes, cluster: Cluster, settings: Settings) -> tuple[int, int]:
    """(samples a GPU and pass, passes) on `settings.base` GPUs: the recipe's, in more passes where 9/10 of a GPU's
    memory does not hold one."""
    accum = recipe.batch.accum or 1
    micro = max(1, recipe.batch.size // (settings.base * accum))
    while micro > 1 and shapes.held + micro * shapes.activations > 0.9 * cluster.memory:
        micro, accum = -(-micro // 2), accum * 2
    return micro, accum


def split_at(recipe: Recipe, world: int, least: tuple[int, int], settings: Settings) -> tuple[int, int] | None:
    """The split of `world` GPUs; None where there are fewer samples than GPUs."""
    micro, accum = least
    if not settings.strong:
        return micro, accum
    mine = recipe.batch.size // world
    if not mine:
        return None
    accum = max(1, math.ceil(mine / micro))
    return mine // accum, accum


def work_of(recipe: Recipe, shapes: OnShapes, cluster: Cluster, world: int, micro: int, accum: int, settings: Settings,
            fitted: Fitted | None = None) -> Work:  # fmt: skip
    """What a rank does in a step: compute as it was measured, else of FLOPs and operators."""
    counts = shapes.at(world, micro)
    rate = settings.worker_rate or (fitted and fitted.readers) or WORKER[kind_of_sample(shapes)]
    if fitted is not None:
        one, forward = fitted.passes(micro), fitted.forward
        if cluster.peak:  # a loss that compares with all ranks' rows has more to do
            one += device_seconds(counts, shapes, cluster, settings)
            one -= device_seconds(shapes.at(1, micro), shapes, cluster, settings)
        update = fitted.update
        spread = fitted.spread
    else:
        one = max(device_seconds(counts, shapes, cluster, settings), host_seconds(counts, cluster))
        forward = 1 / 3
        update = update_seconds(shapes, cluster)
        spread = SPREAD
    if recipe.batch.cached and accum > 1:  # a second forward pass
        one *= 1 + forward
        forward = 2 * forward / (1 + forward)
    sliced = 1 / world if shapes.stage else 1.0
    own, taught = shapes.trained / max(shapes.trained + shapes.teachers, 1), shapes.teachers / max(
        shapes.trained + shapes.teachers, 1)  # fmt: skip
    options = shapes.options(world)
    many = options["use_multi_rank_bucket_allreduce"] or not options["reduce_scatter"]
    size = settings.sample_bytes or (fitted and fitted.sample_bytes) or float(SAMPLE_BYTES[kind_of_sample(shapes)])
    return Work(
        passes=accum * one, update=update * (own * sliced + taught), backward=one * (1 - forward), accum=accum,
        collectives=tuple(step_collectives(counts, accum, cached=recipe.batch.cached)), stage=shapes.stage,
        trained=shapes.trained, weights=shapes.weights, bucket=4.0 * options["reduce_bucket_size"],
        overlap=bool(options["overlap_comm"]) and shapes.stage > 0, slices=not many, layers=shapes.layers,
        samples=float(micro * accum), sample_bytes=size,
        samples_per_open=(fitted and fitted.samples_per_open) or SHARD / size, readers=rate * settings.workers,
        whole=shapes.whole, sliced=shapes.sliced, every=recipe.checkpoint.every, spread=spread,
    )  # fmt: skip


def device_seconds(counts: Counts, shapes: OnShapes, cluster: Cluster, settings: Settings) -> float:
    """Of a pass on the GPU, by its FLOPs."""
    share = settings.mfu or UTILISATION["convolution" if shapes.convolution else "transformer"]
    return sum(counts.flops.values()) / (cluster.peak * share)


def host_seconds(counts: Counts, cluster: Cluster) -> float:
    """Of a pass on the host, by its operators."""
    return counts.operators * cluster.launch


def update_seconds(shapes: OnShapes, cluster: Cluster) -> float:
    """Optimizer and teachers, whole on one rank: AdamW reads four numbers of an element and writes three, a teacher
    reads two and writes one; at the speed of memory."""
    return (7 * shapes.trained + 3 * shapes.teachers) / cluster.memory_speed


def kind_of_sample(shapes: OnShapes) -> str:
    """By which profiles name what a sample is."""
    return "small" if shapes.modality == "image" and shapes.size <= 64 else shapes.modality


def step_collectives(counts: Counts, accum: int, *, cached: bool) -> list[Collective]:
    """Of a whole step. With GradCache the forward's small sums come twice, and what is gathered once is of all."""
    grouped: dict[tuple[str, float, bool], float] = defaultdict(float)
    for (phase, kind, _), size in counts.collectives.items():
        norms = phase == NORMS
        if cached and accum > 1 and size > SMALL and not norms:
            grouped[kind, accum * size, norms] += 1
        else:
            grouped[kind, size, norms] += accum * (2 if cached and accum > 1 and phase != "backward" else 1)
    return [Collective(kind, size, count, norms) for (kind, size, norms), count in grouped.items()]


def rows_of(recipe: Recipe, shapes: OnShapes, cluster: Cluster, worlds: list[int], settings: Settings,
            fitted: Fitted | None = None, start: float = 0.0) -> list[Row]:  # fmt: skip
    """A row for each world that the recipe's batch allows."""
    least = split(recipe, shapes, cluster, settings) if cluster.memory else _as_recipe(recipe, settings)
    alone = work_of(recipe, shapes, cluster, 1, *least, settings, fitted)
    best = alone.samples / (alone.passes + alone.update)
    found = []
    splits = {world: shares for world in worlds if (shares := split_at(recipe, world, least, settings))}
    if splits:
        shapes.examine(max(splits), splits[max(splits)][0])
    for world, shares in splits.items():
        work = work_of(recipe, shapes, cluster, world, *shares, settings, fitted)
        parts = parts_of(work, cluster, world)
        rate = world * work.samples / parts.total
        limit = parts.first_limit()
        limit = f"data {parts.held_by}" if limit == "data" else limit
        if fitted is None and cluster.launch:
            counts = shapes.at(world, shares[0])
            host, device = host_seconds(counts, cluster), device_seconds(counts, shapes, cluster, settings)
            if host > device and host - device > parts.seconds().get(limit.split(" ")[0], 0.0) / shares[1]:
                limit = "host"
        begin = start + world * 2e-3 + save_seconds(work, cluster, world)  # the meeting place greets one after another
        found.append(Row(recipe.name, world, *shares, parts, rate / (world * best), rate, limit, begin))
    return found


def _as_recipe(recipe: Recipe, settings: Settings) -> tuple[int, int]:
    return max(1, recipe.batch.size // (settings.base * (recipe.batch.accum or 1))), recipe.batch.accum or 1


def modalities_of(objective: Objective) -> dict[str, str]:
    """Of each source, what its samples hold: pictures, with texts or without, where any backbone of its task sees."""
    found: dict[str, str] = {}
    for part in [each for each in objective.modules() if isinstance(each, Objective) and not isinstance(each, Joint)]:
        seen = [each.modality for each in part.modules() if isinstance(each, Tower)]
        found |= dict.fromkeys(part.sources(), "image" if "image" in seen else seen[0])
    return found
