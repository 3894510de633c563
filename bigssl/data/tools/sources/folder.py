"""Folders of files for `bigssl shards pack`: files of one name are the fields of one sample."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.decode import AUDIO, IMAGES
from bigssl.data.shards import leftout, unpack
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.tarwalk import split_name
from bigssl.data.tools.classes import LABEL, folder_labels, with_label
from bigssl.data.tools.sources.base import Item, is_utf8, json_bytes, read_file, version
from bigssl.data.tools.sources.boxes import Boxed
from bigssl.data.tools.sources.masks import refuse_unfitting

_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "$recycle.bin", "system volume information",
           "@eadir", "lost+found"}  # fmt: skip


def files_below(root: Path, left_out: LeftOut) -> list[str]:
    """Paths below `root`, relative to it and sorted; links to files and folders are followed.

    left_out: is told what begins with a dot, what systems put there (Thumbs.db), what is no ordinary file, and which
    files are empty (they are taken). Raises DataError for a folder that cannot be read, and a link that leads back to a
    folder around it.
    """
    return sorted(_below(str(root), "", (os.path.realpath(root),), left_out))


def _below(folder: str, prefix: str, around: tuple[str, ...], left_out: LeftOut) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {error.filename} cannot be read ({error.strerror})") from error
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith("."):
            left_out.add(leftout.FOLDERS if entry.is_dir() else leftout.HIDDEN, name)
        elif entry.name.lower() in _SYSTEM:
            left_out.add(leftout.SYSTEM, name)
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in around:
                raise DataError(f"{entry.path} leads back to {real}, a folder around it; remove the link")
            yield from _below(entry.path, f"{name}/", (*around, real), left_out)
        elif entry.is_file():
            if not entry.stat().st_size:
                left_out.add(leftout.EMPTY, name)
            yield name
        elif entry.is_symlink() and not os.path.exists(entry.path):
            raise DataError(f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there; remove it")
        else:
            left_out.add(leftout.SPECIAL, name)


class Files(NamedTuple):
    """The files of one sample of a folder: (field, path below `root`) each. Facts in the names become the json; label,
    boxes: more of them. mask: path of the one of its picture."""

    root: str
    names: tuple[tuple[str, str], ...]
    pattern: str | None
    label: str | None = None
    boxes: Boxed | None = None
    mask: str | None = None

    def load(self) -> dict[str, bytes]:
        """The files as they are; a json of their own gets the label where it has none, and the boxes."""
        facts = self.facts()
        fields = {field: read_file(Path(self.root, name)) for field, name in self.files()}
        self._refuse_unfitting(fields)
        boxes = {} if self.boxes is None else self.boxes.facts()
        if "json" in fields:
            own = fields["json"] if self.label is None else with_label(fields["json"], self.label)
            return fields | {"json": self._with_boxes(own, boxes) if boxes else own}
        facts = facts if self.label is None else {LABEL: self.label} | facts
        return fields | ({"json": json_bytes(facts | boxes)} if facts or boxes else {})

    def files(self) -> Sequence[tuple[str, str]]:
        """All of them: (field, path), relative to `root` or absolute."""
        return self.names if self.mask is None else [*self.names, (decode.MASK, self.mask)]

    def _refuse_unfitting(self, fields: Mapping[str, bytes]) -> None:
        shown = next((field for field, _ in self.names if field in IMAGES), None)
        if shown is None:
            return
        where = f"{self.root}/{dict(self.names)[shown]}"
        if self.boxes is not None:
            self.boxes.refuse_turned(fields[shown], where)
        if decode.MASK in fields:
            refuse_unfitting(fields[shown], fields[decode.MASK], where, dict(self.files())[decode.MASK])

    def _with_boxes(self, own: bytes, boxes: dict[str, object]) -> bytes:
        try:
            facts = decode.meta(own)
        except DataError as error:
            raise DataError(f"{self.root}: the json of {self.names[0][1]} cannot hold boxes: {error}") from error
        if double := sorted(facts.keys() & boxes.keys()):
            raise DataError(f"{self.root}: the json of {self.names[0][1]} has {double[0]!r} already, so has the file "
                            "of boxes; remove one")  # fmt: skip
        return json_bytes(facts | boxes)

    def facts(self) -> dict[str, object]:
        """What the names of all files say together; a group that took no part says "", where no other file says more.
        Raises DataError where they disagree."""
        found: dict[str, object] = {}
        said_by: dict[str, str] = {}
        for _, name in self.names if self.pattern else ():
            for fact, value in _name(name, self.pattern).facts.items():
                if found.get(fact, "") not in ("", value) and value != "":
                    other = f"{self.root}/{said_by[fact]}"
                    where = f"{self.root}/{name}: {fact} is {value!r}, but {found[fact]!r} in {other}"
                    raise DataError(f"{where}, a file of the same sample; rename one, or let the key hold `{fact}`")
                if value != "" or fact not in found:
                    found[fact], said_by[fact] = value, name
        return found

    def stamp(self) -> object:
        """Which version of the files."""
        boxes = None if self.boxes is None else [*self.boxes]
        return [self.pattern, self.label, boxes, *(version(Path(self.root, name)) for _, name in self.files())]


def from_folder(
    root: Path, pattern: str | None = None, left_out: LeftOut | None = None, *, names: Sequence[str] | None = None,
    labels: bool = False, boxes: Mapping[str, Boxed] | None = None, masks: Mapping[str, str] | None = None,
) -> Iterator[Item]:  # fmt: skip
    """Files below `root`: `sub/name.jpg` and `sub/name.txt` make the sample `sub/name` with fields jpg and txt.

    pattern: a regular expression for whole relative paths without the last extension. Its group `key` becomes the key
    (dots in its last part become _), its group `field`, where there is one, is put before the extension, the other
    named groups (numbers as numbers) are the field json. Without it a name with several dots is refused: it may mean
    sample `a.b` or a field of sample `a`. left_out, names: as of and from `files_below`. labels: the json says as
    `label` what `folder_labels` finds, unless the pattern has a group of that name. boxes: what the json says of a
    picture, by its path. masks: picture -> the png that becomes the field `mask.png` of its sample. Raises DataError.
    """
    names = files_below(root, LeftOut() if left_out is None else left_out) if names is None else names
    groups = _groups(root, names, pattern, LeftOut() if left_out is None else left_out)
    wanted = labels and "(?P<label>" not in (pattern or "")
    found = folder_labels({key: [name for _, name in files] for key, files in groups.items()}) if wanted else {}
    for key, files in groups.items():
        boxed = next((boxes[name] for _, name in files if name in boxes), None) if boxes else None
        mask = next((masks[name] for _, name in files if name in masks), None) if masks else None
        sample = Files(str(root), files, pattern, found.get(key), boxed, mask)
        facts = sample.facts()
        label = found.get(key, facts.get(LABEL))
        yield Item(key, key, sample.load, sample.stamp, label, fields=frozenset(field for field, _ in sample.files()))


def _groups(
    root: Path, names: Sequence[str], pattern: str | None, left_out: LeftOut
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Files (field, path) by key."""
    _refuse_shards(root, names)
    if pattern is None:
        _refuse_dots(root, names)
    groups: dict[str, tuple[tuple[str, str], ...]] = {}
    written: dict[str, str] = {}
    for name in names:
        key, field, as_written, facts = _name(name, pattern)
        files = groups.get(key, ())
        taken = [other for other, _ in files]
        if field in taken or (field == "json" and facts):
            raise DataError(f"{root / name}: a second file for sample {key!r}, field {field!r}; rename one")
        if written.setdefault(key, as_written) != as_written:
            both = f"samples {written[key]!r} and {as_written!r} would both be {key!r}"
            raise DataError(f"{root / name}: {both}; rename one")
        if not files and key != as_written:
            left_out.add(leftout.DOTS, as_written)
        if any(field in kinds and set(taken) & set(kinds) for kinds in (IMAGES, AUDIO)):
            left_out.add(leftout.TWINS, name)
        groups[key] = (*files, (sys.intern(field), name))
    return groups


def _refuse_shards(root: Path, names: Sequence[str]) -> None:
    tars = [name for name in names if unpack.by_name(name) is not None]
    if tars:
        raise DataError(
            f"{root / tars[0]} is a tar, one of {len(tars)}: it would become a field of a sample; run `bigssl shards "
            "index` to read it as it is, or unpack it"
        )


def _refuse_dots(root: Path, names: Sequence[str]) -> None:
    dotted = [name for name in names if name.rpartition("/")[2].count(".") > 1]
    if dotted:
        key, field = split_name(dotted[0]) or (dotted[0], "")
        stem, _, kind = dotted[0].rpartition(".")
        raise DataError(
            f"{root}: {len(dotted)} names hold several dots, the first is {dotted[0]!r}; rename them, or say what the "
            f"dots mean: --pattern '(?P<key>.+)' for a sample of its own ({stem!r}, dots as _, field {kind!r}), "
            f"--pattern '(?P<key>(.*/)?[^./]+)(\\.(?P<field>[^/]+))?' for the field {field!r} of sample {key!r}"
        )


class _Name(NamedTuple):
    key: str
    field: str
    written: str
    facts: dict[str, object]


def _name(name: str, pattern: str | None) -> _Name:
    stem, dot, kind = name.rpartition(".")
    if not is_utf8(name):
        raise DataError(f"file {name!r}: its name is not UTF-8; rename it")
    if not dot or not kind or "/" in kind:
        raise DataError(f"file {name!r} has no extension, so its field has no name; rename it or move it away")
    if kind.startswith("_"):
        raise DataError(f"file {name!r}: webdataset writes no field that begins with _; rename it")
    if pattern is None:
        return _Name(stem, kind.lower(), stem, {})
    found = re.fullmatch(pattern, stem)
    if found is None or "key" not in found.groupdict():
        raise DataError(f"file {name!r} does not match --pattern {pattern!r} (which needs a group named `key`)")
    facts = found.groupdict("")
    key, before = facts.pop("key"), facts.pop("field", "")
    folder, slash, last = key.rpartition("/")
    field = f"{before}.{kind}" if before else kind
    return _Name(folder + slash + last.replace(".", "_"), field.lower(), key, {k: _fact(v) for k, v in facts.items()})


def _fact(value: str) -> object:
    return int(value) if value.isascii() and value.isdigit() else value
