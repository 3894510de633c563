"""Which evaluations can networks and data serve? Each that is asked for is filled in with every network that it may be
of, and asked by its own check."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import ValidationError

from bigssl.cli.transfer.wishes import LABEL, Wish, names_a_class
from bigssl.config.errors import ConfigError, describe
from bigssl.config.evaluate import METADATA, Evaluation
from bigssl.engine.plan.evaluation import Shelves, check_sections, refuse_shared
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head

NETWORK, HEADS = "backbone", ("head", "heads")  # fields of sections
Values = dict[str, Any]
BRIEF = {"train_limit": 512, "query_limit": 512, "seeds": 2, "fractions": [0.1, 1.0], "epochs": 5}
BRIEFLY = "Where networks are trained, --task all takes " + ", ".join(
    f"{name}={value}" for name, value in BRIEF.items()) + "; another value, or --task TASK, for more."  # fmt: skip
"""What is said of a scorecard of all tasks: trained on everything, some would take hours on a CPU."""


class Served(NamedTuple):
    """sections: by name. unserved: by task, why not."""

    sections: dict[str, Evaluation]
    unserved: dict[str, str]


@dataclass
class Data:
    """Shards to learn from, and to judge, with what evaluations of a recipe know of their metadata, by field."""

    train: str | None
    test: str | None
    metadata: Values = field(default_factory=dict)


def serve(
    wish: Wish, path: str, known: Mapping[str, Evaluation], towers: Mapping[str, Tower], heads: Mapping[str, Head]
) -> Served:  # fmt: skip
    """The sections that a wish asks for, checked.

    Args:
        path: what is judged, for the command that an error ends with.
        known: evaluations of the run's recipe: they come first where all is asked for, on their own shards, with what
            is given in place of their own values; and their shards are taken where none are given.
    Raises:
        ConfigError: a task that the wish names cannot be served, with all reasons.
    """
    if wish.train is not None and wish.test is not None:
        refuse_shared("--train", wish.train, "--test", wish.test)
    given = wish.train is not None or wish.test is not None
    data = [Data(wish.train, wish.test)] if given else _data_of(known)
    looked = Shelves()
    found, unserved = _own(wish, path, known, towers, heads, looked) if wish.all else Served({}, {})
    own = list(found.values())
    for task in wish.tasks:
        kinds = [_Kind(wish, task, each, path, looked) for each in data or [Data(None, None)]]
        fitting, refused = _fitting(kinds, towers, heads)
        asked = wish.values(task)
        new = [each for each in fitting if not any(_same(each, other, asked) for other in own)]
        for name, section in _named(task, new, found):
            found[name] = section
        if not fitting and not any(getattr(section, "task", None) == task for section in found.values()):
            unserved[task] = refused.replace(f"--task {task}: ", "") if wish.all else refused
    if unserved and not wish.all:
        raise ConfigError(*unserved.values())
    if not found:
        raise ConfigError(*(f"{task}: {why}" for task, why in unserved.items()))
    return Served(found, unserved)


def _own(
    wish: Wish, path: str, known: Mapping[str, Evaluation], towers: Mapping[str, Tower], heads: Mapping[str, Head],
    looked: Shelves,
) -> Served:  # fmt: skip
    """The evaluations of a recipe, with what the wish says of their fields; without those of another network than it
    names. A label, or another field of the metadata, goes for the shards that are given: others keep their own."""
    found, unserved = dict(known), {}
    for name, section in known.items():
        kind, task = type(section), str(getattr(section, "task", ""))
        shards = {"queries": wish.test, kind.learns_from: wish.train}
        given = {field: value for field, value in wish.values(task).items() if field not in shards}
        if any(url is not None and field is not None and url != getattr(section, field)
               for field, url in shards.items()):  # fmt: skip
            given = {field: value for field, value in given.items() if field not in _metadata(kind)}
        if NETWORK in given and given[NETWORK] != getattr(section, NETWORK):
            del found[name]
        elif given:
            values = section.model_dump(exclude_unset=True) | {"task": task} | given
            outcome = _Kind(wish, task, Data(None, None), path, looked).checked(values, towers, heads)
            if isinstance(outcome, _Refused):
                del found[name]
                unserved[name] = outcome.why.replace(f"--task {task}: ", "")
            else:
                found[name] = outcome
    return Served(found, unserved)


def _data_of(known: Mapping[str, Evaluation]) -> list[Data]:
    """The different shards of the evaluations of a recipe; twice where two of them do not say the same of the metadata
    of one pair, as two labels. What only another one says of the same shards holds for both."""
    found: list[Data] = []
    for section in known.values():
        if section.learns_from is None:
            continue
        data, said = Data(getattr(section, section.learns_from), section.queries), _said(section)
        fits = [each for each in found if (each.train, each.test) == (data.train, data.test)
                and all(each.metadata.get(name, value) == value for name, value in said.items())]  # fmt: skip
        if not fits:
            found.append(data)
        (fits or [data])[0].metadata.update(said)
    for data in found:
        for other in found:
            if (other.train, other.test) == (data.train, data.test):
                data.metadata = other.metadata | data.metadata
    return found


def _said(section: Evaluation) -> Values:
    """Of the metadata."""
    found = {name: getattr(section, name) for name in _metadata(type(section))}
    return {name: value for name, value in found.items()
            if value is not None and (name != LABEL or names_a_class(type(section)))}  # fmt: skip


def _metadata(kind: type[Evaluation]) -> list[str]:
    return [name for name, info in kind.model_fields.items() if METADATA in info.metadata]


class _Refused(NamedTuple):
    """Why a section does not do. distance: how far it is from one that would: 0, of its own fields; 1, of what the data
    hold for another modality; 2, of another network."""

    distance: int
    why: str


def _fitting(
    kinds: list[_Kind], towers: Mapping[str, Tower], heads: Mapping[str, Head]
) -> tuple[list[Evaluation], str]:  # fmt: skip
    """The sections that pass their check; and why the others that come nearest do not."""
    fitting: list[Evaluation] = []
    refused: list[_Refused] = []
    for kind in kinds:
        for values in kind.filled(towers, heads):
            outcome = kind.checked(values, towers, heads)
            if isinstance(outcome, _Refused):
                refused.append(outcome)
            elif outcome not in fitting:
                fitting.append(outcome)
    near = min((each.distance for each in refused), default=0)
    return fitting, "\n".join(dict.fromkeys(each.why for each in refused if each.distance == near))


@dataclass(frozen=True)
class _Kind:
    """A task that is asked for on some data."""

    wish: Wish
    task: str
    data: Data
    path: str
    looked: Shelves

    @property
    def kind(self) -> type[Evaluation]:
        return self.wish.tasks[self.task]

    def filled(self, towers: Mapping[str, Tower], heads: Mapping[str, Head]) -> Iterator[Values]:
        """Values of the section for each network or head that it may be of."""
        fields = self.kind.model_fields
        trains = self.wish.all and "epochs" in fields
        brief = {name: value for name, value in BRIEF.items() if trains and name in fields}
        values = brief | self._shards() | self.wish.values(self.task) | {"task": self.task}
        any_network = NETWORK in fields and NETWORK not in values
        yield from (values | {NETWORK: name} for name in towers) if any_network else [values]
        if (own := next((name for name in HEADS if name in fields and name not in values), None)) is not None:
            yield from ({own: name} | _roles(fields, head) | values for name, head in heads.items())

    def _shards(self) -> Values:
        found = {"queries": self.data.test, self.kind.learns_from: self.data.train}
        return {name: value for name, value in found.items() if name is not None and value is not None}

    def checked(self, values: Values, towers: Mapping[str, Tower], heads: Mapping[str, Head]) -> Evaluation | _Refused:
        if missing := self._missing(values):
            return _Refused(0, missing)
        try:
            section = self._valid(values)
            check_sections({f"evaluate.{self.task}": section}, towers, heads, self.looked)
        except ConfigError as error:
            said = str(error)
            other = re.match(rf"evaluate\.{self.task}\.(\w*backbone|heads?): ", said)
            return _Refused(2 if other else "allowed: shards with" in said, self._in_flags(said))
        return section

    def _missing(self, values: Values) -> str:
        """What to type where shards are not given."""
        needed = {"--test": ("queries", "is judged on"), "--train": (self.kind.learns_from, "learns from")}
        for flag, (name, words) in needed.items():
            if name is not None and name not in values and self.kind.model_fields[name].is_required():
                train = " --train SHARDS" if self.kind.learns_from else ""
                return (f"{flag}: missing, the shards that {self.task} {words}: bigssl evaluate {self.path} --task "
                        f"{self.task}{train} --test SHARDS")  # fmt: skip
        return ""

    def _valid(self, values: Values) -> Evaluation:
        """With as much of what is known of the metadata as goes together. Raises ConfigError."""
        known = {name: value for name, value in self.data.metadata.items()
                 if name in _metadata(self.kind) and name not in values
                 and (name != LABEL or names_a_class(self.kind))}  # fmt: skip
        first: ConfigError | None = None
        for beside in (known, *({n: v for n, v in known.items() if n != each} for each in known)):
            try:
                return self.kind.model_validate(beside | values)
            except ValidationError as error:
                lines = describe(error, f"--task {self.task}", self.kind.model_json_schema())
                first = first or ConfigError(*lines)
        assert first is not None
        raise first

    def _in_flags(self, text: str) -> str:
        """An error of the section in words of the command line."""
        flags = {"queries": "--test", self.kind.learns_from: "--train", "label": "--label", NETWORK: "--backbone"}
        for name, flag in flags.items():
            text = text.replace(f"evaluate.{self.task}.{name}: ", f"--task {self.task}: {flag}: ")
        return text.replace(f"evaluate.{self.task}.", f"--task {self.task}: ")


def _roles(fields: Mapping[str, Any], head: Head) -> Values:
    """The fields of the backbones on which a head was trained."""
    named = {f"{role}_{NETWORK}" if f"{role}_{NETWORK}" in fields else NETWORK: name
             for role, name in head.backbones.items()}  # fmt: skip
    return {name: value for name, value in named.items() if name in fields}


def _networks(section: Evaluation) -> list[str]:
    """What a section judges: its networks, or those below its head."""
    head = next((getattr(section, name) for name in HEADS if getattr(section, name, None) is not None), None)
    own = [getattr(section, NETWORK)] if hasattr(section, NETWORK) and head is None else []
    return own + ([head] if head is not None else [])


def _same(one: Evaluation, other: Evaluation, asked: Values) -> bool:
    """Whether `other` gives what `one` would: networks, shards, label, and whatever is asked for."""
    if type(one) is not type(other) or _networks(one) != _networks(other):
        return False
    fields = type(one).model_fields.keys() & {"queries", LABEL, one.learns_from, *asked}
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _named(task: str, sections: list[Evaluation], taken: Mapping[str, Any]) -> Iterator[tuple[str, Evaluation]]:
    """TASK, or TASK_NETWORK where there are several, with a number where that is taken."""
    names = set(taken)
    for section in sections:
        name = task if len(sections) == 1 else "_".join([task, *_networks(section)])
        name = re.sub(r"[^A-Za-z0-9_-]", "-", name)
        free = next(each for each in (name, *(f"{name}_{n}" for n in range(2, 10**6))) if each not in names)
        names.add(free)
        yield free, section
