"""The contract of a pretext task, and how tasks are found.

A task is one file in this folder: a subclass of `Objective` with a `Config`. Nothing else has to be edited; the file's
name is the task's name in recipes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union

import numpy as np
from pydantic import Field, create_model
from torch import Tensor, nn

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.recipe import Section
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets import dropout
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower


class Losses(NamedTuple):
    """What a forward pass returns (a tuple, so that ZeRO-3's hooks find the tensors).

    Attributes:
        total: [] the value to differentiate. Its mean over ranks is the loss of the global batch.
        blind: what `total` would be for the best predictor that does not see the input: a number, or a detached [] that
            is the same on all ranks; shown beside the loss everywhere.
        unit: of `total` and `blind`.
        blind_name: that predictor in words, as in "no better than token frequencies".
        parts: the losses that make up the total, by name, each with its own blind value, detached; empty where there is
            one loss.
        stats: detached [] other values worth a curve, by name.
        spread: detached [] by name, the same on all ranks: standard deviation over the global batch of what must not
            collapse, 1 where it is isotropic, 0 where all samples are alike.
    """

    total: Tensor
    blind: float | Tensor
    unit: str = "nats"
    blind_name: str = "guessing"
    parts: dict[str, Losses] = {}  # noqa: RUF012 - nobody writes to it
    stats: dict[str, Tensor] = {}
    spread: dict[str, Tensor] = {}

    def detached(self) -> Losses:
        """The same as a part of another loss."""
        return self._replace(total=self.total.detach())

    def named(self, path: str = "") -> Iterator[tuple[str, Losses]]:
        """("", self), then ("/PART", part) of each part, ("/PART/PART", ...) of theirs."""
        yield path, self
        for name, part in self.parts.items():
            yield from part.named(f"{path}/{name}")


class Head(NamedTuple):
    """What a task has trained on top of its backbones and an evaluation needs again.

    Attributes:
        kind: what it is: "clip" (two projections) or "mlm" (a head of masked language modelling).
        backbones: the name of the backbone it belongs to, by role ("image", "text"): on another it means nothing.
        tensors: by name, as they are exported.
    """

    kind: str
    backbones: dict[str, str]
    tensors: dict[str, Tensor]


class ObjectiveConfig(Section):
    """Fields every task has. `name` is added at discovery."""

    source: str = Field(description="name under data.sources that feeds this objective")


class Objective(nn.Module):
    """A pretext task over shared backbones."""

    Config: ClassVar[type[Section]]
    preset: ClassVar[dict[str, Any]]
    """A tiny configuration, all that the contract tests are told of a task (they run it at every ZeRO stage):

    objective: fields of `Config` without name and source.
    backbones: by name, a kind of tiny network that tests/objectives/conftest.py knows ("resnet", "vit", "bert", ...) or
        a whole section as in a recipe, for one that it does not know.
    data: folder of shards below bigssl/demo; default "emoji/train", pictures with captions.
    overfits: whether 60 steps on one batch bring the loss below .6 of its blind line; default True.
    """
    least: ClassVar[int] = 1
    """Samples that a pass over all ranks has to hold: with fewer, there is nothing to learn."""
    accumulates: ClassVar[bool] = False
    """Whether k passes of b samples give the gradient of one pass of k · b (with networks without BatchNorm): the loss
    is a mean over samples, none of which sees another."""
    draws: ClassVar[bool] = True
    """Whether `prepare` draws from its generator: views, masks, windows."""
    symmetric: ClassVar[bool] = False
    """Whether the loss stays as it is when its two views change places."""
    scheduled: ClassVar[bool] = False
    """Whether the loss, or a teacher's momentum, is another at the end of a run than at its start."""
    seeded: ClassVar[bool] = False
    """Whether the loss depends on the seeds of the samples (masks and noise drawn on the device), dropout apart."""
    causal: ClassVar[bool] = False
    """Whether the network is shown what the loss asks for, one position late (language models from left to right)."""

    @classmethod
    def config_type(cls, name: str, others: Mapping[str, type[Section]]) -> type[Section]:
        """`Config` with its `name` fixed; `others` are the non-composite tasks, for tasks that hold tasks."""
        fields: dict[str, Any] = {"name": (Literal[name], Field(description=(cls.__doc__ or "").split("\n")[0]))}
        return create_model(f"{cls.__name__}Config", __base__=cls.Config, **fields)

    def sources(self) -> list[str]:
        """Names of the streams this task reads."""
        raise NotImplementedError

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        """One sample as arrays, on CPU in a loader process.

        Args:
            rng: the only randomness there is, keyed by (seed, epoch, key).
            more: `more(rng)` is another sample of the same stream, drawn by `rng` (a negative, a second document).
        """
        raise NotImplementedError

    def assemble(self, by_source: dict[str, Any]) -> Any:
        """Collated batches by source -> the argument of `forward`."""
        return by_source[self.sources()[0]]

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """`forward`, in which dropout follows from the samples of the batch (see `nets/dropout.py` for what that asks
        of its rows)."""
        with dropout.seeded(batch.get(SEEDS) if isinstance(batch, Mapping) else None):
            return super().__call__(batch, *args, **kwargs)

    def forward(self, batch: Any, at: Progress) -> Losses:
        """The losses of a micro-batch.

        Args:
            batch: what `assemble` gave, on the device.
            at: what schedules (a temperature, a ramp) are functions of; a counter of one's own would be lost on resume.
        """
        raise NotImplementedError

    def after_step(self, step: int) -> None:  # noqa: B027 - optional: EMA teachers, queues
        """Called on every rank after each optimizer step."""

    def teachers(self) -> dict[str, Any]:
        """Running means of networks, by a name that stays; the engine moves them."""
        return {}

    def constraints(self) -> list[Any]:
        """Functions of trained weights that the engine applies after each step."""
        return []

    def exports(self) -> dict[str, Any]:
        """What a run exports besides its backbones, by name."""
        return {}

    def guards(self) -> dict[str, Callable[[], None]]:
        """What keeps this task from collapsing (a predictor, a stop-gradient, negatives), by name, each with what takes
        it out of this instance. For the contract tests, which want to see the spread fall without it."""
        return {}

    def export_heads(self) -> dict[str, Head]:
        """Heads that transfer needs, by name; most tasks have none."""
        return {}


@cache
def discover() -> dict[str, type[Objective]]:
    """Every task in this folder by file name."""
    package = importlib.import_module("bigssl.objectives")
    found: dict[str, type[Objective]] = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"bigssl.objectives.{module_info.name}")
        for value in vars(module).values():
            of_this_file = isinstance(value, type) and value.__module__ == module.__name__
            if of_this_file and issubclass(value, Objective) and value is not Objective:
                found[module_info.name] = value
    return found


def config_union() -> Any:
    """The type of a recipe's `objective` section: one of the discovered tasks, told apart by `name`."""
    classes = discover()
    simple = {name: cls.config_type(name, {}) for name, cls in classes.items() if not cls.__dict__.get("composite")}
    types = {
        name: simple[name] if name in simple else cls.config_type(name, simple) for name, cls in classes.items()
    }
    return union(list(types.values()))


def union(types: list[type[Section]]) -> Any:
    """Discriminated union of task sections."""
    return Annotated[Union[tuple(types)], Field(discriminator="name")]  # noqa: UP007 - a union of a computed list


def build(config: Any, towers: Mapping[str, Tower]) -> Objective:
    """The task that a validated `objective` section describes, over `towers`."""
    objective = discover()[config.name](config, towers)
    dropout.by_sample(objective)
    return objective


def tower(towers: Mapping[str, Tower], name: str, field: str, *, text: bool) -> Tower:
    """The backbone `name`, checked to be of the right kind.

    Raises:
        ConfigError: naming the recipe field, the value and the backbones there are.
    """
    names = sorted(towers)
    if name not in towers:
        raise ConfigError(f"{field}: no backbone {name!r}; allowed: {', '.join(names)}{nearest(name, names)}")
    if towers[name].is_text != text:
        kind = "a text backbone (with tokenizer)" if text else "an image backbone (with size)"
        raise ConfigError(f"{field}: backbone {name!r} is not {kind}; backbones: {', '.join(names)}")
    return towers[name]
