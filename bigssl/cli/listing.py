"""What `bigssl shards pack` makes of a source: which kind it is, how its parts become fields, what it asks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bigssl.cli.fields import Fields
from bigssl.cli.options import local
from bigssl.cli.timed import SERIES_ONLY, TABLES, SeriesFiles, names_in, refuse_idle_series
from bigssl.data.errors import DataError
from bigssl.data.shards import leftout
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.tools import guess
from bigssl.data.tools.classes import (
    CLASSES,
    LABEL,
    Labels,
    extensions,
    file_labels,
    folder_labels,
    said_of_labels,
    said_of_levels,
)
from bigssl.data.tools.sources import text as sources_text
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.sources.boxes import BoxFile, find_boxes, read_boxes
from bigssl.data.tools.sources.folder import files_below, from_folder
from bigssl.data.tools.sources.masks import PLACES, find_masks
from bigssl.data.tools.sources.spans import from_spans, spans_of
from bigssl.data.tools.sources.tables import Table, from_table
from bigssl.data.tools.templates import as_template

Note = Callable[[str], None]
Read = Callable[[Path, str, str | None], Iterator[Item]]
_VARIANT = re.compile(r"[^={}/]+=")


@dataclass
class Listing:
    """What a source holds: the kind it was read as, its samples, what is to be said of how they were made, and what
    became no sample."""

    kind: str
    items: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def note(self, text: str) -> None:
        """Says it once."""
        self.notes += [text] if text and text not in self.notes else []


def listed(source: Path, fields: Fields, target: Path, *, held_out: float = 0.0) -> Listing:
    """The samples of `source` as `bigssl shards pack SOURCE TARGET` finds them; nothing is written. held_out: the
    fraction of --split. Raises DataError where the options do not say enough, or too much."""
    guess.refuse_array(source)
    found = Listing(fields.kind or guess.kind_of(source))
    _refuse_idle_options(source, fields, found.kind, held_out)
    try:
        found.items = list(_items(source, fields, found, target, held_out))
    except OSError as error:
        raise DataError(f"source {error.filename or source} cannot be read ({error.strerror})") from error
    if not found.items:
        raise DataError("; ".join(["nothing to pack: the source has no samples", *found.left_out.lines()]))
    if held_out and found.kind == "series" and len(found.items) == 1:
        raise DataError(f"source {source}: one series is one sample; --window ROWS cuts it, to be split by time, or "
                        "--split-by time makes two of it, of which a source draws windows")  # fmt: skip
    if said := said_of_labels(found.items):
        found.note(f"label: {said}{'' if fields.label else '; --labels none leaves them out'}")
    return found


def _items(source: Path, fields: Fields, found: Listing, target: Path, held_out: float) -> Iterator[Item]:
    if found.kind == "table":
        root = local(fields.root) if fields.root is not None else source.parent
        return from_table(source, root, _table(source, root, fields, found.note, target), found.left_out, found.note)
    if found.kind != "files":
        return _of_each_file(source, fields, found, target, held_out)
    if not source.is_dir():
        raise DataError(f"source {source}: --as files needs a folder")
    _refuse_pattern(fields.pattern)
    names, items = _files(source, fields, found)
    found.note(guess.ask_of_parts(source, names, target, held_out > 0))
    if fields.pattern is None:
        found.note(said_of_levels(names, {str(item.label) for item in items if item.label is not None}))
    if fields.kind is None and fields.pattern is None:
        kinds = extensions(names)
        guess.ask_of_tables(source, kinds, target)
        guess.ask_of_twins(source, kinds)
        found.note(guess.ask_of_texts(source, names))
    return iter(items)


def _files(source: Path, fields: Fields, found: Listing) -> tuple[list[str], list[Item]]:
    """The files of a folder that are parts of samples by themselves, and the samples, with boxes and masks."""
    names = files_below(source, found.left_out)
    boxes = _boxes(source, names, fields)
    own = {name for name in names if boxes is not None and (source / name).samefile(boxes.path)}
    names = [name for name in names if name not in own]
    given = fields.masks
    where = given if given in (None, *PLACES) else local(str(given))
    masks = find_masks(source, names, where, found.left_out)
    names = [name for name in names if name not in masks.own]
    boxed = {} if boxes is None else boxes.of(names, found.left_out)
    found.note(masks.said)
    found.note(f"boxes: {boxes.path} has those of {len(boxed)} pictures; --boxes none leaves them out" if boxes else "")
    return names, list(from_folder(
        source, fields.pattern, found.left_out, names=names, labels=fields.labels == "names", boxes=boxed,
        masks=masks.paths,
    ))  # fmt: skip


def _boxes(source: Path, names: list[str], fields: Fields) -> BoxFile | None:
    if fields.boxes is None:
        return find_boxes(source, names) if fields.pattern is None else None
    return None if fields.boxes == "none" else read_boxes(local(fields.boxes))


def _refuse_pattern(pattern: str | None) -> None:
    try:
        named = pattern is None or "key" in re.compile(pattern).groupindex
    except re.error as error:
        raise DataError(f"--pattern {pattern!r} is no regular expression ({error})") from error
    if not named:
        raise DataError(f"--pattern {pattern!r} has no group named `key`; e.g. '(?P<key>.+)'")


_USED = {
    "pattern": ("files",), "boxes": ("files",), "masks": ("files",), "separator": ("table", "jsonl"),
    "root": ("table",), "image": ("table",), "key": ("table", "jsonl"),
    "text": ("table", "jsonl"), "group": ("table", "jsonl"), "meta": ("table", "jsonl"),
    "label": ("table", "jsonl", "series"),
    **dict.fromkeys(SERIES_ONLY, ("series",)),
}  # fmt: skip


def _refuse_idle_options(source: Path, fields: Fields, kind: str, held_out: float) -> None:
    for option, kinds in _USED.items():
        if getattr(fields, option) not in (None, []) and kind not in kinds:
            name = option.replace("_", "-")
            raise DataError(f"--{name} has no effect on {source}, read as {kind}; it is for {', '.join(kinds)}")
    refuse_idle_series(fields, held_out)
    if fields.label is not None and fields.labels == "none":
        raise DataError(f"--label {fields.label} and --labels none: one of them is meant")
    if fields.separator is not None and (not fields.separator or fields.label is None or "," in fields.label):
        raise DataError(f"--separator {fields.separator!r}: needs one --label COLUMN, whose cells it parts")


def _table(source: Path, root: Path, fields: Fields, note: Note, target: Path) -> Table:
    first = guess.head(source)
    if not first:
        raise DataError(f"source {source}: no rows below a header, so no samples")
    images = _images(fields.image) if fields.image else _found_images(source, root, first, note)
    if not images and (fields.text is None or guess.named_pictures(first)):
        raise guess.pictureless(source, root, first, target)
    meta = names_in("meta", fields.meta)
    table = Table(
        images, _key(fields, first[0]), _text(fields, first[0], note), _given("group", fields.group), meta,
        fields.variant, _label(fields, first, note),
    )  # fmt: skip
    taken = [*meta, *([LABEL] if table.label else [])]
    if not table.variant or (len(images) > 1 and table.variant in taken):
        raise DataError(f"--variant {table.variant!r}: a name of its own in the json is needed")
    _refuse_two_labels(table.label, meta)
    return table


def _refuse_two_labels(label: Labels | None, meta: tuple[str, ...]) -> None:
    if label not in (None, Labels((LABEL,))) and LABEL in meta:
        named = ",".join(label.columns) if label else ""
        raise DataError(f"--label {named} and --meta {LABEL} would both be `{LABEL}` of the json; give one")


def _images(given: list[str]) -> dict[str, str]:
    pairs = [(image.split("=", 1) if _VARIANT.match(image) else [str(n), image]) for n, image in enumerate(given)]
    double = [variant for variant, times in Counter(variant for variant, _ in pairs).items() if times > 1]
    if double:
        raise DataError(f"--image: the variant {double[0]!r} is given twice; name each, as in --image big=TEMPLATE")
    return {variant: as_template("image", image) for variant, image in pairs}


def _found_images(source: Path, root: Path, first: guess.Rows, note: Note) -> dict[str, str]:
    found = guess.picture_templates(first, root)
    if len(found) > 1:
        several = " or ".join(f"--image '{template}'" for template in found)
        raise DataError(f"source {source}: which pictures are meant: {several}? (repeated: a sample of each)")
    if found:
        note(f"pictures: --image '{found[0]}', the only ones that are named and below {root}")
        return {"": found[0]}
    return {}


def _key(fields: Fields, columns: Mapping[str, str]) -> str | None:
    return as_template("key", fields.key) if fields.key is not None else "{key}" if "key" in columns else None


def _text(fields: Fields, columns: Mapping[str, str], note: Note) -> str | None:
    if fields.text is not None:
        return as_template("text", fields.text)
    column = next((name for name in ("caption", "text") if name in columns), None)
    if column != "caption":
        said = "no column `caption`, so no txt" if column is None else "the column `text`"
        note(f"text of a sample: {said}; --text COLUMN takes another")
    return None if column is None else f"{{{column}}}"


def _label(fields: Fields, first: guess.Rows, note: Note) -> Labels | None:
    columns = first[0]
    if fields.label is not None or fields.labels == "none":
        return _labels(fields)
    if LABEL in columns:
        marks = [mark for mark in ("|", ";") if any(mark in row[LABEL] for row in first)]
        if marks:
            note(f"column {LABEL!r} may hold several classes each, as in {first[0][LABEL][:40]!r}: --label {LABEL} "
                 f"--separator '{marks[0]}' parts them")
        return Labels((LABEL,))
    offered = [name for name in columns if name.lower() in CLASSES and name not in names_in("meta", fields.meta)]
    if offered:
        note(f"column {offered[0]!r} may hold classes: --label {offered[0]} puts it into the json as `label`")
    return None


def _labels(fields: Fields) -> Labels | None:
    return None if fields.label is None else Labels(names_in("label", fields.label), fields.separator)


def _given(option: str, text: str | None) -> str | None:
    return None if text is None else as_template(option, text)


def _reader(kind: str, fields: Fields, note: Note) -> Read:
    """What reads one file, given its path, the first part of the keys and the label that its name says."""
    if kind == "lines":
        return sources_text.from_lines
    key, group, text = (_given(name, getattr(fields, name)) for name in ("key", "group", "text"))
    meta, labels = names_in("meta", fields.meta), fields.labels == "names"
    wanted = _labels(fields)
    _refuse_two_labels(wanted, meta)

    def read(path: Path, stem: str, label: str | None) -> Iterator[Item]:
        found, tags = spans_of(path, fields.label) if text is None and labels else (False, None)
        if not found:
            return sources_text.from_jsonl(
                path, stem, text=text, key=key, group=group, meta=meta, label=wanted, labels=labels, note=note
            )
        what = "the context of each question, answers in the json" if tags is None else f"tokens, label: their {tags}"
        note(f"text of a sample: {what}; --text FIELD takes another")
        return from_spans(path, stem, tags, key=key, group=group, meta=meta)

    return read


def _of_each_file(source: Path, fields: Fields, found: Listing, target: Path, held_out: float) -> Iterator[Item]:
    suffix = guess.SUFFIXES[found.kind]
    series = SeriesFiles(found.kind, fields, found.note, held_out) if found.kind in ("series", "ts") else None
    read = _reader(found.kind, fields, found.note) if series is None else series.read
    if not source.is_dir():
        yield from read(source, _stem(source.name, suffix), None)
    else:
        yield from _of_folder(source, fields, found, target, held_out, read)
    if series is not None:
        for line in series.lines():
            found.note(line)


def _of_folder(
    source: Path, fields: Fields, found: Listing, target: Path, held_out: float, read: Read
) -> Iterator[Item]:
    suffix = guess.SUFFIXES[found.kind]
    names, suffixes = files_below(source, found.left_out), TABLES if found.kind == "series" else (suffix,)
    wanted = [name for name in names if name.lower().endswith(suffixes)]
    for name in sorted(set(names) - set(wanted)):
        found.left_out.add(leftout.OTHERS, name)
    found.note(guess.ask_of_parts(source, wanted, target, held_out > 0, found.kind))
    labels = _labels_of_files(wanted, found.kind) if fields.labels == "names" else {}
    for name in wanted:
        item = None
        for item in read(source / name, _stem(name, suffix), labels.get(name)):
            yield item
        if item is None:
            found.left_out.add(leftout.BLANK, name)


def _labels_of_files(names: list[str], kind: str) -> dict[str, str]:
    if kind == "lines":
        return file_labels(names)
    return folder_labels({name: [name] for name in names}) if kind == "series" else {}


def _stem(name: str, suffix: str) -> str:
    if name.lower().endswith(suffix):
        return name[: -len(suffix)]
    return name.rpartition(".")[0] if name.lower().endswith(TABLES) else Path(name).stem
