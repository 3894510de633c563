"""The shards that `bigssl init` makes: where, of how large a held-out share, and which of them an earlier one made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.shards.index import MANIFEST, DatasetIndex
from bigssl.data.tools.pack import split_by_key
from bigssl.data.tools.parts import by_time
from bigssl.data.tools.sources.base import Item, json_bytes
from bigssl.files import write_atomic

FEWEST = 20  # samples of which some are held out
MANY = 1000  # samples of which a tenth is held out; of fewer, a fifth
SHARES = (0.1, 0.2, 0.3, 0.5)  # the first of them that leaves samples on both sides
MOST = 0.6  # of the samples that may be held out, where groups are large
RECORD = ".init.json"


class Made(NamedTuple):
    """What shards were made of. options: of the command; sources: a hash of the samples, or of the dataset."""

    options: list[str]
    sources: str


def mark_of(items: Iterable[Item]) -> str:
    """Which version of the sources these samples come from."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(json_bytes({"key": item.key, "of": item.stamp() if item.stamp else None}))
    return digest.hexdigest()


def made_target(name: str, end: str, source: Path | None) -> Path:
    """Where shards go: the working directory, as the recipe. source: the folder that becomes shards, if it is one.

    Raises ConfigError where what is written would lie in it.
    """
    if source is not None and Path.cwd().resolve().is_relative_to(source.resolve()):
        raise ConfigError(
            f"init: the working directory lies in the data ({source.resolve()}), of which shards, recipe and runs "
            f"would become a part; go to another folder, such as {source.resolve().parent}"
        )
    return Path(f"{name}-{end}")


class Parted(NamedTuple):
    """Names of the parts ("" where they are one), and why nothing is held out."""

    parts: list[str]
    why: str = ""


def already_made(target: Path, made: Made, data: str, overwrite: bool) -> Parted | None:
    """What an earlier `init` made of the same; None where it is to be made.

    Raises ConfigError where something else is there, unless it was made by `init` and may be replaced.
    """
    if not target.exists():
        return None
    before = _record(target)
    if before is None:
        raise ConfigError(f"init: {target} is there already, {_samples(target)}, and was not made by `bigssl init`; "
                          "remove it, or give it as DATA")  # fmt: skip
    parts = before["parts"]
    same = before["options"] == made.options and before["sources"] == made.sources
    if same and all((target / part / MANIFEST).is_file() for part in parts):
        print(f"{target}: there already, {_samples(target)}")
        return Parted(parts, before["why"])
    if same or overwrite:
        return None
    told = " ".join(before["options"]) or "no options"
    cause = (f"was made with {told}, not {' '.join(made.options) or 'without'}" if before["options"] != made.options
             else f"holds {_samples(target)} of another state of {data}")  # fmt: skip
    raise ConfigError(f"init: {target} is there already and {cause}; allowed: --overwrite, which makes it anew, or "
                      "remove it, or give it as DATA")  # fmt: skip


def note_made(target: Path, made: Made, parted: Parted) -> None:
    """Says in the folder what its shards were made of."""
    target.mkdir(exist_ok=True)
    write_atomic(target / RECORD, json_bytes({**made._asdict(), **parted._asdict()}))


def _record(target: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((target / RECORD).read_text())
        return {name: found[name] for name in (*Made._fields, *Parted._fields)}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _samples(target: Path) -> str:
    try:
        parts = [folder for folder in (target, *sorted(target.glob("*"))) if (folder / MANIFEST).is_file()]
        return f"{sum(len(DatasetIndex.load(part)) for part in parts)} samples"
    except DataError:
        return "without a sound dataset"


def held_share(groups: Sequence[str]) -> tuple[float | None, str]:
    """(which share is held out, ""), or (None, why nothing is). groups: of each sample, as the split parts them."""
    if len(groups) < FEWEST:
        return None, f"{len(groups)} samples are too few to hold some out"
    for share in SHARES if len(groups) >= MANY else SHARES[1:]:
        held = sum(split_by_key(group, share) for group in groups)
        if 2 <= held <= len(groups) * MOST:
            return share, ""
    return None, f"the samples are of {len(set(groups))} groups, too few or too unequal to hold some out"


def held_time(listed_with: Callable[[float], Sequence[Item]]) -> tuple[float | None, str]:
    """The same of windows of series. listed_with: the windows where a share is held out."""
    why = ""
    for share in SHARES[1:]:
        try:
            by_time(listed_with(share), "val", share)
        except DataError as error:
            why = why or str(error).partition(";")[0]
        else:
            return share, ""
    return None, why
