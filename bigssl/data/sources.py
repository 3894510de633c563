"""What `bigssl shards pack` reads: folders of files, and tables of pictures and captions. Each source yields `Item`s in
order; an item knows where its bytes are and does not hold them. Texts and series: `sources_text`, `sources_series`."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bigssl import limits
from bigssl.data.decode import IMAGES
from bigssl.data.errors import DataError
from bigssl.data.tarwalk import split_name


@dataclass(frozen=True, slots=True)
class Item:
    """A sample to be packed: `load()` gives its fields; samples of equal `group` stay on one side of a split.

    stamp: says, as something JSON can hold, which version of the source `load` would read; equal stamps, equal bytes.
    Shards of items without one are never taken over from an interrupted run.
    """

    key: str
    group: str
    load: Callable[[], dict[str, bytes]]
    stamp: Callable[[], object] | None = None


def to_json(values: Mapping[str, object]) -> bytes:
    """Compact UTF-8 JSON with sorted keys: the same values, the same bytes."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def version(path: str | Path) -> list[object]:
    """Name, size and time of change of a file. Raises OSError."""
    facts = os.stat(path)
    return [os.fspath(path), facts.st_size, facts.st_mtime_ns]


def read_file(path: str | Path) -> bytes:
    """The bytes of a file. Raises OSError, and DataError where it is larger than a member of a shard may be."""
    if refused := limits.over("member_bytes", os.stat(path).st_size):
        raise DataError(f"{path} refused: {refused}")
    return Path(path).read_bytes()


def files_below(root: Path) -> list[str]:
    """Paths below `root`, relative to it and sorted, without what begins with a dot."""
    found: list[str] = []
    for folder, folders, names in os.walk(root, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        found += (prefix + name for name in names if not name.startswith("."))
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise DataError(f"folder {error.filename} cannot be read ({error.strerror})") from error


class Files(NamedTuple):
    """The files of one sample of a folder: (field, path below `root`) each. Facts in the names become the json."""

    root: str
    names: tuple[tuple[str, str], ...]
    pattern: str | None

    def load(self) -> dict[str, bytes]:
        """The files as they are."""
        facts: dict[str, object] = {}
        for _, name in self.names if self.pattern else ():
            facts |= _name(name, self.pattern)[2]
        fields = {field: read_file(f"{self.root}/{name}") for field, name in self.names}
        return fields | ({"json": to_json(facts)} if facts else {})

    def stamp(self) -> object:
        """Which version of the files."""
        return [self.pattern, *(version(f"{self.root}/{name}") for _, name in self.names)]


def from_folder(root: Path, pattern: str | None = None) -> Iterator[Item]:
    """Files below `root`: `sub/name.jpg` and `sub/name.txt` make the sample `sub/name` with fields jpg and txt.

    pattern: a regular expression for whole relative paths without the last extension. Its group `key` becomes the key,
    the other named groups (numbers as numbers) the field json.
    """
    groups: dict[str, tuple[tuple[str, str], ...]] = {}
    for name in files_below(root):
        key, field, _ = _name(name, pattern)
        files = groups.get(key, ())
        if field in (other for other, _ in files):
            raise DataError(f"{root / name}: a second file for sample {key!r}, field {field!r}; rename one")
        groups[key] = (*files, (sys.intern(field), name))
    for key, files in groups.items():
        sample = Files(str(root), files, pattern)
        yield Item(key, key, sample.load, sample.stamp)


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


class Captioned(NamedTuple):
    """A picture and what the table says about it."""

    picture: str
    text: str
    facts: bytes

    def load(self) -> dict[str, bytes]:
        """The picture's bytes as they are, txt, and json where there are facts."""
        fields = {Path(self.picture).suffix[1:].lower(): read_file(self.picture), "txt": self.text.encode()}
        return fields | ({"json": self.facts} if self.facts else {})

    def stamp(self) -> object:
        """Which version of picture and row."""
        return [version(self.picture), self.text, self.facts.decode()]


def from_table(path: Path, root: Path, table: Table) -> Iterator[Item]:
    """One sample per row and image variant: the picture's bytes as they are, txt, json."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        tabs = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = tabs if path.suffix == ".tsv" else csv.DictReader(file)
        for row in rows:
            if None in row or None in row.values():
                columns = len(rows.fieldnames or ())
                raise DataError(f"table {path}, line {rows.line_num}: not {columns} columns as in the header")
            for variant, image in table.images.items():
                yield _table_item(path, root, table, {**row, "variant": variant}, image)


def _table_item(path: Path, root: Path, table: Table, row: Mapping[str, str], image: str) -> Item:
    try:
        key, group, text, picture = (t.format_map(row) for t in (table.key, table.group, table.text, image))
        facts = {column: row[column] for column in table.meta}
    except KeyError as error:
        raise DataError(f"table {path}: no column {error}; it has {', '.join(sorted(row))}") from error
    if Path(picture).suffix[1:].lower() not in IMAGES:
        raise DataError(f"table {path}: {picture!r} is no picture; allowed are {', '.join(IMAGES)}")
    facts |= {table.variant: row["variant"]} if len(table.images) > 1 else {}
    sample = Captioned(str(root / picture), text, to_json(facts) if facts else b"")
    return Item(key, group, sample.load, sample.stamp)
