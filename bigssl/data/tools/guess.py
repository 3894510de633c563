"""What a source is, and which of its columns are meant, where no option says it; what cannot be told is asked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from bigssl.data.errors import DataError
from bigssl.data.kinds.decode import IMAGES
from bigssl.data.tools.classes import CLASSES
from bigssl.data.tools.sources_tables import rows
from bigssl.data.tools.sources_text import HEAD

SUFFIXES = {"lines": ".txt", "jsonl": ".jsonl", "series": ".csv", "ts": ".ts"}
Rows = Sequence[Mapping[str, str]]


def kind_of(source: Path) -> str:
    """files, table, lines, jsonl or ts, by the name of `source`. Raises DataError for others."""
    if source.is_dir():
        return "files"
    kinds = {".tsv": "table", ".csv": "table"} | {suffix: kind for kind, suffix in SUFFIXES.items() if kind != "series"}
    suffix = source.suffix.lower()
    if suffix not in kinds:
        raise DataError(
            f"source {source}: allowed are a folder, {', '.join(sorted(kinds))}; or say what it is with --as"
        )
    return kinds[suffix]


def head(path: Path) -> list[dict[str, str]]:
    """The first rows of a table. Raises DataError."""
    return [row for _, row in islice(rows(path), HEAD)]


def picture_templates(first: Rows, root: Path) -> list[str]:
    """Templates of which each gives pictures below `root`: columns that hold their paths, or else those from which a
    folder before and an extension behind make paths. first: some rows; most of their pictures must be there."""
    columns = [name for name in (first[0] if first else ()) if name and not set(name) & set("{}")]
    direct = [f"{{{name}}}" for name in columns if _are_pictures([row[name] for row in first], root)]
    return direct or [
        _escaped(before) + f"{{{name}}}" + after
        for name in columns for before, after in _frames(first[0][name], root)
        if _are_pictures([f"{before}{row[name]}{after}" for row in first], root)
    ]  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _are_pictures(paths: Sequence[str], root: Path) -> bool:
    named = all(Path(path).suffix[1:].lower() in IMAGES for path in paths)
    return named and sum(_is_file(root / path) for path in paths) > len(paths) / 2


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, a zero byte
        return False


def _frames(cell: str, root: Path) -> Iterator[tuple[str, str]]:
    """(folder before, extension behind) with which the cell names a file."""
    if not cell.strip() or cell.startswith("/"):
        return
    for before in ["", *_folders(root)]:
        for after in ["", *(f".{kind}" for kind in IMAGES), *(f".{kind.upper()}" for kind in IMAGES)]:
            if (before or after) and _is_file(root / f"{before}{cell}{after}"):
                yield before, after


def _folders(root: Path, depth: int = 2) -> list[str]:
    """Folders below `root` and those in them, with a slash behind; hidden ones are none."""
    try:
        with os.scandir(root) as entries:
            here = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    below = [f"{name}/{deeper}" for name in here for deeper in (_folders(root / name, depth - 1) if depth > 1 else [])]
    return [*(f"{name}/" for name in here), *below]


def named_pictures(first: Rows) -> list[str]:
    """Columns whose cells look like names of pictures."""
    return [name for name in first[0] if all(Path(row[name]).suffix[1:].lower() in IMAGES for row in first)]


def pictureless(path: Path, root: Path, first: Rows) -> DataError:
    """The error of a table in which no column names pictures: what it may be, with a command."""
    there = ", ".join(first[0])
    if named := named_pictures(first):
        cell = first[0][named[0]]
        what = f"the pictures of column {named[0]!r}, e.g. {cell!r}, are not below {root}"
        return DataError(f"source {path}: {what}; say with --root where they are")
    if holds_numbers(first):
        advice = "a table of numbers needs --as series, e.g. --as series --window 96"
    elif texts := text_columns(first):
        advice = f"a table of texts needs --text, e.g. --text {_quoted(max(texts, key=lambda n: _length(first, n)))}"
    else:
        advice = "a table of texts needs --text, a table of numbers needs --as series"
    needs = "a table needs --image, e.g. --image 'images/{name}.jpg', where no column names pictures"
    return DataError(f"source {path}: {needs} (it has {there}); {advice}")


def holds_numbers(first: Rows) -> bool:
    """Whether a table is one of numbers, with at most one other column, such as the time."""
    numbers = [name for name in first[0] if all(is_number(row[name]) for row in first)]
    return len(numbers) > len(first[0]) / 2 and len(first[0]) - len(numbers) < 2


def _quoted(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else f"'{name}'"


def _length(first: Rows, name: str) -> int:
    return sum(len(row[name]) for row in first)


def text_columns(first: Rows) -> list[str]:
    """Columns that hold words: neither numbers nor names of classes."""
    return [name for name in (first[0] if first else ()) if name.lower() not in CLASSES
            and not all(is_number(row[name]) for row in first)]  # fmt: skip


def is_number(cell: str) -> bool:
    """Whether a cell is a number, or stands for a missing one."""
    try:
        return not cell.strip() or "_" not in cell and not math.isinf(float(cell))
    except ValueError:
        return cell.strip() in ("?", "NA")
