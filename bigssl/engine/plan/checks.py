"""A run on paper: every check of the pre-flight, all failures at once, and what the run would read and hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.data.errors import DataError
from bigssl.data.loading import process
from bigssl.data.loading.workers import AHEAD
from bigssl.data.order.mixing import PROMISED, worst_mixing
from bigssl.data.order.mixture import Mixture
from bigssl.data.order.order import Order
from bigssl.data.order.sequential import SequentialStream
from bigssl.data.order.stream import Stream
from bigssl.engine import resume, zero
from bigssl.engine.constraints import check_constraints
from bigssl.engine.groups import check_groups
from bigssl.engine.plan import data as plan_data
from bigssl.engine.plan import folder, preflight
from bigssl.engine.plan.activations import Activations, OnPaper
from bigssl.engine.plan.cards.advise import Advice, advise
from bigssl.engine.plan.cards.table import Card
from bigssl.engine.plan.evaluation import check_evaluation, refuse_seen
from bigssl.engine.plan.facts import facts, refuse_unlike_checkpoint
from bigssl.engine.plan.groups import GroupRow, group_rows
from bigssl.engine.plan.look import with_shards
from bigssl.engine.plan.memory import Memory, large_bucket, memory, too_much
from bigssl.engine.plan.order import Reading, lanes_that_keep, refuse_twice, simulate
from bigssl.engine.plan.pairing import begin_from, reports_of_folders
from bigssl.engine.plan.passes import examine
from bigssl.engine.plan.sources import source_order, split_batch
from bigssl.engine.stepping.split import (
    check_cached,
    check_passes,
    check_weighing,
    notes_of_cached,
    notes_of_queue,
)
from bigssl.objectives.base import exported_heads

T = TypeVar("T")
STAGES = (0, 1, 2, 3)


@dataclass
class Paper:
    """What `bigssl plan` found. failures: what would fail, with the smallest change that passes; warnings: what would
    run badly; notes: what to know. All sizes in bytes."""

    world: int
    per_node: int
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    batch: dict[str, int] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    groups: list[GroupRow] = field(default_factory=list)
    memory: dict[int, Memory] = field(default_factory=dict)
    activations: Activations | None = None
    advice: Advice | None = None
    host: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)

    def attempt(self, check: Callable[..., T], *arguments: Any) -> T | None:
        """What `check` returns; None, and a failure noted, where it refuses."""
        try:
            return check(*arguments)
        except (ConfigError, DataError) as error:
            self.failures += str(error).splitlines()
            return None


def draft(
    recipe: Recipe, world: int, *, per_node: int, device_bytes: int | None, change: Sequence[str] = (),
    card: Card | None = None,
) -> Paper:  # fmt: skip
    """Check and simulate `recipe` on `world` ranks, `per_node` on a node; no GPU, no process group, no payload.

    device_bytes: what a rank's device holds; more is a failure. None: unknown. change: as for `preflight.plan`.
    card: for which stage and micro-batch are recommended.
    """
    process.use_data_settings(recipe.data)
    paper = Paper(world, per_node)
    recipe = paper.attempt(resume.taken_over, recipe) or recipe
    shape = paper.attempt(split_batch, recipe, world)
    settings_fit = paper.attempt(_checked_zero, recipe)
    there = paper.attempt(folder.check_folder, recipe)
    paper.attempt(folder.refuse_foreign, recipe)
    paper.attempt(preflight.refuse_secrets, recipe)
    paper.attempt(resume.refuse_changed_recipe, recipe, change)
    networks = paper.attempt(OnPaper, recipe)
    if networks is None:
        return paper
    paper.notes += beginning.notes() if (beginning := begin_from(recipe)) is not None else []
    paper.notes += reports_of_folders(recipe, networks.towers.values())
    groups_fit = paper.attempt(check_groups, networks.objective, recipe)
    paper.groups = group_rows(networks.objective, recipe.optim) if groups_fit else []
    paper.attempt(resume.refuse_changed_length, recipe, networks.objective, change)
    paper.notes += paper.attempt(resume.notes_of_length, recipe, networks.objective) or []
    paper.attempt(check_constraints, networks.objective)
    paper.attempt(check_cached, recipe, networks.objective)
    paper.attempt(check_weighing, recipe, networks.objective)
    paper.attempt(_evaluation, recipe, networks)
    paper.attempt(preflight.check_cache, recipe)
    sizes = paper.attempt(preflight.batch_sizes, recipe, networks.objective) or {}
    if card is not None and sizes and (advice := paper.attempt(advise, recipe, networks, world, card)) is not None:
        paper.advice = advice
        paper.failures += [advice.failure] if advice.failure else []
    parts = shape[1] * world if shape else 1
    found = {name: paper.attempt(source_order, recipe, name, size, parts) for name, size in sizes.items()}
    orders = {name: order for name, order in found.items() if order is not None}
    if shape and sizes and len(orders) == len(sizes):
        paper.attempt(check_passes, recipe, networks.objective, sizes, shape[1])
        paper.notes += notes_of_cached(recipe, networks.objective, shape[1])
        paper.notes += notes_of_queue(networks.objective, orders)
        paper.attempt(preflight.check_draws, networks.objective, orders)
        mine = facts(shape[1], world, orders, networks.towers, networks.objective)
        paper.attempt(refuse_unlike_checkpoint, recipe, mine)
    _data(paper, recipe, orders)
    _look(paper, recipe, networks, orders, sizes, shape[1] if shape else 1)
    if shape is None or len(orders) < len(sizes) or not settings_fit or not groups_fit:
        return paper
    paper.batch = {"size": recipe.batch.size, "micro": shape[0], "accum": shape[1], "world": world}
    _reading(paper, recipe, orders, sizes)
    _memory(paper, recipe, networks, {name: size // parts for name, size in sizes.items()}, shape[1], device_bytes)
    _host(paper, recipe, orders, preflight.drawing(networks.objective))
    _disk(paper, recipe, networks, writable=bool(there))
    return paper


def _evaluation(recipe: Recipe, networks: OnPaper) -> None:
    towers = preflight.evaluated_towers(networks.objective, networks.towers)
    check_evaluation(recipe, towers, exported_heads(networks.objective))


def _checked_zero(recipe: Recipe) -> bool:
    zero.check_zero(recipe)
    return True


def _data(paper: Paper, recipe: Recipe, orders: Mapping[str, Order]) -> None:
    warnings, notes = plan_data.duplicates(orders)
    paper.warnings += warnings
    paper.notes += notes
    paper.attempt(refuse_seen, recipe, {name: order.indexes.values() for name, order in orders.items()})


def _look(
    paper: Paper, recipe: Recipe, networks: OnPaper, orders: Mapping[str, Order], sizes: Mapping[str, int], accum: int
) -> None:
    there, notes = with_shards(orders)
    trained, numbers = (networks.objective, networks.towers), lambda: preflight.build_networks(recipe)
    looked = examine(recipe, trained, there, sizes, accum, numbers)
    paper.failures += looked.failures
    paper.warnings += looked.warnings
    paper.notes += notes


def _reading(paper: Paper, recipe: Recipe, orders: Mapping[str, Order], sizes: Mapping[str, int]) -> None:
    for name, order in orders.items():
        if isinstance(order, SequentialStream):
            shards = len(order.index.shards)
            mixed = f"{worst_mixing(order, sizes[name]):.0%} of the entropy of random batches if it is sorted by class"
            paper.warnings.append(
                f"data.sources.{name}.sequential: each of {paper.world} ranks reads all {shards} shards, and batches "
                f"have {mixed}; run `bigssl shards index`"
            )
            continue
        reading = simulate(order, sizes[name], paper.world, paper.per_node)
        seen = recipe.steps * sizes[name]
        row = dataclasses.asdict(reading) | {
            "batch": sizes[name],
            "lanes": _lanes(order),
            "mixing": worst_mixing(order, sizes[name]),
            "epochs": seen / len(order),
            "rank_imbalance": reading.rank_bytes.imbalance,
            "shard_imbalance": reading.rank_shards.imbalance,
            "own": reading.own,
        }
        if isinstance(order, Mixture):
            shares = [weight / order.schedule.total for weight in order.schedule.weights]
            row["mix"] = {
                dataset: {"share": share, "samples": len(stream), "epochs": seen * share / len(stream)}
                for (dataset, stream), share in zip(order.parts.items(), shares, strict=True)
            }
        paper.sources[name] = row
        paper.attempt(refuse_twice, name, reading.repeated)
        texts = [*_unmixed(row["mixing"], sizes[name]), *_uneven(paper, recipe, name, order, reading)]
        paper.warnings += [f"data.sources.{name}: {text}" for text in texts]


def _lanes(order: Order) -> int:
    """Lanes of a source; of a mixture, those of the dataset with the fewest."""
    streams = order.parts.values() if isinstance(order, Mixture) else [order]
    return min(stream.lanes for stream in streams if isinstance(stream, Stream))


def _unmixed(mixing: float, size: int) -> list[str]:
    if mixing >= PROMISED:
        return []
    return [
        f"if it was packed class by class, the classes in a batch have {mixing:.0%} of the entropy of those in random "
        f"batches; data.lanes={1 << (size - 1).bit_length()} mixes them, or pack it anew with `bigssl shards pack`"
    ]


def _uneven(paper: Paper, recipe: Recipe, name: str, order: Order, reading: Reading) -> list[str]:
    """Warnings about who reads what, each with the change that mends it."""
    world, nodes, texts = paper.world, -(-paper.world // paper.per_node), []
    size, lanes = recipe.data.sources[name].batch or recipe.batch.size, _lanes(order)
    if reading.shards < world:
        texts.append(f"{reading.shards} shards for {world} ranks: several ranks read each; pack >= {world} shards")
    if not reading.own and not isinstance(order, Mixture):
        other = lanes_that_keep(len(order), lanes, size, world)
        change = f"; data.lanes={other} lets each keep its own" if other and other != lanes else ""
        texts.append(
            f"a rank opens {reading.rank_shards.mean:.1f} shards, its share is {reading.rank_share:.1f}, since {lanes} "
            f"lanes, steps of {size} samples and {world} ranks do not divide one another{change}"
        )
    if nodes > 1 and reading.node_shards.mean > 0.9 * reading.shards:
        texts.append(f"a node opens {reading.node_shards.mean:.0f} of {reading.shards} shards: nearly all of the data")
    if reading.rank_bytes.imbalance > 1.2:
        texts.append(f"the busiest rank reads {reading.rank_bytes.imbalance:.2f} times the mean of all ranks")
    return texts


def _memory(paper: Paper, recipe: Recipe, networks: OnPaper, micro: dict[str, int], accum: int,
            device_bytes: int | None) -> None:
    bf16 = recipe.precision != "fp32"
    if recipe.precision == "auto":
        paper.notes.append("precision: auto; planned as bf16, which every device of a cluster computes in")
    trained = [p.numel() for p in networks.objective.parameters() if p.requires_grad]
    paper.parameters = {name: sum(p.numel() for p in t.parameters()) for name, t in networks.towers.items()}
    paper.parameters |= {"total": sum(p.numel() for p in networks.objective.parameters()), "trained": sum(trained)}
    paper.activations = networks.activations(micro, bf16=bf16)
    for name, reason in paper.activations.unknown.items():
        paper.warnings.append(f"memory: activations of {name} are unknown ({reason}); measure them")
    for stage in STAGES:
        held = memory(networks.objective, recipe, stage=stage, world=paper.world, accum=accum, bf16=bf16)
        estimate = {"activations (estimate)": paper.activations.bytes + paper.activations.batch}
        paper.memory[stage] = dataclasses.replace(held, device=held.device | estimate)
    paper.warnings += large_bucket(networks.objective, recipe)
    if device_bytes is not None and paper.memory[recipe.zero.stage].total > device_bytes:
        paper.failures.append(too_much(paper.memory, networks.objective, recipe, micro, accum, device_bytes))


def _host(paper: Paper, recipe: Recipe, orders: Mapping[str, Order], drawn: Mapping[str, str]) -> None:
    """Memory of a rank's loader processes: batches, sidecars of the shards they open, ranges read ahead."""
    paper.notes += [
        f"data.sources.{name}: each sample that {task} draws beside another is one more read from anywhere in the "
        f"dataset, which the bytes and shards per rank leave out"
        for name, task in drawn.items()
    ]
    assert paper.activations is not None
    processes, opened = max(recipe.data.workers, 1), 0
    for name, row in paper.sources.items():
        share = 1 if name in drawn else row["rank_shards"]["most"] / row["shards"]
        samples = round(share * row["samples"])
        opened += plan_data.sidecar_bytes(orders[name], samples, cached=recipe.data.remote.cache is not None)
    remote = any(order.remote for order in orders.values())
    paper.host = {
        "loader processes": recipe.data.workers,
        "networks, before the first step": paper.memory[recipe.zero.stage].preparation,
        "batches prepared ahead": max(recipe.data.workers * AHEAD, 1) * paper.activations.batch,
        "sidecars (at most)": processes * opened,
        "remote shards read ahead (at most)": processes * recipe.data.remote.ahead_mb * 2**20 if remote else 0,
        **paper.memory[recipe.zero.stage].host,
    }


def _disk(paper: Paper, recipe: Recipe, networks: OnPaper, writable: bool) -> None:
    paper.disk = folder.room(networks.objective, recipe)
    if not writable:  # one mistake, one line
        return
    paper.attempt(folder.check_room, recipe, paper.disk)
    if recipe.checkpoint.on_full == "wait" and (lack := folder.lack_of_room(recipe, paper.disk)):
        paper.warnings.append(f"{lack}; the run will wait for room")
