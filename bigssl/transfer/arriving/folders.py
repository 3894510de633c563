"""Networks that lie somewhere: in the folder of a run, in an export, or by themselves, as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bigssl.config.errors import ConfigError
from bigssl.config.places import CONFIG as RECIPE
from bigssl.config.places import EXPORT, instead, seen_from
from bigssl.config.recipe import BackboneConfig
from bigssl.data.errors import DataError
from bigssl.nets.build import postponed
from bigssl.nets.towers import Tower
from bigssl.transfer.arriving.sizes import CONFIG
from bigssl.transfer.inputs import TextInput, exported_input

HOLDS = "what can be judged is a run folder, its export, or the folder of a network (config.json with weights)"


class Networks(NamedTuple):
    """folder: below which they lie, each in a folder of its name, and their heads in heads/. run: the folder of the run
    that made them, where it is known."""

    folder: Path
    names: list[str]
    run: Path | None


def networks_at(path: Path) -> Networks:
    """What lies in a run folder, in an export (networks below it), or in the folder of one network.

    Raises:
        ConfigError: there is none; with the nearest folder that has one.
    """
    path = Path(path)
    if not path.is_dir():
        why = "is no folder" if path.exists() else f"no such folder{seen_from(path)}"
        raise ConfigError(f"{path}: {why}{instead(path, _is_any)}; {HOLDS}; run folders are under runs/")
    if _is_run(path):
        if not (path / EXPORT).is_dir():
            raise ConfigError(f"{path}: no export in it; it is written at the end of a run: run the same training "
                              f"command again")  # fmt: skip
        return Networks(path / EXPORT, _names(path / EXPORT), path)
    if _is_network(path):
        whole = path.resolve()
        return Networks(whole.parent, [whole.name], _run_of(whole.parent))
    if names := _names(path):
        return Networks(path, names, _run_of(path.resolve()))
    there = "no config.yaml of a run, no config.json of a network, and no folder with one"
    raise ConfigError(f"{path}: not a run folder, and no export ({there}){instead(path, _is_any)}; {HOLDS}")


def below(folder: Path) -> Path:
    """The folder in which the networks of a run, an export or a network lie, whatever else is there."""
    if (folder / EXPORT).is_dir():
        return folder / EXPORT
    return folder.resolve().parent if _is_network(folder) else folder


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if _is_network(each))


def _is_run(path: Path) -> bool:
    return (path / RECIPE).is_file()


def _is_any(path: Path) -> bool:
    return _is_run(path) or _is_network(path)


def _is_network(path: Path) -> bool:
    """Not all that is called config.json is of a network."""
    try:
        return "model_type" in json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _run_of(export: Path) -> Path | None:
    """The run folder in which an export was left."""
    return export.parent if export.name == EXPORT and _is_run(export.parent) else None


def towers_at(folder: Path, names: Iterable[str]) -> dict[str, Tower]:
    """The networks `folder/NAME` by name, without numbers: what a check may ask.

    Raises:
        ConfigError: one is of no kind that can be judged, or does not say what it takes.
    """
    return {name: _tower(folder / name) for name in names}


def _tower(folder: Path) -> Tower:
    try:
        takes = exported_input(folder)
    except DataError as error:
        raise ConfigError(str(error)) from None
    asked = ("size", "length", "channels", "window", "rate")
    values = {name: getattr(takes, name) for name in asked if hasattr(takes, name)}
    values["window"] = list(values["window"]) if values.get("window") else None
    tokenizer = takes.tokenizer if isinstance(takes, TextInput) else None
    values |= {"tokenizer": str(folder) if tokenizer else None, "init_from": str(folder)}
    kind = json.loads((folder / CONFIG).read_text())["model_type"]
    with postponed(main=False):  # described alone
        return Tower(folder.name, BackboneConfig.model_validate(values | {"type": kind}), tokenizer)
