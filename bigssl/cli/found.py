"""Where the data of `bigssl init` lies: shards as they are, parts made of them, or shards packed of something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from shlex import join
from typing import cast

from bigssl.cli.clean import split
from bigssl.cli.fields import Fields, Kind
from bigssl.cli.listing import listed
from bigssl.cli.options import local
from bigssl.cli.pack import pack
from bigssl.config.errors import ConfigError
from bigssl.config.places import seen_from
from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.data.shards import storage, unpack
from bigssl.data.shards.index import MANIFEST, DatasetIndex
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.urls import place
from bigssl.data.tools.classes import dataset_parts
from bigssl.data.tools.guess import SUFFIXES, head, holds_numbers, picture_templates
from bigssl.data.tools.pack import split_by_key
from bigssl.data.tools.sources import Item
from bigssl.data.tools.sources_folder import files_below
from bigssl.starter.drafting import Parts
from bigssl.starter.looking import Look, look_at, spread_numbers, stored

FIRST = 64  # samples that are looked at before anything is packed
HELD = 500  # held-out samples that are looked at
FEWEST = 20  # samples of which some are held out
MANY = 1000  # samples of which a tenth is held out; of fewer, a fifth
LARGEST = 1 << 30  # bytes of shards that are copied into parts

Refuse = Callable[[Look], None]


def found_data(data: str, fields: Fields, refuse: Refuse) -> Parts:
    """The parts of `data`, which are made where there are none, each with the command that does the same.

    refuse: is asked with a first look at the samples, before anything is made. Raises ConfigError and DataError.
    """
    where, label, why = _stored(data), fields.label, ""
    if where is None:
        where, label = _packed(data, fields, refuse)
    elif given := words_of(replace(fields, label=None)):
        raise ConfigError(f"init: {given[0]} has no effect on {data}, which holds shards; it is for what is packed")
    train, held = where
    if not held:
        index = DatasetIndex.load(train)
        refuse(look_at(stored(index, FIRST), len(index)))
        train, held, why = _parted(train, index)
    index, other = DatasetIndex.load(train), DatasetIndex.load(held) if held else None
    look_at_held = None if other is None else look_at(stored(other, HELD), len(other))
    return Parts(train, held, look_at(stored(index), len(index)), look_at_held, why, label)


def _stored(data: str) -> tuple[str, str] | None:
    """(training part, held-out part or "") of shards; None where `data` is something else."""
    if not storage.is_local(place(data)) or not (path := local(data)).exists():
        return None if storage.is_local(place(data)) and not set(data) & set("*{") else (data, "")
    if not path.is_dir():
        return (data, "") if unpack.by_name(path.name) is not None else None
    above = path.parent if path.name == "train" and (path / MANIFEST).is_file() else path
    parts = sorted(child.name for child in above.iterdir() if (child / MANIFEST).is_file())
    if "train" in parts:
        held = [name for name in ("val", "test", *parts) if name in parts and name != "train"][:1]
        before = str(Path(data).parent if above != path else Path(data))
        return f"{before}/train", f"{before}/{held[0]}" if held else ""
    if (path / MANIFEST).is_file():
        return data, ""
    if parts:
        raise ConfigError(f"init: {data} holds the datasets {', '.join(parts)}; allowed: one of them, or parts called "
                          "train and val")  # fmt: skip
    if any(unpack.by_name(child.name) is not None for child in path.iterdir()):
        raise ConfigError(f"init: {data} holds shards without an index; `bigssl shards index {data}` makes one")
    return None


def _parted(data: str, index: DatasetIndex) -> tuple[str, str, str]:
    """(training part, held-out part, why there is none) of unparted shards."""
    share = share_of([index.row(number)[1].key for number in range(len(index))] if len(index) < MANY else None)
    size = sum(shard.bytes for shard in index.shards)
    target = Path(f"{data.rstrip('/')}-split")
    command = ["bigssl", "shards", "split", data, str(target), "--part", f"val={share}"]
    if share is None:
        return data, "", few(len(index))
    if size > LARGEST or not storage.is_local(place(data)) or not local(data).is_dir():
        return data, "", f"`{join(command)}` holds some out; then `bigssl init` on {target}"
    if not _there(target, len(index), data):
        print(join(command))
        split(data, str(target), part=f"val={share}")
    return f"{target}/train", f"{target}/val", ""


def few(samples: int) -> str:
    """Why nothing is held out."""
    return f"{samples} samples are too few to hold some out"


def share_of(groups: Sequence[str] | None) -> float | None:
    """Which share is held out; None where there would be nothing on one side. groups: of all samples, None of MANY."""
    if groups is None or len(groups) >= MANY:
        return 0.1
    held = sum(split_by_key(group, 0.2) for group in groups)
    return 0.2 if len(groups) >= FEWEST and 2 <= held < len(groups) else None


def _packed(data: str, fields: Fields, refuse: Refuse) -> tuple[tuple[str, str], str | None]:
    """The parts of what was packed, and the field of its json by which is to be judged: that of a table's column is
    `label` there."""
    source = local(data)
    if not source.exists():
        raise DataError(f"source {source}: no such file or folder{seen_from(source)}")
    target, label, names = target_of(source), None, files_below(source, LeftOut()) if source.is_dir() else []
    fields = replace(fields, kind=fields.kind or cast(Kind | None, _kind(source, names)))
    if fields.kind in (None, "files") and source.is_dir():
        label, fields = fields.label, replace(fields, label=None)
    items = listed(source, fields, target).items
    refuse(look_at(map(_sample, (items[number] for number in spread_numbers(len(items), FIRST))), len(items)))
    parts = dataset_parts(source, names)
    share = None if parts else share_of([item.group for item in items])
    held = next((name for name in ("val", "test") if name in parts), "" if share is None else "val")
    if not _there(target, len(items), data):
        for name, folder in parts.items():
            _pack(str(folder), f"{target}/{name}", fields, None)
        if not parts:
            _pack(data, str(target), fields, share)
    return ((f"{target}/train", f"{target}/{held}") if held else (str(target), "")), label


def _pack(source: str, target: str, fields: Fields, share: float | None) -> None:
    """Says the command, and does what it does."""
    part = None if share is None else f"val={share}"
    words = [*words_of(fields), *([] if part is None else ["--split", part])]
    print(join(["bigssl", "shards", "pack", source, target, *words]), flush=True)
    pack(source, target, split=part, fields=fields)


def _kind(source: Path, names: Sequence[str]) -> str | None:
    """What a source is that `pack` takes for something else, or asks about: files of one kind that are no samples by
    themselves, and a table of numbers."""
    suffixes = {Path(name).suffix.lower() for name in names}
    if len(suffixes) == 1 and not suffixes & {SUFFIXES["lines"]}:
        return next((kind for kind, suffix in SUFFIXES.items() if suffix in suffixes), None)
    if names or source.suffix.lower() != SUFFIXES["series"]:
        return None
    first = head(source)
    return "series" if first and holds_numbers(first) and not picture_templates(first, source.parent) else None


def target_of(source: Path) -> Path:
    """Where the shards of a source go: beside it."""
    named = source if source.name not in ("", "..") else source.resolve()
    return named.with_name(f"{named.name if named.is_dir() else named.stem}-shards")


def _sample(item: Item) -> Sample:
    try:
        return Sample(item.key, item.load(), 0, 0, "", "")
    except OSError as error:
        raise DataError(f"source {error.filename or item.key} cannot be read ({error.strerror})") from error


def _there(target: Path, samples: int, data: str) -> bool:
    """Whether an earlier `init` made these shards. Raises ConfigError where they are others."""
    if not target.exists():
        return False
    try:
        parts = [folder for folder in (target, *target.glob("*")) if (folder / MANIFEST).is_file()]
        there = sum(len(DatasetIndex.load(part)) for part in parts)
    except DataError:
        there = 0
    if there != samples:
        raise ConfigError(f"init: {target} is there already and holds {there} samples, but {data} {samples}; remove "
                          "it, or give it as DATA")  # fmt: skip
    print(f"{target}: there already, {there} samples")
    return True


def words_of(fields: Fields) -> list[str]:
    """The options of `bigssl shards pack` that these are, as they are typed."""
    default, words = Fields(), list[str]()
    for each in fields_of(Fields):
        value = getattr(fields, each.name)
        if value != getattr(default, each.name):
            option = f"--{'as' if each.name == 'kind' else each.name}"
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (option, str(one))]
    return words
