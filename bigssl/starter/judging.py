"""Which evaluations can judge a first run? Each that is found is filled in from what is known of the data, and asked by
its own check: a new one is offered without an edit here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from bigssl.config.errors import ConfigError
from bigssl.config.evaluate import METADATA, Evaluation
from bigssl.config.recipe import Recipe
from bigssl.engine.plan.evaluation import Checked
from bigssl.engine.plan.preflight import build_networks, evaluated_towers
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, exported_heads
from bigssl.starter.drafting import Parts
from bigssl.transfer.discovery import discover_evaluations
from bigssl.transfer.labelled.fit import Fit

NETWORK, HEAD = "backbone", "head"  # the fields of an evaluation that any network, or any head, may stand in


def evaluations(recipe: Recipe, parts: Parts, label: str | None) -> dict[str, dict[str, Any]]:
    """Sections of `evaluate` by name, those that ask for least first; none that trains networks, which takes longer
    than a first run (`bigssl evaluate --task` is there for them). recipe: without sections.

    Raises:
        ConfigError: as the check of the recipe does.
    """
    objective, towers = build_networks(recipe)
    networks, heads = evaluated_towers(objective, towers), exported_heads(objective)
    found: dict[str, dict[str, Any]] = {}
    for task, kind in sorted(discover_evaluations().items(), key=lambda item: (len(_needed(item[1])), item[0])):
        if issubclass(kind, Fit):
            continue
        fitting = [values for values in _filled(task, kind, parts, label, networks, heads)
                   if _passes(kind, values, networks, heads)]  # fmt: skip
        for values in fitting:
            found[task if len(fitting) == 1 else f"{task}_{values[NETWORK]}"] = values
    return found


def _needed(kind: type[Evaluation]) -> dict[str, bool]:
    """Fields without a default, and the label, each with whether it names a field of the json."""
    fields = kind.model_fields.items()
    return {name: METADATA in info.metadata for name, info in fields if info.is_required() or name == "label"}


def _filled(
    task: str, kind: type[Evaluation], parts: Parts, label: str | None, networks: Mapping[str, Tower],
    heads: Mapping[str, Head],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The section for each network, and where it asks for a head for each of these, that it may judge; none where a
    field is open."""
    values: dict[str, Any] = {"task": task}
    needed = _needed(kind)
    with_heads = [{HEAD: name} for name in heads] if needed.pop(HEAD, None) is not None else [{}]
    for name, is_metadata in needed.items():
        value = label if name == "label" else None if is_metadata else _shards(name, parts)
        if name != "task" and value is None:
            return
        values |= {} if name == "task" else {name: value}
    if "label" in values and "captions" in values and _undescribed(parts, values["label"]):
        return
    if "label" in values:
        values |= _neighbours(kind, parts.look.labels[values["label"]].values())
    for network in networks if NETWORK in kind.model_fields else [None]:
        for head in with_heads:
            yield values | head | ({} if network is None else {NETWORK: network})


def _undescribed(parts: Parts, label: str) -> bool:
    """Whether a class of what is held out has no sample, so no caption, in what is trained on."""
    held = parts.look_at_held
    return held is not None and bool(held.labels[label].keys() - parts.look.labels[label].keys())


def _shards(name: str, parts: Parts) -> str:
    """What is judged is held out; whatever else it is compared with is not."""
    return parts.held if name == "queries" else parts.train


def _neighbours(kind: type[Evaluation], counts: Any) -> dict[str, int]:
    """As many as the mean class has samples, where the default is more: the others could not be of the same class."""
    info = kind.model_fields.get("k")
    most = max(1, sum(counts) // len(counts))
    return {"k": most} if info is not None and info.default > most else {}


def _passes(
    kind: type[Evaluation], values: dict[str, Any], networks: Mapping[str, Tower], heads: Mapping[str, Head]
) -> bool:
    try:
        section = kind.model_validate(values)
        section.check(Checked("evaluate", section, networks, heads))
    except (ConfigError, ValidationError):
        return False
    return True
