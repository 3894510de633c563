"""What `bigssl shards pack` reads: folders of files, image + caption tables, .ts series. Each yields `Item`s in
order."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.tarwalk import split_name

IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Item:
    """A sample to be packed: `load()` gives its fields; samples of equal `group` stay on one side of a split."""

    key: str
    group: str
    load: Callable[[], dict[str, bytes]]


def to_json(values: Mapping[str, object]) -> bytes:
    """Compact UTF-8 JSON with sorted keys: the same values, the same bytes."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def from_folder(root: Path, pattern: str | None = None) -> Iterator[Item]:
    """Files below `root`: `sub/name.jpg` and `sub/name.txt` make the sample `sub/name` with fields jpg and txt.

    pattern: a regular expression for whole relative paths without the last extension. Its group `key` becomes the key,
    the other named groups (numbers as numbers) the field json.
    """
    groups: dict[str, dict[str, Path]] = {}
    details: dict[str, dict[str, object]] = {}
    for path in sorted(_files(root)):
        name = path.relative_to(root).as_posix()
        key, field, facts = _name(name, pattern)
        if groups.setdefault(key, {}).setdefault(field, path) != path:
            raise DataError(f"{path}: a second file for sample {key!r}, field {field!r}; rename one")
        details.setdefault(key, {}).update(facts)
    for key, files in groups.items():
        yield Item(key, key, _load_files(files, details[key]))


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def _name(name: str, pattern: str | None) -> tuple[str, str, dict[str, object]]:
    if pattern is None:
        parts = split_name(name)
        if parts is None:
            raise DataError(f"file {name!r} has no extension, so its field has no name; rename it or move it away")
        return *parts, {}
    stem, dot, field = name.rpartition(".")
    found = re.fullmatch(pattern, stem)
    if not dot or found is None or "key" not in found.groupdict():
        raise DataError(f"file {name!r} does not match --pattern {pattern!r} (which needs a group named `key`)")
    facts: dict[str, object] = {k: int(v) if v.isdigit() else v for k, v in found.groupdict("").items() if k != "key"}
    return found["key"], field.lower(), facts


def _load_files(files: Mapping[str, Path], facts: Mapping[str, object]) -> Callable[[], dict[str, bytes]]:
    def load() -> dict[str, bytes]:
        fields = {field: path.read_bytes() for field, path in files.items()}
        return fields | ({"json": to_json(facts)} if facts else {})

    return load


@dataclass(frozen=True)
class Table:
    """How rows of a .tsv or .csv file with a header become samples. Texts in braces are columns, plus {variant}.

    images: variant -> path of the picture below `root`; one sample each. key, text, group: templates. meta: columns
    that go into the field json; `variant` names its key there.
    """

    images: Mapping[str, str]
    key: str
    text: str
    group: str
    meta: Sequence[str] = ()
    variant: str = "variant"


def from_table(path: Path, root: Path, table: Table) -> Iterator[Item]:
    """One sample per row and image variant: the picture's bytes as they are, txt, json."""
    with path.open(encoding="utf-8", newline="") as file:
        tabs = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in tabs if path.suffix == ".tsv" else csv.DictReader(file):
            for variant, image in table.images.items():
                yield _table_item(path, root, table, {**row, "variant": variant}, image)


def _table_item(path: Path, root: Path, table: Table, row: Mapping[str, str], image: str) -> Item:
    try:
        key, group, text, picture = (t.format_map(row) for t in (table.key, table.group, table.text, image))
        facts = {column: row[column] for column in table.meta}
    except KeyError as error:
        raise DataError(f"table {path}: no column {error}; it has {', '.join(sorted(row))}") from error
    extension = Path(picture).suffix[1:].lower()
    if extension not in IMAGE_TYPES:
        raise DataError(f"table {path}: {picture!r} is no picture; allowed are {', '.join(IMAGE_TYPES)}")
    facts |= {table.variant: row["variant"]} if len(table.images) > 1 else {}

    def load() -> dict[str, bytes]:
        picture_bytes = (root / picture).read_bytes()
        return {extension: picture_bytes, "txt": text.encode()} | ({"json": to_json(facts)} if facts else {})

    return Item(key, group, load)


def from_series(path: Path) -> Iterator[Item]:
    """The .ts format of the UEA & UCR archive: samples `STEM-000000` with npy (float32 [T, C]) and json {"label"}."""
    labelled, number = False, 0
    for line_number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if line.lower().startswith("@classlabel"):
            labelled = line.split()[1].lower() == "true"
        elif line and line[0] not in "#@":
            key = f"{path.stem}-{number:06d}"
            yield Item(key, key, _load_series(f"{path}, line {line_number}", line, labelled))
            number += 1


def _load_series(where: str, line: str, labelled: bool) -> Callable[[], dict[str, bytes]]:
    def load() -> dict[str, bytes]:
        array, label = parse_series(where, line, labelled)
        buffer = io.BytesIO()
        np.save(buffer, array)
        return {"npy": buffer.getvalue()} | ({"json": to_json({"label": label})} if labelled else {})

    return load


def parse_series(where: str, line: str, labelled: bool) -> tuple[np.ndarray, str]:
    """(float32 [T, C], label) of one line `v,v,...:v,v,...:label`; `?` is NaN. Raises DataError naming `where`."""
    parts = line.split(":")
    label = parts.pop().strip() if labelled else ""
    try:
        channels = [[float("nan") if v.strip() == "?" else float(v) for v in part.split(",")] for part in parts]
    except ValueError as error:
        raise DataError(f"{where}: {error}; values are numbers or '?'") from error
    lengths = Counter(map(len, channels))
    if len(lengths) != 1:
        raise DataError(f"{where}: channels of lengths {sorted(lengths)}; they must be equal")
    return np.asarray(channels, dtype=np.float32).T.copy(), label
