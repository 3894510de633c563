"""Where the data of `bigssl init` lies: shards as they are, parts made of them, or shards packed of something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from shlex import join
from typing import NamedTuple, cast

from bigssl.cli.clean import split
from bigssl.cli.fields import Fields, Kind
from bigssl.cli.listing import listed
from bigssl.cli.making import FEWEST, Made, Parted, already_made, held_share, held_time, made_target, mark_of, note_made
from bigssl.cli.options import Writing, local, note
from bigssl.cli.pack import pack
from bigssl.cli.timed import TABLES
from bigssl.config.errors import ConfigError
from bigssl.config.places import seen_from
from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.data.shards import storage, unpack
from bigssl.data.shards.index import MANIFEST, DatasetIndex
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.urls import place
from bigssl.data.tools.classes import LABEL, dataset_parts
from bigssl.data.tools.guess import SUFFIXES, ask_of_few_texts, head, holds_numbers, picture_templates
from bigssl.data.tools.parts import equal_together
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.sources.folder import files_below
from bigssl.data.tools.sources.shards import from_index, stretches_of
from bigssl.starter.drafting import Parts
from bigssl.starter.looking import Look, look_at, spread_numbers, stored

FIRST = 64  # samples that are looked at before anything is packed
HELD = 500  # held-out samples that are looked at
LARGEST = 1 << 30  # bytes of shards that are copied into parts

Refuse = Callable[[Look], None]


class _Place(NamedTuple):
    """Training part, held-out part or "", why there is none, and the field of the json to judge by, if asked for."""

    train: str
    held: str = ""
    why: str = ""
    label: str | None = None


def found_data(data: str, fields: Fields, refuse: Refuse, overwrite: bool) -> Parts:
    """The parts of `data`, which are made where there are none, each with the command that does the same.

    refuse: is asked with a first look at the samples, before anything is made. overwrite: what an earlier call made
    may be replaced. Raises ConfigError and DataError.
    """
    where = _stored(data)
    if where is None:
        where = _packed(data, fields, refuse, overwrite)
    elif given := words_of(replace(fields, label=None)):
        raise ConfigError(f"init: {given[0]} has no effect on {data}, which holds shards; it is for what is packed")
    else:
        where = where._replace(label=fields.label)
    index, look = DatasetIndex.load(where.train), None
    if not (where.held or where.why):
        look = look_at(stored(index), len(index))
        refuse(look)
        parted = _parted(where, index, overwrite)
        look, where = look if parted.train == where.train else None, parted
        index = DatasetIndex.load(where.train)
    other = DatasetIndex.load(where.held) if where.held else None
    look_at_held = None if other is None else look_at(stored(other, HELD), len(other))
    return Parts(where.train, where.held, look or look_at(stored(index), len(index)), look_at_held, where.why,
                 where.label)  # fmt: skip


def _stored(data: str) -> _Place | None:
    """Where shards lie; None where `data` is something else."""
    if not storage.is_local(place(data)) or not (path := local(data)).exists():
        return None if storage.is_local(place(data)) and not set(data) & set("*{") else _Place(data)
    if not path.is_dir():
        return _Place(data) if unpack.by_name(path.name) is not None else None
    above = path.parent if path.name == "train" and (path / MANIFEST).is_file() else path
    parts = sorted(child.name for child in above.iterdir() if (child / MANIFEST).is_file())
    if "train" in parts:
        held, before = _held_of(parts), str(Path(data).parent if above != path else Path(data))
        return _Place(f"{before}/train", f"{before}/{held}" if held else "")
    if (path / MANIFEST).is_file():
        return _Place(data)
    if parts:
        raise ConfigError(f"init: {data} holds the datasets {', '.join(parts)}; allowed: one of them, or parts called "
                          "train and val")  # fmt: skip
    if any(unpack.by_name(child.name) is not None for child in path.iterdir()):
        raise ConfigError(f"init: {data} holds shards without an index; `bigssl shards index {data}` makes one")
    return None


def _held_of(parts: Sequence[str]) -> str:
    """The part to judge by: val before test before others; "" where there is none."""
    return next((name for name in ("val", "test", *sorted(parts)) if name in parts and name not in ("train", "")), "")


def _parted(where: _Place, index: DatasetIndex, overwrite: bool) -> _Place:
    """The parts of unparted shards, which are made where that is a matter of seconds."""
    data, size = where.train, sum(shard.bytes for shard in index.shards)
    name = Path(storage.bare(data)).name if data not in (".", "..") else local(data).resolve().name
    target = made_target(name, "split", None)
    command = ["bigssl", "shards", "split", data, str(target)]
    if size > LARGEST or not storage.is_local(place(data)) or not local(data).is_dir():
        advice = join([*command, "--part", "val=0.1", "--equal-together"])
        return where._replace(why=f"`{advice}` holds some out; then `bigssl init` on {target}")
    made = Made([], index.fingerprint)
    if already_made(target, made, data, overwrite) is None:
        windows, items = stretches_of(index), from_index(index, range(len(index)))
        together = windows is None
        share, why = held_share([item.group for item in equal_together(items)]) if together else held_time(
            lambda share: list(stretches_of(index) or ()))  # fmt: skip
        if share is None:
            return where._replace(why=why)
        print(join([*command, "--part", f"val={share}", *(["--equal-together"] if together else [])]))
        split(data, str(target), part=f"val={share}", equal_together=together, writing=Writing(overwrite=overwrite))
        note_made(target, made, Parted(["train", "val"]))
    return where._replace(train=f"{target}/train", held=f"{target}/val")


def _packed(data: str, fields: Fields, refuse: Refuse, overwrite: bool) -> _Place:
    """The parts of what was packed. The json says as `label` what a column of another name does."""
    source = local(data)
    if not source.exists():
        raise DataError(f"source {source}: no such file or folder{seen_from(source)}")
    folder = source if source.is_dir() else None
    name = source.resolve().name if source.name in ("", "..") else source.name if folder else source.stem
    target, names = made_target(name, "shards", folder), files_below(source, LeftOut()) if folder else []
    fields, label = replace(fields, kind=fields.kind or cast(Kind | None, _kind(source, names))), fields.label
    if fields.kind in (None, "files") and folder:
        fields = replace(fields, label=None)
    elif label is not None:
        label = LABEL
    sources = dataset_parts(source, names) or {"": source}
    outside = [name for name in names if not any((source / name).is_relative_to(each) for each in sources.values())]
    if outside:
        note(f"left out: {len(outside)} files that are in none of the parts {', '.join(sources)}, e.g. {outside[0]!r}")
    items = [item for each in sources.values() for item in listed(each, fields, target).items]
    if fields.kind is None and folder and len(items) < FEWEST:
        ask_of_few_texts(source, names)
    refuse(_looked(items))
    if fields.label is not None:
        _refuse_unlabelled(fields.label, items)
    made = Made(words_of(fields), mark_of(items))
    parted = already_made(target, made, data, overwrite)
    if parted is None:
        parted = _make(target, made, fields, sources, items, overwrite)
        note_made(target, made, parted)
    train, held = f"{target}/train" if "train" in parted.parts else str(target), _held_of(parted.parts)
    return _Place(train, held and f"{target}/{held}", parted.why, label)


def _make(
    target: Path, made: Made, fields: Fields, sources: Mapping[str, Path], items: list[Item], overwrite: bool
) -> Parted:
    if "" not in sources:
        parted = Parted(list(sources))
        note_made(target, made, parted)  # first, so that what is interrupted goes on with the parts that lack
        for part, folder in sources.items():
            if overwrite or not (target / part / MANIFEST).is_file():
                _pack(str(folder), f"{target}/{part}", fields, [], overwrite)
        return parted
    source = sources[""]
    if fields.window is not None and fields.split_by != "series":
        share, why = held_time(lambda share: listed(source, fields, target, held_out=share).items)
        together = []
    else:
        share, why = held_share([item.group for item in equal_together(items)])
        together = ["--equal-together"]
    words = [] if share is None else ["--split", f"val={share}", *together]
    _pack(str(source), str(target), fields, words, overwrite)
    return Parted([""], why) if share is None else Parted(["train", "val"])


def _pack(source: str, target: str, fields: Fields, words: Sequence[str], overwrite: bool) -> None:
    """Says the command, and does what it does."""
    print(join(["bigssl", "shards", "pack", source, target, *words_of(fields), *words]), flush=True)
    pack(source, target, split=words[1] if words else None, equal_together="--equal-together" in words, fields=fields,
         writing=Writing(overwrite=overwrite))  # fmt: skip


def _kind(source: Path, names: Sequence[str]) -> str | None:
    """What a source is that `pack` takes for something else, or asks about: files of one kind that are no samples by
    themselves, and a table of numbers."""
    suffixes = {Path(name).suffix.lower() for name in names}
    if len(suffixes) == 1 and not suffixes & {SUFFIXES["lines"]}:
        return "series" if suffixes <= set(TABLES) else next(
            (kind for kind, suffix in SUFFIXES.items() if suffix in suffixes), None)  # fmt: skip
    if names or source.suffix.lower() != SUFFIXES["series"]:
        return None
    first = head(source)
    return "series" if first and holds_numbers(first) and not picture_templates(first, source.parent) else None


def _looked(items: Sequence[Item]) -> Look:
    """A look at some samples, and at the names of the fields of all of them where these are known."""
    look = look_at(map(_sample, (items[number] for number in spread_numbers(len(items), FIRST))), len(items))
    named = [(item.key, item.fields) for item in items if item.fields is not None]
    if len(named) == len(items):
        look.see_names(named)
    return look


def _refuse_unlabelled(label: str, items: Sequence[Item]) -> None:
    without = [item.key for item in items if item.label is None]
    if without:
        some = f"{len(without)} of {len(items)} samples, such as {without[0]!r}"
        raise ConfigError(f"--label: value {label!r} is empty in {some}; fill it in, leave these out, or no --label")


def _sample(item: Item) -> Sample:
    try:
        return Sample(item.key, item.load(), 0, 0, "", "")
    except OSError as error:
        raise DataError(f"source {error.filename or item.key} cannot be read ({error.strerror})") from error


def words_of(fields: Fields) -> list[str]:
    """The options of `bigssl shards pack` that these are, as they are typed."""
    default, words = Fields(), list[str]()
    for each in fields_of(Fields):
        value = getattr(fields, each.name)
        if value != getattr(default, each.name):
            option = f"--{'as' if each.name == 'kind' else each.name.replace('_', '-')}"
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (option, str(one))]
    return words
