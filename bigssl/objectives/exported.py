"""What a run exports of its tasks beside the networks: all that a run needs that begins with it (`start_from`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bigssl.config.recipe import Section
from bigssl.nets.heads.base import Head
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective, discover, exported_networks

FILE = "objective.safetensors"  # in the export folder
ABOUT = "bigssl"  # key of its metadata: JSON with `tasks`, `steps`, `teachers`, `extra` and `lost`
BETWEEN = "|"  # in names of tensors: TASK|NAME, TASK|teacher NAME: NAME


def tasks_of(section: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The tasks of a section `objective` that hold no others, by the path of their modules ("" where it is one)."""
    if isinstance(section, Section):
        kind = discover().get(getattr(section, "name", ""))
        if kind is not None and not kind.__dict__.get("composite"):
            yield path, section
            return
        section = {name: getattr(section, name) for name in type(section).model_fields}
    if isinstance(section, dict):
        for name, below in section.items():
            yield from tasks_of(below, f"{path}.{name}" if path else name)


def rest_of_task(task: Objective, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """All state of a task that is not of `networks`, those that are exported by themselves: live tensors (and what
    else `get_extra_state` gives) by name. At ZeRO-3 weights are whole where they are gathered."""
    elsewhere = {id(t) for net in networks.values() for t in [*net.parameters(), *net.buffers()]}
    found = task.state_dict(keep_vars=True)
    for name, teacher in task.teachers().items():
        found |= {f"teacher {name}: {key}": v for key, v in teacher.module.state_dict(keep_vars=True).items()}
    return {key: value for key, value in found.items() if id(value) not in elsewhere}


def networks_of_teachers(task: Objective, networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """{where a network is within a teacher: the name under which it is exported}."""
    names = {id(network): name for name, network in networks.items()}
    return {
        f"{name}: {path}": names[id(module)]
        for name, teacher in task.teachers().items()
        for path, module in teacher.module.named_modules()
        if id(module) in names
    }


def models_of(objective: Objective, towers: Mapping[str, Tower]) -> dict[str, nn.Module]:
    """Every network that a run exports, by name."""
    return {name: network.model for name, network in exported_networks(objective, towers).items()}


def rest_of_objective(
    objective: Objective, section: Any, towers: Mapping[str, Tower], steps: int
) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """FILE, its tensors, copied to the CPU, and its metadata after `steps`. Weights outside of backbones have to be
    whole.

    Args:
        section: `objective` of the recipe.
    """
    networks, tasks = models_of(objective, towers), dict(tasks_of(section))
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    for path in tasks:
        for key, value in rest_of_task(task_at(objective, path), networks).items():
            if isinstance(value, Tensor):
                tensors[path + BETWEEN + key] = value.detach().cpu().clone().contiguous()
            else:
                extra[path + BETWEEN + key] = value
    kept = {key: value for key, value in extra.items() if _in_json(value)}
    about = {
        "tasks": {path: json.loads(task.model_dump_json()) for path, task in tasks.items()},
        "teachers": {path: networks_of_teachers(task_at(objective, path), networks) for path in tasks},
        "steps": steps,
        "extra": kept,
        "lost": sorted(extra.keys() - kept.keys()),
    }
    return FILE, tensors, {ABOUT: json.dumps(about)}


def _in_json(value: Any) -> bool:
    """Whether JSON can hold it. The rest is made anew, which a run that begins with it says."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def about_export(folder: Path) -> dict[str, Any]:
    """What FILE in an export says of its run: `tasks`, `teachers`, `steps`, `extra` (state that is no tensor) and
    `lost` (names of such that JSON cannot hold).

    Raises:
        OSError, ValueError: there is none, or it is not whole.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as stored:
            about: dict[str, Any] = json.loads(stored.metadata()[ABOUT])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / FILE} is not whole ({error})") from None
    return about


def called(path: str, name: str) -> str:
    """What the task `name` at a path is called in sentences."""
    return f"{path} ({name})" if path else name


def task_at(objective: Objective, path: str) -> Objective:
    """The task at a path of `tasks_of`."""
    found = objective.get_submodule(path)
    assert isinstance(found, Objective)
    return found


def heads_of_export(folder: Path) -> dict[str, Head]:
    """The heads of an export by name that say on which networks they were trained: the others mean nothing.

    Raises:
        OSError, SafetensorError: one is not whole.
    """
    found = {file.stem: Head.read(file) for file in sorted((folder / "heads").glob("*.safetensors"))}
    return {name: head for name, head in found.items() if head.backbones}
