"""Several pretext tasks at once over shared backbones: L = Σ λ_k L_k. Nothing else in the project knows about λ.

`weight` is a number or a ramp over the run; with `balance`, a rule weighs (objectives/weighing.py), by variances that
are learned or by the gradients of parts that share a backbone. `watch` records the norms of these gradients and the
cosines between them.

The first part that reads a source, with a weight above 0, sees its samples as it would alone: with weights (1, 0) a
joint task is its first part, to the bit.

A part that `shares` another one's samples and pass through the body (objectives/shared.py) costs its head only: BERT is
`next_sentence`, and `mlm` that shares it.
"""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.evaluate import EVALUATION_NAME
from bigssl.config.optim import Group
from bigssl.config.recipe import Section
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.chance import dropout
from bigssl.nets.chance.seeds import another
from bigssl.nets.constraint import Constraint
from bigssl.nets.ema import Ema
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, build, union
from bigssl.objectives.comparing import Comparing
from bigssl.objectives.counting import Counting
from bigssl.objectives.shared import Guest, Host
from bigssl.objectives.weighing import Balance, Ramp, Weighing, Weight, ever_positive

OWN = ""  # in place of a part's name: what the weighing needs


class Joint(Comparing, Counting, Objective):
    """A weighted sum of objectives over shared backbones."""

    composite = True
    accumulates = False
    adjustable = ("parts.*.weight",)

    class Config(Section):
        parts: dict[str, Any] = Field(min_length=1, description="objectives by a name of your choice, each with weight")
        balance: Balance | None = Field(None, description="a rule in place of fixed weights")
        watch: int = Field(
            0, ge=0, description="steps between two looks at the gradients by shared backbones (each costs a backward "
            "pass a part; not at ZeRO-3); 0: none"
        )  # fmt: skip

    preset = {
        "objective": {
            "parts": {
                "views": {"name": "simclr", "weight": 1.0, "hidden": 16, "dim": 8},
                "captions": {"name": "clip", "weight": 0.5, "dim": 8},
                "words": {"name": "mlm", "weight": 0.1},
            }
        },
        "backbones": {"image": "resnet", "text": "bert"},
    }

    @classmethod
    def config_type(cls, name: str, others: Mapping[str, type[Section]]) -> type[Section]:
        added: dict[str, Any] = {
            "weight": (Weight, Field(1.0, description="λ: a number >= 0, or a ramp {start, end, begin, until, shape}")),
            "shares": (str | None, Field(None, description="a part whose samples and pass it learns from")),
        }
        weighted = [create_model(f"Weighted{kind.__name__}", __base__=kind, **added) for kind in others.values()]
        fields: dict[str, Any] = {"parts": (dict[str, union(weighted)], Field(min_length=1))}  # type: ignore[misc]
        return create_model("JointConfig", __base__=super().config_type(name, others), **fields)

    def __init__(self, config: Any, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        for name in config.parts:
            if not re.fullmatch(EVALUATION_NAME, name) or hasattr(nn.ModuleDict, name):
                allowed = "letters, digits, _ and -, and no method of torch's ModuleDict"
                raise ConfigError(f"objective.parts: name {name!r}; allowed: {allowed}")
        weights = {name: part.weight for name, part in config.parts.items()}
        parts = {name: _part(name, part, towers) for name, part in config.parts.items()}
        self.parts = nn.ModuleDict(parts)
        self.hosts = {name: part.shares for name, part in config.parts.items() if part.shares is not None}
        _check_shared(self.hosts, config.parts, dict(self._objectives()))
        if not any(map(ever_positive, weights.values())):
            raise ConfigError("objective.parts: every weight is 0, so that nothing would be trained; allowed: one > 0")
        self.weighing = Weighing(weights, config.balance, config.watch, _bodies(dict(self._objectives())), towers)
        self.scheduled = any(isinstance(weight, Ramp) for weight in weights.values())
        readers = [(source, name) for name, part in reversed(self._objectives()) if ever_positive(weights[name])
                   for source in part.sources()]  # fmt: skip
        self._leading = dict(readers)  # by source, the part to which it is what it would be alone

    @property
    def sees_gradients(self) -> bool:
        """Whether a rule looks at gradients in `forward`, for which parameters have to be whole."""
        return self.weighing.sees_gradients

    def _objectives(self) -> list[tuple[str, Objective]]:
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Objective)]

    def sources(self) -> list[str]:
        return sorted({source for _, part in self._objectives() for source in part.sources()})

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        seeds = copy.deepcopy(rng).integers(2**63, size=len(self.parts))  # a stream each: none shifts another's
        streams = {name: np.random.default_rng(seed) for name, seed in zip(self.parts, seeds, strict=True)}
        if (leading := self._leading.get(sample.source)) is not None:
            streams[leading] = rng
        reading = {name: part for name, part in self._objectives() if sample.source in part.sources()}
        shared: dict[str, Any] = {}
        for guest, host in self.hosts.items():
            if guest in reading:
                shared |= self._shared(guest, host, sample, streams, more)
        return {
            name: shared[name] if name in shared else part.prepare(sample, streams[name], more)
            for name, part in reading.items()
        }

    def _shared(
        self, guest: str, host: str, sample: Sample, streams: Mapping[str, np.random.Generator], more: More
    ) -> dict[str, Any]:
        """The samples of both by name; the guest's has no inputs."""
        giving, taking = self.parts[host], self.parts[guest]
        assert isinstance(giving, Host) and isinstance(taking, Guest)
        prepared, words = giving.prepare_words(sample, streams[host], more)
        changed, own = taking.change(sample, prepared, words, streams[guest], more)
        return {host: changed, guest: own}

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        return {
            name: part.assemble({source: self._share(by_source, source, name) for source in part.sources()})
            for name, part in self._objectives()
        }

    def _share(self, by_source: dict[str, Any], source: str, part: str) -> dict[str, Any]:
        """A part's own fields, and its own seeds of the samples: two parts must not drop alike."""
        batch = by_source[source]
        if self._leading.get(source) == part:
            return batch[part] | {SEEDS: batch[SEEDS]}
        return batch[part] | {SEEDS: another(batch[SEEDS], zlib.crc32(part.encode()))}

    def _counted(self) -> list[tuple[str, Counting]]:
        return [(name, part) for name, part in self._objectives() if isinstance(part, Counting)]

    @property
    def counting(self) -> bool:
        return bool(self._counted())

    def units(self, batch: dict[str, Any]) -> dict[str, int]:
        counted = {name: part.units(batch[name]) for name, part in self._counted()}
        return {f"{name}/{key}": count for name, counts in counted.items() for key, count in counts.items()}

    def told(self, batch: dict[str, Any], units: Mapping[str, Tensor]) -> dict[str, Any]:
        own: dict[str, dict[str, Tensor]] = {}
        for path, count in units.items():
            name, _, key = path.partition("/")
            own.setdefault(name, {})[key] = count
        return batch | {name: part.told(batch[name], own[name]) for name, part in self._counted()}

    def forward(self, batch: dict[str, Any], at: Progress, only_embed: bool = False) -> Any:
        if not only_embed:
            return self.weighing(self._losses(batch, at), at, self.parameters)
        found = {name: part(batch[name], at, True) for name, part in self._objectives()}
        found[OWN] = self.weighing.embeddings()
        return {f"{name}/{key}": value for name, embeddings in found.items() for key, value in embeddings.items()}

    def _losses(self, batch: dict[str, Any], at: Progress) -> dict[str, Losses]:
        """By part, in their order."""
        hidden = {host: self._hidden(host, batch[host]) for host in self.hosts.values()}
        found: dict[str, Losses] = {}
        for name, part in self._objectives():
            host, own = self.hosts.get(name, name), self.given(batch, name)
            found[name] = part(own, at, hidden[host]) if host in hidden else part(own, at)
        return found

    def given(self, batch: dict[str, Any], name: str) -> dict[str, Any]:
        """What part `name` is called with: of one that shares a pass, with the inputs and seeds of that."""
        own: dict[str, Any] = batch[name] | batch[self.hosts.get(name, name)]
        return own

    def _hidden(self, host: str, batch: dict[str, Any]) -> Tensor:
        part = self.parts[host]
        assert isinstance(part, Host)
        with dropout.seeded(batch[SEEDS]):
            return part.hidden(batch)

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        own: dict[str, dict[str, Tensor]] = {}
        for path, value in embeddings.items():
            name, _, key = path.partition("/")
            own.setdefault(name, {})[key] = value
        parts = [(name, part) for name, part in self._objectives() if isinstance(part, Comparing)]
        return self.weighing({name: part.compare(own[name], at) for name, part in parts}, at, None, own.get(OWN))

    def groups(self) -> list[Group]:
        return [group.inside(f"parts.{name}.") for name, part in self._objectives() for group in part.groups()]

    def constraints(self) -> list[Constraint]:
        return [constraint for _, part in self._objectives() for constraint in part.constraints()]

    def teachers(self) -> dict[str, Ema]:
        return {
            f"{name}/{key}": teacher for name, part in self._objectives() for key, teacher in part.teachers().items()
        }

    def guards(self) -> dict[str, Callable[[], None]]:
        return {f"{name}/{key}": out for name, part in self._objectives() for key, out in part.guards().items()}

    def exports(self) -> dict[str, Head | Network]:
        exports: dict[str, Head | Network] = {}
        for name, part in self._objectives():
            for key, exported in part.exports().items():
                exports[f"{name}-{key}" if key in exports else key] = exported  # a second one of a kind
        return exports


def _check_shared(hosts: Mapping[str, str], configs: Mapping[str, Any], parts: Mapping[str, Objective]) -> None:
    """Raises ConfigError where a part cannot share the pass of the one it names."""
    taken: set[str] = set()
    for name, host in hosts.items():
        where, guest = f"objective.parts.{name}", parts[name]
        serving = [other for other, part in parts.items() if other != name and isinstance(part, Host)]
        if not isinstance(guest, Guest):
            raise ConfigError(f"{where}.shares: value {host!r}: {configs[name].name} makes its own samples; allowed: "
                              "leave it out")  # fmt: skip
        if host not in serving:
            allowed = ", ".join(serving) or "a part whose samples are pairs (next_sentence, sentence_order)"
            raise ConfigError(f"{where}.shares: value {host!r}; allowed: {allowed}{nearest(host, serving)}")
        if host in taken:
            raise ConfigError(f"{where}.shares: value {host!r}, as another part has; allowed: one part a pass")
        taken.add(host)
        for field in ("source", "backbone"):
            mine, its = getattr(configs[name], field), getattr(configs[host], field)
            if mine != its:
                raise ConfigError(f"{where}.{field}: value {mine!r}; allowed: {its!r}, that of {host}, which it shares")
        if why := guest.guest_reason():
            raise ConfigError(f"{where}.{why}, or no shares")


def _bodies(parts: Mapping[str, Objective]) -> dict[str, set[str]]:
    """The names of each part's backbones."""
    return {name: {getattr(part.config, field) for field in part.takes} for name, part in parts.items()}


def _part(name: str, config: Any, towers: Mapping[str, Tower]) -> Objective:
    """The part that a section describes, with the weights that it has as a task by itself. Raises ConfigError that
    names fields as this recipe has them."""
    state = torch.get_rng_state()
    try:
        return build(config, towers)
    except ConfigError as error:
        raise ConfigError(re.sub(r"\bobjective\.(?=\w)", f"objective.parts.{name}.", str(error))) from None
    finally:
        torch.set_rng_state(state)
