"""`start_from`: a new run begins with the networks and the heads of an export; its optimizer is fresh.

    FOLDER/NAME/                  the networks (see `bigssl.transfer.export`): backbones, and what tasks made of them
    FOLDER/objective.safetensors  all other state of the objective: heads, buffers, teachers, by task

A task of the new run goes on with that of the same name and place in the export's objective, or, where there is one of
its name only (`simclr` alone, out of a joint run), with that. What has none is made anew, which is said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig

from bigssl import distributed
from bigssl.config.changes import under
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe, Section
from bigssl.data.errors import DataError
from bigssl.data.kinds.text import load_tokenizer
from bigssl.engine.changes import adjustable_fields, newest_step
from bigssl.engine.plan.facts import first_difference, network_fields, tokenizer_fingerprint
from bigssl.files import write_atomic
from bigssl.nets import build
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective, discover, exported_networks

FILE = "objective.safetensors"
ABOUT = "bigssl"  # key of the file's metadata: JSON with `tasks`, `steps` and `extra`
RECORD = "started_from.json"
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


def rest_of_objective(objective: Objective, recipe: Recipe, towers: Mapping[str, Tower]) -> tuple[dict[str, Tensor],
                                                                                                  dict[str, str]]:
    """(tensors, metadata) of FILE, copied to the CPU. Weights outside of backbones have to be whole."""
    networks = {name: network.model for name, network in exported_networks(objective, towers).items()}
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    tasks = dict(tasks_of(recipe.objective))
    for path in tasks:
        for key, value in rest_of_task(_task(objective, path), networks).items():
            if isinstance(value, Tensor):
                tensors[path + BETWEEN + key] = value.detach().cpu().clone().contiguous()
            else:
                extra[path + BETWEEN + key] = value
    sections = {path: json.loads(section.model_dump_json()) for path, section in tasks.items()}
    about = {"tasks": sections, "steps": recipe.steps, "extra": _in_json(extra)}
    return tensors, {ABOUT: json.dumps(about)}


def _in_json(extra: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold; the rest is made anew, which a run that begins with it says."""
    kept = {}
    for key, value in extra.items():
        try:
            if json.loads(json.dumps(value)) == value:
                kept[key] = value
        except (TypeError, ValueError):
            continue
    return kept


def _task(objective: Objective, path: str) -> Objective:
    found = objective.get_submodule(path)
    assert isinstance(found, Objective)
    return found


@dataclass
class Beginning:
    """What an export gives to a run.

    Attributes:
        about: the metadata of FILE.
        pairs: {path of a task: path of the task in the export that it goes on with}.
        fresh: path of each other task: its name.
        towers: backbones that go on with weights of the export, and those that are made anew.
    """

    folder: Path
    recipe: Recipe
    about: dict[str, Any]
    pairs: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    towers: list[str] = field(default_factory=list)

    def weights(self, name: str) -> str | None:
        """The folder whose weights the backbone `name` begins with; None where there is none."""
        return str(self.folder / name) if name in self.towers else None

    def check(self, objective: Objective, towers: Mapping[str, Tower]) -> None:
        """Raises ConfigError where a task does not fit what it would go on with."""
        networks = {name: network.model for name, network in exported_networks(objective, towers).items()}
        for name in networks.keys() - towers.keys():
            followed = [teacher.module for teacher in objective.teachers().values()]
            if not any(networks[name] is module for each in followed for module in each.modules()):
                raise self._refusal(f"this objective exports a network {name!r} that is neither a backbone nor a "
                                    f"teacher's", "another objective")  # fmt: skip
        with self._file() as stored:
            there = set(stored.keys()) | set(self.about["extra"])
            for path, old in self.pairs.items():
                task = _task(objective, path)
                self._refuse_lacking_networks(path, task, towers)
                for key, value in rest_of_task(task, networks).items():
                    self._compare(path, key, value, stored, old + BETWEEN + key, there)

    def _refuse_lacking_networks(self, path: str, task: Objective, towers: Mapping[str, Tower]) -> None:
        within = {id(module) for module in task.modules()}
        for name, tower in towers.items():
            if id(tower) in within and name not in self.towers:
                raise self._refusal(f"it has no network {name!r}, on which {_named(path, self.recipe)} was trained",
                                    f"backbones {', '.join(self.held())}")  # fmt: skip

    def _compare(self, path: str, key: str, value: Any, stored: Any, name: str, there: set[str]) -> None:
        if not isinstance(value, Tensor):
            return
        task = _named(path, self.recipe)
        if name not in there:
            raise self._refusal(f"it has no {key} of {task}", "an export of this version of the task")
        shape, mine = stored.get_slice(name).get_shape(), list(getattr(value, "ds_shape", value.shape))
        if shape != mine:
            raise self._refusal(f"{key} of {task} is {shape} there, {mine} here", "the same")

    def take(self, objective: Objective, towers: Mapping[str, Tower]) -> None:
        """Give heads and buffers their values, before the engine exists. (Backbones have theirs already; those of
        teachers may have no numbers yet, see `take_teachers`.)"""
        networks = {name: network.model for name, network in exported_networks(objective, towers).items()}
        for path in self.pairs:
            task = _task(objective, path)
            mine = {key: value for key, value in rest_of_task(task, networks).items() if not key.startswith("teacher ")}
            for key, value in mine.items():
                if isinstance(value, Tensor) and value.is_meta:
                    raise ConfigError(f"start_from: {key} of {_named(path, self.recipe)} has no numbers before training "
                                      f"at zero.stage 3; allowed: another zero.stage")  # fmt: skip
            task.load_state_dict(self._values(path, mine), strict=False)

    def take_teachers(self, objective: Objective, towers: Mapping[str, Tower]) -> None:
        """Give teachers theirs, once the engine has filled the networks. Collective: rank 0 reads for all."""
        networks = exported_networks(objective, towers)
        own = {id(network.model): name for name, network in networks.items() if name not in towers}
        rest = {name: network.model for name, network in networks.items()}
        for path in self.pairs:
            task = _task(objective, path)
            mine = [key for key in rest_of_task(task, rest) if key.startswith("teacher ")]
            values = distributed.from_main(self._values(path, mine) if distributed.is_main() else {})
            for name, teacher in task.teachers().items():
                start = f"teacher {name}: "
                state = {key.removeprefix(start): v for key, v in values.items() if key.startswith(start)}
                teacher.module.load_state_dict(state, strict=False)
                for model in (module for module in teacher.module.modules() if id(module) in own):
                    model.load_state_dict(self._network(own[id(model)], model), strict=False)

    def _network(self, name: str, model: Any) -> dict[str, Tensor]:
        def read() -> dict[str, Tensor]:
            return dict(build.load(f"start_from.{name}", str(self.folder / name), model.config).state_dict())

        return distributed.from_main(read() if distributed.is_main() else {})

    def _values(self, path: str, keys: Any) -> dict[str, Any]:
        """What FILE holds for these names of a task."""
        start = self.pairs[path] + BETWEEN
        with self._file() as stored:
            names = set(stored.keys())
            found = {key: stored.get_tensor(start + key) for key in keys if start + key in names}
        return found | {key: self.about["extra"][start + key] for key in keys if start + key in self.about["extra"]}

    def _file(self) -> Any:
        return safe_open(self.folder / FILE, framework="pt")

    def held(self) -> list[str]:
        """Names of the networks in the export."""
        return sorted(path.parent.name for path in self.folder.glob("*/config.json"))

    def _refusal(self, what: str, allowed: str) -> ConfigError:
        return ConfigError(f"start_from: value {str(self.folder)!r}: {what}; allowed: {allowed}")

    def notes(self) -> list[str]:
        """What is taken, made anew, and left over, in sentences."""
        tasks = [_named(path, self.recipe) for path in self.pairs]
        notes = [f"start_from: {self.folder}, after {self.about['steps']} steps: networks {', '.join(self.towers)}; "
                 f"heads of {', '.join(tasks)}; the optimizer is fresh"]  # fmt: skip
        anew = [f"backbones.{name}" for name in self.recipe.backbones if name not in self.towers]
        anew += [_named(path, self.recipe) for path in self.fresh]
        if anew:
            notes.append(f"start_from: made anew, since the export has none: {', '.join(anew)}")
        if left := self.left_over():
            notes.append(f"start_from: in the export, not used here: {', '.join(left)}")
        return notes

    def left_over(self) -> list[str]:
        used = {old for old in self.pairs.values()}
        tasks = [f"heads of {_name(path, section['name'])}" for path, section in self.about["tasks"].items()
                 if path not in used]  # fmt: skip
        teachers = {f"{name}_teacher" for name in self.towers}  # which have a name of their own only in the export
        return [name for name in self.held() if name not in self.towers and name not in teachers] + tasks

    def record(self, folder: Path) -> None:
        """Write RECORD in a run folder: from what it began, by content. Call it on one rank."""
        digest, files = hashlib.sha256(), sorted([self.folder / FILE, *self.folder.glob("*/*.safetensors")])
        for path in files:
            digest.update(str(path.relative_to(self.folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        facts = {"folder": str(self.folder), "sha256": digest.hexdigest(), "steps": self.about["steps"],
                 "notes": self.notes()}  # fmt: skip
        write_atomic(folder / RECORD, (json.dumps(facts, indent=1) + "\n").encode())


def _name(path: str, name: str) -> str:
    return f"{path} ({name})" if path else name


def _named(path: str, recipe: Recipe) -> str:
    return _name(path, dict(tasks_of(recipe.objective))[path].name)


def begin_from(recipe: Recipe) -> Beginning | None:
    """What the recipe's `start_from` gives to its run; None where it has none, or a checkpoint replaces it.

    Raises:
        ConfigError: there is no such export, or it holds other tasks or networks.
    """
    if recipe.start_from is None or newest_step(recipe) is not None:
        return None
    folder = Path(recipe.start_from)
    found = Beginning(folder, recipe, _about(folder))
    _pair(found)
    for path, old in found.pairs.items():
        _refuse_other_fields(found, path, old)
    for name, backbone in recipe.backbones.items():
        if name in found.held():
            if backbone.pretrained is not None:
                raise ConfigError(f"backbones.{name}.pretrained: value {backbone.pretrained!r} beside start_from "
                                  f"{recipe.start_from!r}, which holds {name}; allowed: one of the two")  # fmt: skip
            found.towers.append(name)
    return found


def _about(folder: Path) -> dict[str, Any]:
    try:
        with safe_open(folder / FILE, framework="pt") as stored:
            about: dict[str, Any] = json.loads(stored.metadata()[ABOUT])
            return about
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        why = "no such folder" if not folder.is_dir() else f"no {FILE} in it" if not (folder / FILE).exists() else error
        raise ConfigError(f"start_from: value {str(folder)!r}: {why}{_instead(folder)}") from None


def _instead(folder: Path) -> str:
    near = [each for each in (folder / "export", folder.parent) if (each / FILE).exists()]
    return f"; allowed: an export of a run{f', as {near[0]}' if near else ', as runs/NAME/export'}"


def _pair(found: Beginning) -> None:
    """Which task goes on with which."""
    old = {path: section["name"] for path, section in found.about["tasks"].items()}
    for path, section in tasks_of(found.recipe.objective):
        same = [other for other, name in old.items() if name == section.name]
        if path in same:
            found.pairs[path] = path
        elif len(same) > 1:
            raise found._refusal(f"it holds {section.name} more than once ({', '.join(same)}), this run as "
                                 f"{path or 'its only task'}", "parts of a joint objective of these names")  # fmt: skip
        elif same:
            found.pairs[path] = same[0]
        else:
            found.fresh[path] = section.name
    twice = {old: path for path, old in found.pairs.items() if list(found.pairs.values()).count(old) > 1}
    for path, old_path in found.pairs.items():
        if old_path in twice and path != twice[old_path]:
            raise found._refusal(f"{path} and {twice[old_path]} would both go on with its {old[old_path]}",
                                 "one of the name")  # fmt: skip
    if not found.pairs:
        raise found._refusal(f"it holds heads of {', '.join(map(_name, old, old.values()))}, none of this objective",
                             f"the same objective, or backbones.NAME.pretrained={found.folder}/NAME")  # fmt: skip


def _refuse_other_fields(found: Beginning, path: str, old: str) -> None:
    """Equal shapes mean something else with other heads, or on another backbone."""
    mine = json.loads(dict(tasks_of(found.recipe.objective))[path].model_dump_json())
    theirs = found.about["tasks"][old]
    for key in sorted(mine.keys() & theirs.keys() - {"source"}):
        where = ".".join(part for part in ("objective", path, key) if part)
        if mine[key] != theirs[key] and not any(under(each, where) for each in adjustable_fields(found.recipe)):
            raise found._refusal(f"{where} is {theirs[key]!r} there, {mine[key]!r} here", "the same")


def refuse_other_network(found: Beginning, name: str, config: Any, tokenizer: Any) -> None:
    """Raises ConfigError where a backbone is another one than the export's, as between a run and its checkpoint.

    Args:
        config: what transformers would build. tokenizer: its own, if it has one.
    """
    if name not in found.towers:
        return
    there = AutoConfig.from_pretrained(found.folder / name)
    if there.model_type != config.model_type:
        raise found._refusal(f"network {name!r} is a {there.model_type} there, a {config.model_type} here", "the same")
    where, before, now = first_difference({name: network_fields(there)}, {name: network_fields(config)})
    if before != now:
        raise found._refusal(f"{where} is {before} there, {now} here", "the same")
    if tokenizer is not None:
        try:
            same = tokenizer_fingerprint(load_tokenizer(found.folder / name)) == tokenizer_fingerprint(tokenizer)
        except DataError as error:
            raise found._refusal(str(error), "a whole export") from None
        if not same:
            raise found._refusal(f"network {name!r} was trained with another tokenizer than "
                                 f"{found.recipe.backbones[name].tokenizer}",
                                 f"backbones.{name}.tokenizer={found.folder / name}")  # fmt: skip
