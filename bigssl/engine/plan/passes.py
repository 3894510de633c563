"""Do the networks take what the task makes of the data? One pass of real samples, on shapes; where that cannot tell, on
numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bigssl.config.recipe import Recipe
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import Order
from bigssl.engine.plan.fitting import arrays
from bigssl.engine.plan.look import Looked, called_in_recipe, leaves, look, nothing_left_behind, said, towers_in
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.nets.weightless import on_shapes, without_numbers
from bigssl.objectives.base import Objective
from bigssl.objectives.joint import Joint

ROWS = 8  # samples of a source in the pass, at most
NUMBERS = 200_000_000  # parameters up to which a pass that shapes cannot decide is made with numbers

Networks = tuple[Objective, Mapping[str, Tower]]


def examine(
    recipe: Recipe, networks: Networks, orders: Mapping[str, Order], sizes: Mapping[str, int], accum: int,
    numbers: Callable[[], Networks],
) -> Looked:  # fmt: skip
    """A look at the data, and a pass of what was seen.

    Args:
        networks: the task and its backbones, which are left as they are; with numbers or without.
        orders: the sources that can be read. sizes: samples a step by source, in `accum` passes.
        numbers: makes the same networks with numbers.
    """
    with nothing_left_behind():
        looked = look(recipe, *networks, orders, sizes)
        if looked.prepared.keys() == set(networks[0].sources()):
            held = {name: size // (1 if recipe.batch.cached else accum) for name, size in sizes.items()}
            failures, warnings = _try_pass(recipe, looked, networks, held, numbers)
            looked.failures += failures
            looked.warnings += warnings
    return looked


def _try_pass(
    recipe: Recipe, looked: Looked, networks: Networks, held: Mapping[str, int], numbers: Callable[[], Networks]
) -> tuple[list[str], list[str]]:
    """(failures, warnings) of a pass of the samples that were `looked` at; held: those of a source in a
    pass over all ranks, which BatchNorm sees together."""
    objective, sources = networks[0], looked.prepared
    given = ", ".join(dict.fromkeys(f"{name} {each.dtype}{list(each.shape)}" for prepared in sources.values()
                                    for name, each in arrays(prepared[0])))  # fmt: skip
    try:
        rows = {name: _rows(objective, name, held[name]) for name in sources}
        batch = objective.assemble({name: _collated(looked, name, rows[name]) for name in sources})
    except Exception as error:  # whatever a task raises
        return [f"objective: it can assemble no batch from {given}, as made of {_fields(sources)}: {said(error)}"], []
    if _passes_on_shapes(recipe, networks, batch):
        return [], []
    if sum(parameter.numel() for parameter in objective.parameters()) > NUMBERS:
        return [], ["backbones: no pass on shapes is possible, and the networks are too large to be tried otherwise"]
    torch.manual_seed(recipe.seed)
    other = numbers()
    failing = _failing(recipe, other, _without_flash(recipe, other[0], other), batch)
    return [f"{who}: takes no {given}, as made of {source}: {said(error)}" for who, source, error in failing], []


def _passes_on_shapes(recipe: Recipe, networks: Networks, batch: Any) -> bool:
    """False too where shapes do not tell, as the networks or the task look at numbers."""
    objective = networks[0]
    try:
        shapes = without_numbers(objective, *(teacher.module for teacher in objective.teachers().values()))
    except Exception:  # something in it that cannot be copied
        return False
    with on_shapes():
        return not _failing(recipe, networks, _without_flash(recipe, shapes, networks), tree_map(_empty, batch))


def _without_flash(recipe: Recipe, used: Objective, networks: Networks) -> Objective:
    """`used`, the task of `networks` or a copy of it, with attention that a CPU has; shapes are the same."""
    for name, path in _paths(*networks).items():
        if recipe.backbones[name].attention == "flash_attention_2":
            used.get_submodule(path).get_submodule("model").set_attn_implementation("eager")  # type: ignore[operator]
    return used


def _paths(part: nn.Module, towers: Mapping[str, Tower]) -> dict[str, str]:
    """Where in a task its backbones are."""
    return {tower: next(path for path, module in part.named_modules() if module is each)
            for tower, each in towers_in(part, towers).items()}  # fmt: skip


def _rows(objective: Objective, source: str, held: int) -> int:
    """Samples for the pass: as many as one holds, up to ROWS. (Fewer than a task's `least`, `check_passes` refuses.)"""
    least = max(part.least for _, part in leaves(objective) if source in part.sources())
    return min(max(held, least), ROWS)


def _collated(looked: Looked, name: str, rows: int) -> Any:
    prepared = looked.prepared[name]
    samples = collate([prepared[row % len(prepared)] for row in range(rows)], name)
    return samples | {SEEDS: torch.arange(rows, dtype=torch.int64)}


def _fields(sources: Any) -> str:
    return " and ".join(f"data.sources.{name}" for name in sources)


def _failing(recipe: Recipe, networks: Networks, used: Objective, batch: Any) -> list[tuple[str, str, Exception]]:
    """(what does not take it, the sources, the error) of each part of a task whose pass fails in `used`, which is it or
    a copy of it."""
    objective, towers = networks
    found = []
    for (name, part), (_, its) in zip(leaves(objective), leaves(used), strict=True):
        own = objective.given(batch, name) if isinstance(objective, Joint) else batch
        paths, inside = _paths(part, towers), list[str]()
        try:
            with _watched({tower: its.get_submodule(path) for tower, path in paths.items()}, inside):
                its(own, Progress(0, recipe.steps))
        except Exception as error:  # whatever torch, transformers or a task raises
            over = f"{called_in_recipe(name, part)}, over {' and '.join(f'backbones.{tower}' for tower in paths)}"
            found.append((f"backbones.{inside[-1]}" if inside else over, _fields(part.sources()), error))
    return found


@contextmanager
def _watched(towers: Mapping[str, nn.Module], inside: list[str]) -> Iterator[None]:
    """Within it, `inside` has the names of the backbones that have been entered and not left."""
    hooks = []
    for name, tower in towers.items():
        model = tower.get_submodule("model")
        hooks.append(model.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        hooks.append(model.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _empty(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value
