"""`bigssl shards pack`: which source is meant, and how its parts become fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from bigssl.cli.options import AGAIN, Writing, local, note_left_out, print_written, refuse_destroying, split_of
from bigssl.data.errors import DataError
from bigssl.data.shards import leftout
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.tools import sources_series, sources_text
from bigssl.data.tools.sources import Item
from bigssl.data.tools.sources_folder import files_below, from_folder
from bigssl.data.tools.sources_tables import Table, from_table

KINDS = """what the source is (default: by its name). files: a folder; NAME.jpg, NAME.txt, NAME.npy, NAME.flac ... are
the fields of sample NAME. table: .csv or .tsv with a header, pictures (--image) and captions. lines: .txt, a document a
line. jsonl: a JSON object a line. series: .csv with a row per time; a file is a series, or several by --by, or many
windows. ts: .ts of the UEA & UCR archive. For lines, jsonl, series and ts the source may be a folder of such files."""
SUFFIXES = {"lines": ".txt", "jsonl": ".jsonl", "series": ".csv", "ts": ".ts"}
TABLE = Parameter(group=Group("Table and jsonl (templates with {column}; a bare word is a column)", sort_key=1))
SERIES = Parameter(group=Group("Series", sort_key=2))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Fields:
    """How the parts of a source become fields."""

    kind: Annotated[Literal["files", "table", "lines", "jsonl", "series", "ts"] | None,
                    Parameter(name="--as", help=KINDS)] = None  # fmt: skip
    pattern: str | None = None
    """REGEX; files: names without the last extension -> group `key` (dots become _), group `field` (put before the
    extension); other groups become the json"""
    root: Annotated[str | None, TABLE] = None
    """folder of the pictures (default: that of the table)"""
    image: Annotated[list[str], TABLE] = field(default_factory=list)
    """[VARIANT=]TEMPLATE: picture; repeatable"""
    key: Annotated[str | None, TABLE] = None
    """key of a sample, {variant} is there too (default: {key}; jsonl: name of the file and a running number)"""
    text: Annotated[str | None, TABLE] = None
    """text of a sample (default: {caption}; jsonl: {text})"""
    group: Annotated[str | None, TABLE] = None
    """equal groups stay together in a split (default: the key)"""
    meta: Annotated[str, TABLE] = ""
    """A,B: columns for the json"""
    variant: Annotated[str, TABLE] = "variant"
    """name of the variant in the json"""
    columns: Annotated[str, SERIES] = ""
    """A,B: channels, in this order (default: all columns)"""
    by: Annotated[str | None, SERIES] = None
    """column; adjacent rows of equal value there are one series"""
    window: Annotated[int | None, SERIES] = None
    """cut into series of so many rows; shorter ones stay whole"""
    stride: Annotated[int | None, SERIES] = None
    """rows from one window to the next (default: --window); the last one begins earlier where it must, so that no row
    is left out"""


def pack(source: str, folder: str, /, *, split: str | None = None, seed: int = 0, keep_order: bool = False,
         fields: Fields | None = None, writing: Writing | None = None) -> None:  # fmt: skip
    """
    Args:
        source: a folder or a file, see --as
        folder: where the shards go; interrupted, the same command goes on
        split: PART=FRACTION, e.g. val=0.1: folder/val and folder/train
        seed: of split and shuffle
        keep_order: as the source has it (default: shuffled, by a hash of seed and key)
    """
    # imported here: webdataset takes seconds to load, and only writing needs it
    from bigssl.data.tools.pack import pack

    fields, writing, left_out = fields or Fields(), writing or Writing(), LeftOut()
    origin, there = local(source), local(folder)
    if not origin.exists():
        raise DataError(f"source {origin}: no such file or folder")
    refuse_destroying(str(origin), there)
    if there.exists() and there.resolve().is_relative_to(origin.resolve()):
        raise DataError(f"{there} exists in the source {origin}, so it would be packed too; move it away")
    part = None if split is None else split_of(split)
    with writing.applied(AGAIN):
        items = _listed(origin, fields, left_out)
        options = writing.arguments(there)
        indexes = pack(items, there, split=part, seed=seed, shuffle=not keep_order, **options)
    print_written(there, indexes)
    note_left_out(left_out)


def _listed(source: Path, fields: Fields, left_out: LeftOut) -> list[Item]:
    try:
        items = list(_items(source, fields, left_out))
    except OSError as error:
        raise DataError(f"source {error.filename or source} cannot be read ({error.strerror})") from error
    if not items:
        raise DataError("; ".join(["nothing to pack: the source has no samples", *left_out.lines()]))
    return items


def _items(source: Path, fields: Fields, left_out: LeftOut) -> Iterator[Item]:
    kind = fields.kind or _kind(source)
    _refuse_idle_options(source, fields, kind)
    if kind == "files":
        if not source.is_dir():
            raise DataError(f"source {source}: --as files needs a folder")
        return from_folder(source, fields.pattern, left_out)
    if kind == "table":
        root = local(fields.root) if fields.root else source.parent
        return from_table(source, root, _table(source, fields), left_out)
    return _of_each_file(source, SUFFIXES[kind], _reader(kind, fields), left_out)


def _kind(source: Path) -> str:
    if source.is_dir():
        return "files"
    kinds = {".tsv": "table", ".csv": "table"} | {suffix: kind for kind, suffix in SUFFIXES.items() if kind != "series"}
    suffix = source.suffix.lower()
    if suffix not in kinds:
        raise DataError(
            f"source {source}: allowed are a folder, {', '.join(sorted(kinds))}; or say what it is with --as"
        )
    return kinds[suffix]


_USED = {
    "pattern": ("files",), "root": ("table",), "image": ("table",), "key": ("table", "jsonl"),
    "text": ("table", "jsonl"), "group": ("table", "jsonl"), "meta": ("table", "jsonl"),
    "columns": ("series",), "by": ("series",), "window": ("series",), "stride": ("series",),
}  # fmt: skip


def _refuse_idle_options(source: Path, fields: Fields, kind: str) -> None:
    for option, kinds in _USED.items():
        if getattr(fields, option) and kind not in kinds:
            raise DataError(f"--{option} has no effect on {source}, read as {kind}; it is for {', '.join(kinds)}")


def _table(source: Path, fields: Fields) -> Table:
    if not fields.image:
        hint = "a table needs --image, e.g. --image 'images/{name}.jpg'; a table of numbers needs --as series"
        raise DataError(f"source {source}: {hint}")
    pairs = [image.split("=", 1) if "=" in image else [str(number), image] for number, image in enumerate(fields.image)]
    pairs = [[variant, _template(image, "")] for variant, image in pairs]
    key, text = _template(fields.key, "{key}"), _template(fields.text, "{caption}")
    double = [variant for variant, times in Counter(variant for variant, _ in pairs).items() if times > 1]
    if double:
        raise DataError(f"--image: the variant {double[0]!r} is given twice; name each, as in --image big=TEMPLATE")
    return Table(dict(pairs), key, text, _template(fields.group, key), _words(fields.meta), fields.variant)


def _template(text: str | None, default: str) -> str:
    if text is None:
        return default
    return text if "{" in text else f"{{{text}}}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _reader(kind: str, fields: Fields) -> Callable[[Path, str], Iterator[Item]]:
    if kind == "lines":
        return sources_text.from_lines
    if kind == "ts":
        return sources_series.from_series
    if kind == "series":
        how = sources_series.Windows(_words(fields.columns), fields.by, fields.window, fields.stride)
        return lambda path, stem: sources_series.from_csv(path, stem, how)
    key, group = (text and _template(text, "") for text in (fields.key, fields.group))
    text, meta = _template(fields.text, "{text}"), _words(fields.meta)
    return lambda path, stem: sources_text.from_jsonl(path, stem, text=text, key=key, group=group, meta=meta)


def _of_each_file(
    source: Path, suffix: str, read: Callable[[Path, str], Iterator[Item]], left_out: LeftOut
) -> Iterator[Item]:
    names = files_below(source, left_out) if source.is_dir() else [source.name]
    folder = source if source.is_dir() else source.parent
    for name in names:
        if source.is_dir() and not name.lower().endswith(suffix):
            left_out.add(leftout.OTHERS, name)
            continue
        item = None
        for item in read(folder / name, name[: -len(suffix)] if name.lower().endswith(suffix) else Path(name).stem):
            yield item
        if item is None:
            left_out.add(leftout.BLANK, name)
