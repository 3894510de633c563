"""The contract of a pretext task, and how tasks are found.

A task is one file in this folder: a subclass of `Objective` with a `Config`. Nothing else has to be edited; the file's
name is the task's name in recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union

import numpy as np
import torch.nn.functional as F
from pydantic import Field, create_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.config.optim import Group
from bigssl.config.recipe import Section
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.discovery import classes_in
from bigssl.nets.chance import dropout
from bigssl.nets.constraint import Constraint
from bigssl.nets.ema import Ema
from bigssl.nets.heads.base import Head as Head
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.needs import Needs


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
        spread: detached [] for each thing that must not collapse (projections, the use of prototypes), by name: 1 as
            different as can be, 0 all samples alike, the same on every rank (`distributed.spread`). The loop says in
            words when one collapses: the loss may look its best then.
        views: detached [V, B, D] for each embedding of which there are V >= 2 views of the same samples, by name, in
            the order of the batch: the loop says of them how alike views of one sample are beside those of others.
    """

    total: Tensor
    blind: float | Tensor
    unit: str = "nats"
    blind_name: str = "guessing"
    parts: dict[str, Losses] = {}  # noqa: RUF012 - nobody writes to it
    stats: dict[str, Tensor] = {}
    spread: dict[str, Tensor] = {}
    views: dict[str, Tensor] = {}

    def detached(self) -> Losses:
        """The same as a part of another loss."""
        return self._replace(total=self.total.detach())

    def without_views(self) -> Losses:
        """The same, for keeping: views are large."""
        return self._replace(views={}, parts={name: part.without_views() for name, part in self.parts.items()})

    def named(self, path: str = "") -> Iterator[tuple[str, Losses]]:
        """("", self), then ("/PART", part) of each part, ("/PART/PART", ...) of theirs."""
        yield path, self
        for name, part in self.parts.items():
            yield from part.named(f"{path}/{name}")


class Network(NamedTuple):
    """A network that a run exports under a name of its own: a backbone, or what a task made of one (its teacher).

    Attributes:
        backbone: the backbone whose input it takes (picture size, tokenizer).
        model: saved as a backbone is, so that a probe and evaluations may name it.
    """

    backbone: str
    model: PreTrainedModel


class ObjectiveConfig(Section):
    """Fields every task has. `name` is added at discovery."""

    source: str = Field(description="name under data.sources that feeds this objective")


class Objective(nn.Module):
    """A pretext task over shared backbones."""

    Config: ClassVar[type[Section]]
    config: Any
    preset: ClassVar[dict[str, Any]]
    """A tiny configuration, all that the contract tests are told of a task (they run it at every ZeRO stage):

    objective: fields of `Config` without name and source.
    backbones: by name, a kind of tiny network that tests/objectives/conftest.py knows ("resnet", "vit", "bert", ...) or
        a whole section as in a recipe, for one that it does not know.
    data: folder of shards below bigssl/demo; default "emoji/train", pictures with captions.
    untried: by name of a field of `Config` ("a.b" in a section) of which the tests find no other value, the reason.
    collapses: steps within which it collapses without any one of its `guards`; default 60, 200 at most.
    rate: learning rate of these steps, where with all guards the tiny networks need a smaller one than .01 to learn.
    overfits: whether 60 steps on one batch bring the loss below .6 of its blind line; default True.
    """
    takes: ClassVar[Mapping[str, Needs]]
    """By each field of `Config` that names a backbone, what that backbone has to be: `backbone_of` checks it, and
    `bigssl init` compares it with somebody's data to make a recipe for them."""
    starts: ClassVar[Mapping[str, Any]] = {}
    """Fields of `Config` for a first run, of minutes and a few hundred samples, where a paper's defaults are made for
    days: what `bigssl init` writes into a recipe. A field without a default has to be here."""
    least: int = 1
    """Samples that a pass over all ranks has to hold: with fewer, there is nothing to learn. One may say more."""
    accumulates: ClassVar[bool] = False
    """Whether k passes of b samples give the gradient of one pass of k · b (with networks without BatchNorm): the loss
    is a mean over samples, none of which sees another."""
    draws: ClassVar[bool] = True
    """Whether `prepare` draws from its generator: views, masks, windows."""
    symmetric: ClassVar[bool] = False
    """Whether the loss stays as it is when its two views change places."""
    scheduled: bool = False
    """Whether the loss, or a teacher's momentum, is another at the end of a run than at its start; an instance may say
    so of its settings."""
    seeded: ClassVar[bool] = False
    """Whether the loss depends on the seeds of the samples (masks and noise drawn on the device), dropout apart."""
    causal: ClassVar[bool] = False
    """Whether the network is shown what the loss asks for, one position late (language models from left to right)."""
    narrow: ClassVar[bool] = False
    """Whether the network is shown what the loss asks for, and what is between has no room for all of it, or is
    disturbed (autoencoders)."""
    cannot_collapse: ClassVar[bool] = False
    """Whether the loss by itself keeps samples apart (a reconstruction, which no constant gives): there is a `spread`,
    but nothing that could be taken away."""
    adjustable: ClassVar[tuple[str, ...]] = ()
    """Fields of `Config` (with those below them) of which a run may be given other values on purpose (`--change`): what
    is made of samples and of the loss, never what shapes or names a network."""
    most: int | None = None
    """Samples that a pass over all ranks may hold at most, None for any number; of an instance, which its settings
    decide."""
    remembering: ClassVar[str] = ""
    """What is amiss, in words, where a task remembers more samples (`most`) than there are; "" where nothing is."""
    draws_more: bool = False
    """Whether `prepare` calls `more`: its sources then need two samples and an index, which is checked beforehand. An
    instance may say so of its settings."""

    @classmethod
    def adjustable_in(cls, config: Any) -> tuple[str, ...]:
        """Those of `adjustable` that still do something in a run with this `config`."""
        return cls.adjustable

    @classmethod
    def config_type(cls, name: str, others: Mapping[str, type[Section]]) -> type[Section]:
        """`Config` with its `name` fixed; `others` are the non-composite tasks, for tasks that hold tasks."""
        fields: dict[str, Any] = {"name": (Literal[name], Field(description=(cls.__doc__ or "").split("\n")[0]))}
        return create_model(f"{cls.__name__}Config", __base__=cls.Config, **fields)

    def backbone_of(self, towers: Mapping[str, Tower], field: str) -> Tower:
        """The backbone that `field` of `self.config` names, checked to be what `takes` says. Raises ConfigError."""
        return self.takes[field].pick(towers, getattr(self.config, field), f"objective.{field}")

    def sources(self) -> list[str]:
        """Names of the streams this task reads: that of its `source`."""
        return [self.config.source]

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        """One sample as arrays, on CPU in a loader process.

        Args:
            sample: with `done`, the share of the run that is done, for what of a sample follows a ramp.
            rng: the only randomness there is, keyed by (seed, epoch, key).
            more: `more(rng, use)` is what `use` makes of another sample of the same dataset that `rng` draws, never of
                `sample` itself; see `More`. For tasks that say `draws_more`.
        """
        raise NotImplementedError

    def unfit(self, prepared: Sequence[dict[str, Any]]) -> str:
        """Why nothing is to be learnt from data of which a few samples were `prepared`, in words; "" where there is.
        Asked of each dataset before a run (`bigssl config check`), where each sample by itself would do: of a few, and
        where it says why, of some more (64)."""
        return ""

    def assemble(self, by_source: dict[str, Any]) -> Any:
        """Collated batches by source -> the argument of `forward`."""
        return by_source[self.sources()[0]]

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """`forward`, in which dropout follows from the samples of the batch (see `chance/dropout.py` for what that asks
        of its rows)."""
        with dropout.seeded(batch.get(SEEDS) if isinstance(batch, Mapping) else None):
            return super().__call__(batch, *args, **kwargs)

    def forward(self, batch: Any, at: Progress) -> Losses:
        """The losses of a micro-batch. One that compares samples with each other is made in two halves: `Comparing`.

        Args:
            batch: what `assemble` gave, on the device.
            at: what schedules (a temperature, a ramp) are functions of; a counter of one's own would be lost on resume.
        """
        raise NotImplementedError

    def groups(self) -> list[Group]:
        """Parameters with settings of their own (a discriminator, prototypes), by patterns of this task's parameter
        names; the first that matches counts, those of the recipe (`optim.groups`) before them. Each has to match."""
        return []

    def constraints(self) -> list[Constraint]:
        """What trainable weights are made to satisfy after each optimizer step, at every ZeRO stage."""
        return []

    def teachers(self) -> dict[str, Ema]:
        """Moving averages of networks, by a name under which checkpoints keep them; most tasks have none.

        The engine moves each after every optimizer step that changed weights, once, at every ZeRO stage.
        """
        return {}

    def guards(self) -> dict[str, Callable[[], None]]:
        """What keeps this task from collapsing (a predictor, a stop-gradient, negatives), by name, each with what takes
        it out of this instance. For the contract tests, which want to see a spread fall without it: of a task with a
        `spread` they demand some, unless it says that it `cannot_collapse`."""
        return {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for teacher in self.teachers().values():
            teacher.apply(fn)
        return self

    def exports(self) -> dict[str, Head | Network]:
        """What evaluations need besides the backbones, which are exported anyway, by name; most tasks have nothing."""
        return {}


def attraction(one: Tensor, other: Tensor) -> Tensor:
    """[] 1 − the mean cosine of pairs of rows, [N, D] each: what a contrastive loss is without its negatives."""
    return 1 - F.cosine_similarity(one, other).mean()


@cache
def discover() -> dict[str, type[Objective]]:
    """Every task in this folder by file name."""
    return classes_in("bigssl.objectives", Objective)


def task_name(kind: type[Objective]) -> str:
    """What recipes call a task; of a class that none can name, its name in lower case."""
    return next((name for name, known in discover().items() if known is kind), kind.__name__.lower())


def config_union() -> Any:
    """The type of a recipe's `objective` section: one of the discovered tasks, told apart by `name`."""
    return _union_of(tuple(discover().items()))


@cache  # a tenth of a second: commands that make many recipes (`init`) ask for it many times
def _union_of(classes: tuple[tuple[str, type[Objective]], ...]) -> Any:
    simple = {name: cls.config_type(name, {}) for name, cls in classes if not cls.__dict__.get("composite")}
    types = [simple[name] if name in simple else cls.config_type(name, simple) for name, cls in classes]
    return union(types)


def union(types: list[type[Section]]) -> Any:
    """Discriminated union of task sections."""
    return Annotated[Union[tuple(types)], Field(discriminator="name")]  # noqa: UP007 - a union of a computed list


def build(config: Any, towers: Mapping[str, Tower]) -> Objective:
    """The task that a validated `objective` section describes, over `towers`."""
    objective = discover()[config.name](config, towers)
    dropout.by_sample(objective)
    for teacher in objective.teachers().values():
        dropout.by_sample(teacher.module)
    return objective


def exported_networks(objective: Objective, towers: Mapping[str, Tower]) -> dict[str, Network]:
    """Every network that a run exports, by name: the backbones, and those of the task.

    Raises:
        ConfigError: a backbone has the name of a network of the task.
    """
    of_towers = {name: Network(name, tower.model) for name, tower in towers.items()}
    of_task = {name: value for name, value in objective.exports().items() if isinstance(value, Network)}
    for name in sorted(of_towers.keys() & of_task.keys()):
        raise ConfigError(f"backbones.{name}: the objective exports a network of this name; allowed: another name")
    return of_towers | of_task


def exported_heads(objective: Objective) -> dict[str, Head]:
    """Every head that a run exports, by name."""
    return {name: value for name, value in objective.exports().items() if isinstance(value, Head)}
