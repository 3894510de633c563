"""The findings of `bigssl plan` as text for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from bigssl.engine.plan.cards.said import advice_text, advice_values
from bigssl.engine.plan.checks import Paper
from bigssl.engine.plan.groups import group_table

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def to_json(paper: Paper) -> str:
    """One object; sizes in bytes. Numbers of memory by stage have the stage as key."""
    memory = {
        str(stage): dataclasses.asdict(held) | {"total": held.total} for stage, held in paper.memory.items()
    }
    advice = None if paper.advice is None else advice_values(paper.advice)
    plain = dataclasses.asdict(dataclasses.replace(paper, advice=None))
    return json.dumps(plain | {"memory": memory, "advice": advice}, indent=1)


def to_text(paper: Paper, stage: int) -> str:
    """The verdict, failures, warnings and notes, then tables. `stage`: the recipe's ZeRO stage, which is marked."""
    verdict = f"would fail: {len(paper.failures)} reasons" if paper.failures else "passes"
    nodes = -(-paper.world // paper.per_node)
    lines = [f"{paper.world} ranks on {nodes} nodes: {verdict}, {len(paper.warnings)} warnings"]
    for title, texts in (("FAILS", paper.failures), ("warning", paper.warnings), ("note", paper.notes)):
        lines += [f"{title}: {text}" for text in texts]
    if paper.advice is not None:
        lines += ["", *advice_text(paper.advice)]
    for name, row in paper.sources.items():
        lines += ["", *_source(name, row, paper)]
    if paper.groups:
        lines += ["", *group_table(paper.groups)]
    if paper.memory:
        lines += ["", *_memory(paper, stage), "", *_host(paper)]
    return "\n".join(lines)


def _source(name: str, row: dict[str, Any], paper: Paper) -> Iterator[str]:
    batch, world = paper.batch, paper.world
    yield f"source {name}: {row['samples']:,} samples in {row['shards']:,} shards, {size(row['bytes'])}"
    share = row["batch"] // (world * batch["accum"])
    yield f"  step      {row['batch']:,} samples = {share} x {batch['accum']} passes x {world} ranks"
    yield f"  epoch     {row['steps']:,.1f} steps; the run is {row['epochs']:.2f} epochs"
    for dataset, part in row.get("mix", {}).items():
        yield f"    {dataset}: {part['share']:.1%} of the samples, {part['epochs']:.2f} epochs of {part['samples']:,}"
    lanes = row["lanes"]
    yield f"  lanes     {lanes} ({lanes / world:.2f} a rank, {row['shards'] / lanes:.2f} shards each)"
    yield f"  mixing    {row['mixing']:.1%} of the class entropy of random batches, had it been packed class by class"
    for kind in ("rank", "node"):
        read, opened = row[f"{kind}_bytes"], row[f"{kind}_shards"]
        yield (
            f"  per {kind}  {size(read['least'])} to {size(read['most'])} an epoch, {opened['least']:.0f} to "
            f"{opened['most']:.0f} shards opened"
        )
    if row["repeated"] is not None:
        yield f"  repeats   {row['repeated']} samples come twice in an epoch"
    whose = "each rank reads shards of its own, but for the edges" if row["own"] else "ranks read one another's shards"
    seen = "the whole epoch" if row["share"] == 1 else f"{row['share']:.2%} of the epoch; shards are lower bounds"
    yield f"  balance   bytes {row['rank_imbalance']:.3f}, shards {row['shard_imbalance']:.3f} (most / mean over ranks)"
    yield f"  sharing   a shard is opened by {row['openings']:.2f} ranks: {whose} (simulated: {seen})"


def _memory(paper: Paper, stage: int) -> Iterator[str]:
    counts = ", ".join(f"{name} {count:,}" for name, count in paper.parameters.items())
    yield f"parameters: {counts}"
    stages = sorted(paper.memory)
    heads = [f"stage {s}{'*' if s == stage else ''}" for s in stages]
    yield "memory per rank".ljust(26) + "".join(head.rjust(12) for head in heads) + "   (* the recipe's)"
    for component in paper.memory[stages[0]].device:
        sizes = [size(paper.memory[s].device[component]) for s in stages]
        yield f"  {component}".ljust(26) + "".join(text.rjust(12) for text in sizes)
    built = [size(paper.memory[s].construction) for s in stages]
    yield "  before the first step".ljust(26) + "".join(text.rjust(12) for text in built)
    yield "  most at a time".ljust(26) + "".join(size(paper.memory[s].total).rjust(12) for s in stages)
    if paper.activations is not None:
        yield "  activations: bytes autograd keeps in one forward pass of a micro-batch, counted on shapes, + the batch"
        for name, reason in paper.activations.partly.items():
            yield f"    {name}: counted up to its loss ({reason})"


def _host(paper: Paper) -> Iterator[str]:
    yield "host memory per rank"
    for name, value in paper.host.items():
        yield f"  {name}".ljust(36) + (str(value) if name == "loader processes" else size(value)).rjust(12)
    if disk := paper.disk:
        yield f"checkpoints: {size(disk['checkpoint'])} each, at most {disk['kept at most']} at once"
        held = f", and {size(disk['held'])} in those of this run" if disk["held"] else ""
        yield f"  need {size(disk['needed'])}, free {size(disk['free'])}{held}"


def size(value: float) -> str:
    """Bytes with a binary unit."""
    power = 0
    while abs(value) >= 1024 and power < len(UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.0f} {UNITS[power]}" if power == 0 else f"{value:.2f} {UNITS[power]}"
