"""What several commands of `bigssl shards` share: options, checks of folders, summaries."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import ValidationError

from bigssl.config import limits
from bigssl.data.errors import DataError, display
from bigssl.data.shards import storage
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.urls import meant, place


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


LIMITS = ", ".join(f"{name} ({info.default})" for name, info in limits.Limits.model_fields.items())
AGAIN = "; the same command goes on from the finished shards"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Limited:
    """What every command that reads shards has."""

    limit: Annotated[
        list[str],
        Parameter(help=f"NAME=VALUE: refuse what is larger, or allow it; repeatable; names (and defaults): {LIMITS}"),
    ] = field(default_factory=list)

    @contextmanager
    def applied(self, again: str = "") -> Iterator[None]:
        """Within it, the limits that were given hold. again: what is said besides when Ctrl-C ends the command."""
        try:
            with limits.applied(limits.Limits(**dict(map(_limit, self.limit)))):
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(again) from None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading(Limited):
    """What every command that reads whole datasets has besides."""

    jobs: int = field(default_factory=_cores)
    """processes (default: all cores)"""


def _limit(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    try:
        limits.Limits(**{name: int(value)})
    except ValidationError as error:
        problem = error.errors()[0]["msg"].lower()
        raise DataError(f"--limit {text}: {problem}; names are {', '.join(limits.Limits.model_fields)}") from error
    except ValueError as error:
        raise DataError(f"--limit {text}: is not NAME=VALUE with a whole number") from error
    return name, int(value)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Writing(Reading):
    """What every command that writes shards has besides."""

    name: str | None = None
    """first part of the shards' names (default: the folder's name)"""
    shard_size: int = 10_000
    """samples per shard"""
    compress: bool = False
    """gzip that stays readable by range; halves small samples"""
    overwrite: bool = False
    """replace the folder when the new one is complete"""

    def arguments(self, folder: Path) -> dict[str, Any]:
        """The arguments of `pack` that these are."""
        given = {name: value for name, value in asdict(self).items() if name != "limit"}
        name = folder.resolve().name if self.name is None else _file_name(self.name)
        return given | {"name": name, "note": note}


def _file_name(name: str) -> str:
    if not name or "/" in name or name.startswith(".") or len(name.encode(errors="replace")) > 200:
        raise DataError(f"--name {name!r}: a name without / and without . before it is needed, of 1 to 200 bytes")
    return name


def local(text: str) -> Path:
    """A local path, with `~`, `$VAR` and `file:` as in the URLs of a recipe."""
    url = place(text)
    if not storage.is_local(url):
        raise DataError(f"{display(url)} is no local path, which is needed here")
    return Path(url)


def note(text: str) -> None:
    """Says something that is not the result of the command."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """What no encoding can hold (bytes of a name that are no UTF-8) as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def note_left_out(left_out: LeftOut) -> None:
    """Says what a source holds that became no sample."""
    for line in left_out.lines():
        note(line)


def refuse_destroying(source: str, folder: Path) -> None:
    """Raises DataError when replacing `folder` would remove `source`."""
    for url in meant(source):
        if storage.is_local(url) and storage.local_path(url).resolve().is_relative_to(folder.resolve()):
            raise DataError(f"the source {source} lies in {folder}, which is to be written; write into another folder")


def split_of(text: str) -> tuple[str, float]:
    """PART=FRACTION."""
    part, _, fraction = text.partition("=")
    try:
        value = float(fraction)
    except ValueError:
        value = -1.0
    if not part.isidentifier() or part == "train" or not 0 < value < 1:
        raise DataError(f"{text!r} is not PART=FRACTION with 0 < FRACTION < 1, e.g. val=0.1")
    return part, value


def summary(index: DatasetIndex) -> str:
    """One line about a dataset."""
    return f"{len(index)} samples in {len(index.shards)} shards, fields {', '.join(index.fields)}"


def print_written(folder: Path, indexes: dict[str, DatasetIndex]) -> None:
    """A line for each part that was written."""
    for part, index in indexes.items():
        print(f"{folder / part}: {summary(index)}")
