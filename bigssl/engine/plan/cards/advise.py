"""The cheapest way in which a rank of a recipe fits on a card: the lowest ZeRO stage that is enough, and at it the
largest micro-batch. Samples of a step stay what they are: a smaller micro-batch is given more passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.engine import zero
from bigssl.engine.knobs.check import OFFLOADS, idle_at
from bigssl.engine.plan.activations import Activations, OnPaper
from bigssl.engine.plan.cards.table import Card
from bigssl.engine.plan.memory import memory
from bigssl.engine.plan.preflight import batch_sizes
from bigssl.engine.stepping.split import check_cached, check_passes, check_weighing
from bigssl.nets.norm import has_batch_norm
from bigssl.objectives.base import Objective
from bigssl.objectives.comparing import Comparing
from bigssl.objectives.joint import Joint

SPARE = 1.25
"""What activations may take beyond the count (see activations.py): temporaries, fragmentation."""
HOST = {"device": "cpu"}


@dataclass(frozen=True)
class Level:
    """A ZeRO stage, with weights and optimizer on the device or on the host."""

    stage: int
    offload: bool = False

    def __str__(self) -> str:
        return f"stage {self.stage}{' + offload' if self.offload else ''}"


LEVELS = (Level(0), Level(1), Level(2), Level(3), Level(3, offload=True))  # from cheap to dear, in time


@dataclass(frozen=True)
class WayToRun:
    """A way to run: samples of a rank and pass (of batch.size), passes a step; bytes on the device and on the host."""

    level: str
    stage: int
    micro: int
    accum: int
    need: int
    host: int
    overrides: list[str]


@dataclass
class Advice:
    """by_level: the largest micro-batch that fits, or, where none does, what the smallest needs. refused: why a level
    is none for this recipe. chosen: the cheapest that fits. lacking: bytes, where nothing does."""

    card: Card
    by_level: list[WayToRun] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    chosen: WayToRun | None = None
    lacking: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def failure(self) -> str:
        """Of a recipe that fits in no way; empty otherwise."""
        if self.chosen is not None or not self.by_level:
            return ""
        least = min(self.by_level, key=lambda fit: fit.need)
        return (
            f"--gpu: {self.card.name} has {gigabytes(self.card.usable)} to plan with; the least that a rank needs is "
            f"{gigabytes(least.need)} ({least.level}, micro-batch {least.micro}), {gigabytes(self.lacking)} more; "
            "allowed: a larger card, more ranks (at zero.stage 3 they share the weights), or "
            "backbones.NAME.activation_checkpointing=true"
        )


def advise(recipe: Recipe, networks: OnPaper, world: int, card: Card) -> Advice:
    """See `Advice`. Needs no data: samples are made up.

    Raises:
        ConfigError: no split of the batch is one for `world` ranks.
    """
    return _Search(recipe, networks, world, card).advice()


class _Search:
    def __init__(self, recipe: Recipe, networks: OnPaper, world: int, card: Card) -> None:
        self.recipe, self.networks, self.world, self.card = recipe, networks, world, card
        self.objective = networks.objective
        self.sizes = batch_sizes(recipe, self.objective)
        self.bf16 = recipe.precision != "fp32" and card.bf16 is not None
        self.splits = self._splits()
        self._kept: dict[int, Activations] = {}

    def advice(self) -> Advice:
        found = Advice(self.card, notes=list(self._notes_of_card()))
        for level in LEVELS:
            try:
                fits = list(self._fitting(level))
            except ConfigError as error:
                found.refused[str(level)] = str(error).splitlines()[0]
                continue
            found.by_level.append(fits[-1])
            if found.chosen is None and fits[-1].need <= self.card.usable:
                found.chosen = fits[-1]
        if found.chosen is not None:
            found.notes += self._notes_of(found.chosen)
        elif found.by_level:
            found.lacking = min(fit.need for fit in found.by_level) - self.card.usable
        unknown = {name: why for kept in self._kept.values() for name, why in kept.unknown.items()}
        found.notes += [f"activations of {name} are unknown ({why}), left out here" for name, why in unknown.items()]
        return found

    def _fitting(self, level: Level) -> Iterator[WayToRun]:
        """From the largest micro-batch on, up to the first that fits."""
        refusal: ConfigError | None = None
        tried = False
        for accum in self.splits:
            recipe = self._changed(level, accum)
            try:
                self._check(recipe, accum)
            except ConfigError as error:
                refusal = refusal or error
                continue
            tried = True
            yield (fit := self._fit(recipe, level, accum))
            if fit.need <= self.card.usable:
                return
        if not tried and refusal is not None:
            raise refusal

    def _splits(self) -> list[int]:
        """Numbers of passes into which each source's samples of a step can be dealt out to the ranks."""
        sizes = {self.recipe.batch.size, *self.sizes.values()}
        most = min(sizes) // self.world
        found = [k for k in range(1, most + 1) if all(size % (k * self.world) == 0 for size in sizes)]
        if not found:
            raise ConfigError(f"batch.size: value {self.recipe.batch.size}: cannot be dealt out to {self.world} ranks; "
                              f"allowed: a multiple of {self.world}")  # fmt: skip
        return found

    def _changed(self, level: Level, accum: int) -> Recipe:
        given = {name: value for name, value in self.recipe.zero.options.items() if not self._idle(level.stage, name)}
        options = given | ({name: dict(HOST) for name in OFFLOADS} if level.offload else {})
        cached = self.recipe.batch.cached or (accum > 1 and self._compares and not self._bars_cached)
        micro = self.recipe.batch.size // (accum * self.world)
        changes: dict[str, Any] = {
            "zero": self.recipe.zero.model_copy(update={"stage": level.stage, "options": options}),
            "batch": self.recipe.batch.model_copy(update={"micro": micro, "accum": accum, "cached": cached}),
        }
        if self.recipe.precision == "bf16" and self.card.bf16 is None:
            changes["precision"] = "fp32"
        return self.recipe.model_copy(update=changes)

    def _idle(self, stage: int, option: str) -> bool:
        """Options of another stage, and offloading, which is tried where nothing cheaper fits."""
        name = zero.canonical_options().get(option, option)
        return name in OFFLOADS or idle_at(stage, name)

    def _check(self, recipe: Recipe, accum: int) -> None:
        zero.check_zero(recipe)
        check_weighing(recipe, self.objective)
        check_cached(recipe, self.objective)
        check_passes(recipe, self.objective, self.sizes, accum)

    def _fit(self, recipe: Recipe, level: Level, accum: int) -> WayToRun:
        held = memory(self.objective, recipe, stage=level.stage, world=self.world, accum=accum, bf16=self.bf16)
        kept = self._activations(accum)
        need = max(sum(held.device.values()) + round(SPARE * kept.bytes) + kept.batch, held.construction)
        micro = recipe.batch.micro or 0
        return WayToRun(str(level), level.stage, micro, accum, need, sum(held.host.values()), self._overrides(recipe))

    def _activations(self, accum: int) -> Activations:
        if accum not in self._kept:
            micro = {name: size // (accum * self.world) for name, size in self.sizes.items()}
            self._kept[accum] = self.networks.activations(micro, bf16=self.bf16)
        return self._kept[accum]

    def _overrides(self, recipe: Recipe) -> list[str]:
        """Of the command line, in which `recipe` differs from that which was given."""
        batch, options = recipe.batch, recipe.zero.options
        said = [f"zero.stage={recipe.zero.stage}", f"batch.micro={batch.micro}", f"batch.accum={batch.accum}"]
        if options != self.recipe.zero.options:
            said.append(f"zero.options={yaml.safe_dump(options, default_flow_style=True, width=999).strip()}")
        if recipe.batch.cached != self.recipe.batch.cached:
            said.append("batch.cached=true")
        if recipe.precision != self.recipe.precision:
            said.append(f"precision={recipe.precision}")
        return said

    @cached_property
    def _parts(self) -> list[Objective]:
        every = [part for part in self.objective.modules() if isinstance(part, Objective)]
        return [part for part in every if not isinstance(part, Joint)]

    @property
    def _compares(self) -> bool:
        """Whether `batch.cached` is one for this task, and changes what its loss sees."""
        return all(isinstance(part, Comparing) for part in self._parts)

    @cached_property
    def _bars_cached(self) -> bool:
        recipe = self.recipe.model_copy(update={"batch": self.recipe.batch.model_copy(update={"cached": True})})
        try:
            check_weighing(recipe, self.objective)
        except ConfigError:
            return True
        return False

    def _notes_of_card(self) -> Iterator[str]:
        if self.card.bf16 is None and self.recipe.precision != "fp32":
            yield (f"{self.card.name} does not compute in bf16: counted in fp32, with twice the bytes of activations"
                   + ("; `precision: auto` sees that itself" if self.recipe.precision == "auto" else ""))  # fmt: skip

    def _notes_of(self, fit: WayToRun) -> Iterator[str]:
        names = ", ".join(dict.fromkeys(str(part.config.name) for part in self._parts if part.least > 1))
        if "batch.cached=true" in fit.overrides or (self.recipe.batch.cached and fit.accum > 1):
            yield (f"batch.cached (GradCache): the loss of {names} compares all samples of a step, whatever the "
                   "micro-batch; each passes the networks twice, about 4/3 of the time")  # fmt: skip
        elif fit.accum > 1 and names:
            seen = fit.micro * self.world
            yield f"{names}: a loss sees the {seen} samples of a pass over all ranks, not all {self.recipe.batch.size}"
        if fit.accum > 1 and has_batch_norm(self.objective):
            yield f"BatchNorm normalises by the {fit.micro * self.world} samples of a pass over all ranks"
        if fit.stage == 3 and self.world > 1 and not self.card.nvlink:
            yield f"{self.card.name} has no NVLink: at stage 3 each pass gathers all weights over PCIe"
        if fit.host:
            yield f"the host of a rank holds {gigabytes(fit.host)} of weights and optimizer, beside its loader"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
