"""Which tasks and networks of an export a run goes on with, and whether they are the same as its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from bigssl.config.changes import under
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.data.errors import DataError
from bigssl.data.kinds.text import load_tokenizer
from bigssl.engine.guards import on_main
from bigssl.engine.plan.changes import adjustable_fields, newest_step
from bigssl.engine.plan.facts import first_difference, network_fields, tokenizer_fingerprint
from bigssl.engine.plan.start_from import Beginning
from bigssl.files import write_atomic
from bigssl.nets.towers import Tower
from bigssl.objectives.exported import FILE, about_export, called, tasks_of

REPORTS = "init_from.json"


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
            if backbone.init_from is not None:
                raise ConfigError(f"backbones.{name}.init_from: value {backbone.init_from!r} beside start_from "
                                  f"{recipe.start_from!r}, which holds {name}; allowed: one of the two")  # fmt: skip
            found.towers.append(name)
    return found


def reports_of_folders(recipe: Recipe, built: Iterable[Tower]) -> list[str]:
    """What was read of each `init_from`, in sentences; nothing where a checkpoint replaces it."""
    return [tower.begun for tower in built if tower.begun] if newest_step(recipe) is None else []


def keep_reports(recipe: Recipe, built: Iterable[Tower]) -> None:
    """Write them down in the run folder. Collective: rank 0 writes.

    Raises:
        NotSaved: on every rank, where the disk refuses.
    """
    notes = [tower.begun for tower in built if tower.begun]
    if any(section.init_from for section in recipe.backbones.values()):
        content = (json.dumps({"notes": notes}, indent=1) + "\n").encode()
        on_main(recipe.folder, lambda: write_atomic(recipe.folder / REPORTS, content))


def _about(folder: Path) -> dict[str, Any]:
    try:
        return about_export(folder)
    except (OSError, ValueError) as error:
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
            raise found.refusal(f"it holds {section.name} more than once ({', '.join(same)}), this run as "
                                 f"{path or 'its only task'}", "parts of a joint objective of these names")  # fmt: skip
        elif same:
            found.pairs[path] = same[0]
        else:
            found.fresh.append(path)
    twice = {old: path for path, old in found.pairs.items() if list(found.pairs.values()).count(old) > 1}
    for path, old_path in found.pairs.items():
        if old_path in twice and path != twice[old_path]:
            raise found.refusal(f"{path} and {twice[old_path]} would both go on with its {old[old_path]}",
                                 "one of the name")  # fmt: skip
    if not found.pairs:
        raise found.refusal(f"it holds heads of {', '.join(map(called, old, old.values()))}, none of this objective",
                             f"the same objective, or backbones.NAME.init_from={found.folder}/NAME")  # fmt: skip


def _refuse_other_fields(found: Beginning, path: str, old: str) -> None:
    """Equal shapes mean something else with other heads, or on another backbone."""
    mine = json.loads(dict(tasks_of(found.recipe.objective))[path].model_dump_json())
    theirs = found.about["tasks"][old]
    for key in sorted(mine.keys() & theirs.keys() - {"source"}):
        where = ".".join(part for part in ("objective", path, key) if part)
        if mine[key] != theirs[key] and not any(under(each, where) for each in adjustable_fields(found.recipe)):
            raise found.refusal(f"{where} is {theirs[key]!r} there, {mine[key]!r} here", "the same")


def refuse_other_network(found: Beginning, name: str, config: Any, tokenizer: Any) -> None:
    """Raises ConfigError where a backbone is another one than the export's, as between a run and its checkpoint.

    Args:
        config: what transformers would build. tokenizer: its own, if it has one.
    """
    if name not in found.towers:
        return
    there = AutoConfig.from_pretrained(found.folder / name)
    if there.model_type != config.model_type:
        raise found.refusal(f"network {name!r} is a {there.model_type} there, a {config.model_type} here", "the same")
    where, before, now = first_difference({name: network_fields(there)}, {name: network_fields(config)})
    if before != now:
        raise found.refusal(f"{where} is {before} there, {now} here",
                            f"the same, see {found.folder / name / 'config.json'}")  # fmt: skip
    if tokenizer is not None:
        try:
            same = tokenizer_fingerprint(load_tokenizer(found.folder / name)) == tokenizer_fingerprint(tokenizer)
        except DataError as error:
            raise found.refusal(str(error), "a whole export") from None
        if not same:
            raise found.refusal(f"network {name!r} was trained with another tokenizer than "
                                 f"{found.recipe.backbones[name].tokenizer}",
                                 f"backbones.{name}.tokenizer={found.folder / name}")  # fmt: skip
