"""What the command line asks `bigssl evaluate` for: tasks, and fields of their sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.evaluate import Evaluation
from bigssl.config.yaml import apply_override
from bigssl.transfer.discovery import discover_evaluations

ALL = "all"
SEED, LABEL = "seed", "label"


def names_a_class(kind: type[Evaluation]) -> bool:
    """Whether the label of a task is what others call so, and no transcript, answer or translation."""
    return LABEL in kind.model_fields and kind.model_fields[LABEL].default == LABEL


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        tasks: by name. all: whichever of them can be served.
        train, test: shards.
        fields: given values by field, for every task that has it. own: by task, for it alone.
    """

    tasks: Mapping[str, type[Evaluation]]
    all: bool
    train: str | None
    test: str | None
    fields: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]]
    seed: int | None

    def values(self, task: str) -> dict[str, Any]:
        """What is given of a section of this task."""
        kind = self.tasks[task]
        given = {name: value for name, value in self.fields.items() if name in kind.model_fields}
        if self.all and LABEL in given and not names_a_class(kind):
            del given[LABEL]
        given |= {} if self.test is None else {"queries": self.test}
        given |= {} if self.train is None or kind.learns_from is None else {kind.learns_from: self.train}
        return given | dict(self.own.get(task, {}))


def wish_of(
    task: str, overrides: Sequence[str], *, train: str | None, test: str | None, label: str | None,
    backbone: str | None,
) -> Wish:  # fmt: skip
    """Raises ConfigError for a task or a field that there is not, with the nearest."""
    tasks = _tasks(task)
    values: dict[str, Any] = {}
    for override in overrides:
        apply_override(values, override, "the command line")
    seed = values.pop(SEED, None)
    if seed is not None and (type(seed) is not int or seed < 0):
        raise ConfigError(f"seed: value {seed!r}; allowed: a whole number >= 0")
    for name in values.keys() & (discover_evaluations().keys() - tasks.keys()):
        raise ConfigError(f"option {name}...: --task names {_named(tasks)}; allowed: TASK.FIELD=VALUE of these")
    own = {name: values.pop(name) for name in list(values) if name in tasks and isinstance(values[name], dict)}
    for name, fields in own.items():
        _refuse_unknown(f"{name}.", fields, {name: tasks[name]})
    _refuse_unknown("", values, tasks)
    flags = {name: value for name, value in ((LABEL, label), ("backbone", backbone)) if value is not None}
    _refuse_unknown("--", flags, tasks)
    if train is not None and not any(kind.learns_from for kind in tasks.values()):
        raise ConfigError(f"--train {train}: {_named(tasks)} learns from nothing; leave it out")
    return Wish(tasks, task == ALL, train, test, values | flags, own, seed)


def _tasks(text: str) -> dict[str, type[Evaluation]]:
    known = discover_evaluations()
    if text == ALL:
        return dict(known)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"--task: no task {name!r}; allowed: {ALL}, or of {', '.join(known)}"
                              f"{nearest(name, [*known, ALL])}")  # fmt: skip
    return {name: known[name] for name in names}


def _refuse_unknown(before: str, fields: Mapping[str, Any], tasks: Mapping[str, type[Evaluation]]) -> None:
    """Each has to be a field of one of the tasks. before: stands before their names."""
    has = sorted({name for kind in tasks.values() for name in kind.model_fields} - {"task"})
    for name, value in fields.items():
        if name not in has:
            given = f"{before}{name} {value}" if before == "--" else f"option {before}{name}={value}"
            raise ConfigError(f"{given}: no such field of {_named(tasks)}; allowed: {', '.join(has)}"
                              f"{nearest(name, has)}")  # fmt: skip


def _named(tasks: Mapping[str, type[Evaluation]]) -> str:
    return ", ".join(tasks) if len(tasks) <= 4 else "any evaluation"
