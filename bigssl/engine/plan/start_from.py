"""`start_from`: a new run begins with the networks and the heads of an export; its optimizer is fresh.

    FOLDER/NAME/                  the networks (`bigssl.transfer.leaving.export`): backbones, what tasks made of them
    FOLDER/objective.safetensors  all other state of the objective: heads, buffers, teachers, by task

A task of the new run goes on with that of the same name and place in the export's objective, or, where there is one of
its name only (`simclr` alone, out of a joint run), with that. What has none is made anew, which is said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.engine.guards import on_main
from bigssl.files import write_atomic
from bigssl.nets import build
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective
from bigssl.objectives.exported import (
    BETWEEN,
    FILE,
    called,
    models_of,
    networks_of_teachers,
    rest_of_task,
    task_at,
    tasks_of,
)

RECORD = "started_from.json"


@dataclass
class Beginning:
    """What an export gives to a run.

    Attributes:
        about: the metadata of FILE.
        pairs: {path of a task: path of the task in the export that it goes on with}.
        fresh: paths of the other tasks.
        towers: backbones that go on with weights of the export; the others are made anew.
    """

    folder: Path
    recipe: Recipe
    about: dict[str, Any]
    pairs: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    towers: list[str] = field(default_factory=list)

    def weights(self, name: str) -> str | None:
        """The folder whose weights the backbone `name` begins with; None where there is none."""
        return str(self.folder / name) if name in self.towers else None

    def check(self, objective: Objective, towers: Mapping[str, Tower]) -> None:
        """Raises ConfigError where a task does not fit what it would go on with."""
        networks = models_of(objective, towers)
        of_teachers = {name for path in self.named() for name in self._teachers(path, objective, networks)}
        if other := sorted(networks.keys() - towers.keys() - of_teachers):
            raise self.refusal(f"{other[0]!r}, a network of this objective, is neither a backbone nor a teacher's",
                               "another objective")  # fmt: skip
        with self._file() as stored:
            there = set(stored.keys()) | set(self.about["extra"])
            for path, old in self.pairs.items():
                task, known = task_at(objective, path), self.about["teachers"][old]
                self._refuse_lacking_networks(path, task, towers)
                for where in networks_of_teachers(task, networks):
                    if known.get(where) not in self.held():
                        raise self.refusal(f"it has no network of teacher {where} of {self.named()[path]}", "another")
                for key, value in rest_of_task(task, networks).items():
                    self._compare(path, key, value, stored, old + BETWEEN + key, there)

    def _teachers(self, path: str, objective: Objective, networks: Mapping[str, nn.Module]) -> list[str]:
        return list(networks_of_teachers(task_at(objective, path), networks).values())

    def _refuse_lacking_networks(self, path: str, task: Objective, towers: Mapping[str, Tower]) -> None:
        within = {id(module) for module in task.modules()}
        for name, tower in towers.items():
            if id(tower) in within and name not in self.towers:
                raise self.refusal(f"it has no network {name!r}, on which {self.named()[path]} is trained here",
                                   f"backbones of the names {', '.join(self.held())}")  # fmt: skip

    def _compare(self, path: str, key: str, value: Any, stored: Any, name: str, there: set[str]) -> None:
        if not isinstance(value, Tensor):
            return
        if name not in there:
            raise self.refusal(f"it has no {key} of {self.named()[path]}", "an export of this version of the task")
        shape, mine = stored.get_slice(name).get_shape(), list(value.shape)
        if shape != mine:
            raise self.refusal(f"{key} of {self.named()[path]} is {shape} there, {mine} here", "the same")

    def take(self, objective: Objective, towers: Mapping[str, Tower]) -> None:
        """Give heads and buffers their values, before the engine exists. (Backbones have theirs already; the networks
        of teachers may have no numbers yet, see `begin`.)

        Raises:
            ConfigError: a head has none either.
        """
        for path in self.pairs:
            task = task_at(objective, path)
            mine = {key: value for key, value in rest_of_task(task, models_of(objective, towers)).items()
                    if not key.startswith("teacher ")}  # fmt: skip
            for key, value in mine.items():
                if isinstance(value, Tensor) and value.is_meta:
                    raise ConfigError(f"start_from: {key} of {self.named()[path]} has no numbers yet at zero.stage 3; "
                                      f"allowed: another zero.stage")  # fmt: skip
            task.load_state_dict(self._values(path, mine), strict=False)

    def begin(self, objective: Objective, towers: Mapping[str, Tower]) -> None:
        """Give teachers their values, once the engine has filled the networks, and write down in the run folder what
        the run began with. Collective: rank 0 reads for all.

        Raises:
            NotSaved: on every rank, where the disk refuses, or the export cannot be read any more.
        """
        networks = models_of(objective, towers)
        for path, old in self.pairs.items():
            task = task_at(objective, path)
            mine = [key for key in rest_of_task(task, networks) if key.startswith("teacher ")]
            values = on_main(self.recipe.folder, partial(self._values, path, mine))
            for name, teacher in task.teachers().items():
                start = f"teacher {name}: "
                state = {key.removeprefix(start): v for key, v in values.items() if key.startswith(start)}
                teacher.module.load_state_dict(state, strict=False)
            for where, name in networks_of_teachers(task, networks).items():
                there, like = self.about["teachers"][old][where], networks[name]
                like.load_state_dict(on_main(self.recipe.folder, partial(self._network, there, like)))
        on_main(self.recipe.folder, self._record)

    def _network(self, name: str, like: Any) -> dict[str, Tensor]:
        """All weights and buffers of a network in the export; those that no features need as they are in `like`."""
        with self._reading():
            return dict(build.load_network(f"start_from.{name}", str(self.folder / name), like.config).state_dict())

    def _values(self, path: str, keys: Collection[str]) -> dict[str, Any]:
        """What FILE holds of these names of a task."""
        start, extra = self.pairs[path] + BETWEEN, self.about["extra"]
        with self._reading(), self._file() as stored:
            names = set(stored.keys())
            found = {key: stored.get_tensor(start + key) for key in keys if start + key in names}
        return found | {key: extra[start + key] for key in keys if start + key in extra}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise self.refusal(f"cannot be read any more ({why})", "the whole export") from None

    def _file(self) -> Any:
        return safe_open(self.folder / FILE, framework="pt")

    def held(self) -> list[str]:
        """Names of the networks in the export."""
        return sorted(path.parent.name for path in self.folder.glob("*/config.json"))

    def named(self) -> dict[str, str]:
        """The tasks of the run by path, as they are called in sentences."""
        return {path: called(path, section.name) for path, section in tasks_of(self.recipe.objective)}

    def refusal(self, what: str, allowed: str) -> ConfigError:
        return ConfigError(f"start_from: value {str(self.folder)!r}: {what}; allowed: {allowed}")

    def notes(self) -> list[str]:
        """What is taken, made anew, and left over, in sentences."""
        tasks = ", ".join(self.named()[path] for path in self.pairs)
        notes = [f"start_from: {self.folder}, after {self.about['steps']} steps: networks {', '.join(self.towers)}; "
                 f"heads of {tasks}; the optimizer is fresh"]  # fmt: skip
        anew = [f"backbones.{name}" for name in self.recipe.backbones if name not in self.towers]
        anew += [f"heads of {self.named()[path]}" for path in self.fresh]
        if anew:
            notes.append(f"start_from: made anew, since the export has none: {', '.join(anew)}")
        lost = [f"{name.removeprefix(old + BETWEEN)} of {self.named()[path]}" for path, old in self.pairs.items()
                for name in self.about["lost"] if name.startswith(old + BETWEEN)]  # fmt: skip
        if lost:
            notes.append(f"start_from: made anew, since no export can hold it: {', '.join(lost)}")
        if left := self._left_over():
            notes.append(f"start_from: in the export, not used here: {', '.join(left)}")
        return notes

    def _left_over(self) -> list[str]:
        used = {name for old in self.pairs.values() for name in self.about["teachers"][old].values()}
        networks = [name for name in self.held() if name not in used.union(self.towers)]
        return networks + [f"heads of {called(path, section['name'])}" for path, section in self.about["tasks"].items()
                           if path not in self.pairs.values()]  # fmt: skip

    def _record(self) -> None:
        """Write RECORD in the run folder: from what it began, by content."""
        digest = hashlib.sha256()
        for path in sorted([self.folder / FILE, *self.folder.glob("*/*.safetensors")]):
            digest.update(str(path.relative_to(self.folder)).encode())
            with self._reading(), path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        facts = {"folder": str(self.folder), "sha256": digest.hexdigest(), "steps": self.about["steps"],
                 "notes": self.notes()}  # fmt: skip
        write_atomic(self.recipe.folder / RECORD, (json.dumps(facts, indent=1) + "\n").encode())
