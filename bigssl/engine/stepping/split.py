"""Whether a loss can be computed of the passes into which a step is split."""

from __future__ import annotations

from collections.abc import Mapping

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.data.order.order import Order
from bigssl.nets.norm import has_batch_norm
from bigssl.objectives.base import Objective
from bigssl.objectives.comparing import Comparing
from bigssl.objectives.joint import Joint


def check_cached(recipe: Recipe, objective: Objective) -> None:
    """Refuse `batch.cached` of a task that has no `compare`. Raises ConfigError."""
    if not recipe.batch.cached:
        return
    for part in _parts(objective).values():
        if isinstance(part, Comparing):
            continue
        raise ConfigError(
            f"batch.cached: value true, but the loss of {_name(part)} is one of each sample, or of one pass at a time; "
            f"allowed: false, or tasks that compare embeddings of a batch (simclr, clip, siglip, moco), in a joint one "
            f"all of them"
        )


def check_weighing(recipe: Recipe, objective: Objective) -> None:
    """Refuse to look at gradients where there are none to be seen. Raises ConfigError."""
    if not isinstance(objective, Joint):
        return
    rule = f"objective.balance.rule: value {objective.weighing.rule!r} looks at the gradients of each part"
    if objective.sees_gradients and recipe.zero.stage == 3:
        raise ConfigError(f"{rule}, but at zero.stage 3 a rank has slices of the parameters only; allowed: zero.stage "
                          "0, 1 or 2, rule uncertainty, or no balance")  # fmt: skip
    if objective.sees_gradients and recipe.batch.cached:
        raise ConfigError(f"{rule}, but with batch.cached the losses are made apart from the networks; allowed: "
                          "batch.cached false, rule uncertainty, or no balance")  # fmt: skip
    if objective.weighing.watch and recipe.batch.cached:
        raise ConfigError(f"objective.watch: value {objective.weighing.watch}, but with batch.cached the losses are "
                          "made apart from the networks; allowed: 0, or batch.cached false")  # fmt: skip


def notes_of_cached(recipe: Recipe, objective: Objective, accum: int) -> list[str]:
    """What is not exact about it."""
    if not recipe.batch.cached or accum == 1 or not has_batch_norm(objective):
        return []
    return [
        f"batch.cached: the loss sees all {accum} passes of a step as one batch, but each BatchNorm of the networks "
        f"normalises by the samples of one pass (of all ranks): not exactly what one pass of {recipe.batch.size} would "
        f"give. Exact are networks without BatchNorm (a vit, heads with norm=false)"
    ]


def notes_of_queue(objective: Objective, orders: Mapping[str, Order]) -> list[str]:
    """Where a task remembers more samples than there are. orders: of the sources, by name."""
    return [
        f"data.sources.{source}: {len(index)} samples, and {_name(part)} remembers {part.most}: {part.remembering}; "
        f"better: {field}.queue={len(index) // 2} or less"
        for field, part in _parts(objective).items() if part.most is not None and part.remembering
        for source in part.sources() if source in orders
        for index in orders[source].indexes.values() if len(orders[source].indexes) == 1 and len(index) < part.most
    ]  # fmt: skip


def check_passes(recipe: Recipe, objective: Objective, sizes: Mapping[str, int], accum: int) -> None:
    """Refuse a split of the batch that leaves a loss nothing to compare, or too much. Raises ConfigError.

    Args:
        sizes: samples a step by source. accum: its passes.
    """
    seen = accum  # passes that a loss sees one by one
    if recipe.batch.cached and not has_batch_norm(objective):
        seen = 1
    fewer = ", or a smaller batch.accum" if seen > 1 else ""
    for field, part in _parts(objective).items():
        for source in part.sources() if not isinstance(part, Joint) else ():
            held, where = sizes[source] // seen, f"data.sources.{source}.batch: {sizes[source]} samples a step"
            if held < part.least:
                raise ConfigError(
                    f"{where} in {seen} passes are {held} a pass over all ranks, from which {_name(part)} learns "
                    f"nothing; allowed: >= {part.least * seen}{fewer}"
                )
            compared = sizes[source] // (1 if recipe.batch.cached else accum)
            if part.most is not None and compared > part.most:
                raise ConfigError(
                    f"{where} are {compared} that {_name(part)} compares at a time, more than the {part.most} that it "
                    f"can hold; allowed: <= {part.most * sizes[source] // compared}, or a longer {field}.queue"
                )


def _parts(objective: Objective) -> dict[str, Objective]:
    """By their sections in the recipe."""
    found = {path: part for path, part in objective.named_modules() if isinstance(part, Objective)}
    return {f"objective.{path}".rstrip("."): part for path, part in found.items()}


def _name(part: Objective) -> str:
    return str(part.config.name)
