"""Classes that the names of folders and files say: the `label` in the json of a sample; and parts of a dataset that
its folders are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from os.path import commonpath
from pathlib import Path
from typing import Any, NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.kinds.decode import value_name
from bigssl.data.tools.sources.base import Item, json_bytes

LABEL = "label"
CLASSES = (LABEL, "labels", "class", "category", "target", "y")
"""What columns of classes are called; the first is taken unasked."""
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
         "test": "test", "testing": "test"}  # fmt: skip
SHOWN = 10
_NOT = {"", "false", "no"}
_SET = {"true", "yes"}


class Labels(NamedTuple):
    """Which columns of a table (fields of a JSON object) say the classes of a sample, the `label` of its json.

    One column: what it holds; with a `separator` the list of what stands between. Several: the list of the names of
    those that hold 1, true or yes (0, false, no or nothing: not), and of the texts that the others hold.
    """

    columns: tuple[str, ...]
    separator: str | None = None

    def of(self, row: Mapping[str, Any], where: str) -> object | None:
        """The label of a row; None where its only column is empty. Raises DataError for numbers that are no class,
        where there are several columns."""
        first = row[self.columns[0]]
        if len(self.columns) > 1:
            return [name for column in self.columns if (name := _named(column, row[column], where)) is not None]
        if self.separator is None or not isinstance(first, str):
            return None if first == "" else first
        return [part.strip() for part in first.split(self.separator) if part.strip()]


def _named(column: str, value: Any, where: str) -> str | None:
    text = "" if value is None else str(value).strip()
    number = None if text.lower() in _NOT | _SET else _number(text)
    if text.lower() in _NOT or number == 0:
        return None
    if number not in (None, 1.0):
        raise DataError(f"{where}: column {column!r} of several with labels holds {text!r}; allowed are 0 and 1, or "
                        "the names of classes")  # fmt: skip
    return column if number == 1 or text.lower() in _SET else text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def part_names(names: Iterable[str]) -> list[str]:
    """The folders of the first level where the paths `names` part that are called as parts of a dataset are (train,
    val, test, ...), if one is for training and there are at least two; with the path before them."""
    folders = {name.rpartition("/")[0] for name in names} - {""}
    if not folders:
        return []
    above = commonpath(folders) if len(folders) > 1 else ""
    prefix = f"{above}/" if above else ""
    level = {folder.removeprefix(prefix).partition("/")[0] for folder in folders if folder != above}
    found = sorted(name for name in level if name.lower() in PARTS)
    whats = {PARTS[name.lower()] for name in found}
    return [prefix + name for name in found] if len(whats) > 1 and "train" in whats else []


def dataset_parts(source: Path, names: Iterable[str]) -> dict[str, Path]:
    """The same as part (train, val, test, or the folder's own name where two are called one part) -> folder below
    `source`, whose files are `names`."""
    parts = {folder: PARTS[Path(folder).name.lower()] for folder in part_names(names)}
    times = Counter(parts.values())
    return {part if times[part] == 1 else Path(folder).name: source / folder for folder, part in parts.items()}


def folder_labels(files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """sample -> name of the class folder that holds all its files, where there are at least two such names. files:
    sample -> paths. That is the first folder on the way in which the samples (of a part of the dataset, as train and
    val are) differ; neither the source itself nor such a part is a class."""
    homes = {key: {name.rpartition("/")[0] for name in names} for key, names in files.items()}
    found = {key: tuple(home.split("/")) for key, (home, *more) in homes.items() if not more and home}
    parts = [tuple(part.split("/")) for part in part_names(name for names in files.values() for name in names)]
    within = {key: next((home[len(part) :] for part in parts if home[: len(part)] == part), home)
              for key, home in found.items()}  # fmt: skip
    level = _first_unlike(within.values())
    labels = {key: home[level] for key, home in within.items() if len(home) > level}
    return labels if len(set(labels.values())) > 1 else {}


def _first_unlike(homes: Collection[tuple[str, ...]]) -> int:
    """The first level on which folders differ, of those that have one."""
    deepest = max(map(len, homes), default=0)
    return next((level for level in range(deepest) if len({home[level] for home in homes if len(home) > level}) > 1), 0)


def said_of_levels(names: Iterable[str], labels: Collection[str]) -> str:
    """What to say where the folders within the class folders have names of their own, which may be the classes."""
    last = sorted({name.split("/")[-2] for name in names if "/" in name} - set(labels))
    if not labels or len(last) < 2:
        return ""
    shown = ", ".join(last[:SHOWN]) + (", ..." if len(last) > SHOWN else "")
    return (f"label: of the folders on the way to a sample the first that differs; for those around it ({shown}): "
            "--pattern '(?P<key>.*?(?P<label>[^/]+)/[^/]+)'")  # fmt: skip


def file_labels(names: Sequence[str]) -> dict[str, str]:
    """path -> label of the samples that the file holds: as of `folder_labels`, or else the file's name without its
    extension. None where names differ in digits only, as those of the parts of one text do."""
    if labels := folder_labels({name: [name] for name in names}):
        return labels
    stems = {name: Path(name).stem for name in names}
    if part_names(f"{stem}/" for stem in stems.values()):
        return {}
    return stems if len({re.sub(r"\d+", "", stem) for stem in stems.values()}) > 1 else {}


def with_label(data: bytes, label: str) -> bytes:
    """The JSON object `data` with `label` in it, every other byte as it was. What has a `label` of its own, and what is
    no object, stays as it is."""
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return data
    if not isinstance(found, dict) or LABEL in found:
        return data
    begin = data.index(b"{") + 1
    return data[:begin] + json_bytes({LABEL: label})[1:-1] + (b"," if found else b"") + data[begin:]


def said_of_labels(items: Sequence[Item]) -> str:
    """How many samples each class has, the largest first; nothing where there are no labels."""
    sets = [item.label if isinstance(item.label, list) else [item.label] for item in items if item.label is not None]
    counts = Counter(value_name(label) for labels in sets for label in labels)
    if not counts:
        return ""
    shown = ", ".join(f"{label} {count}" for label, count in counts.most_common(SHOWN))
    more = f", ... {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    without = len(items) - sum(map(bool, sets))
    return f"{len(counts)} classes ({shown}{more})" + (f", {without} samples without" if without else "")


def extensions(names: Iterable[str]) -> dict[str, list[str]]:
    """key -> extensions, in lower case, of the files that would be one sample."""
    found: dict[str, list[str]] = {}
    for name in names:
        key, _, kind = name.rpartition(".")
        found.setdefault(key, []).append(kind.lower())
    return found
