"""The options of `bigssl shards pack` that say how the parts of a source become fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Group, Parameter

KINDS = """what the source is (default: by its name). files: a folder; NAME.jpg, NAME.txt, NAME.npy, NAME.flac ... are
the fields of sample NAME. table: .csv or .tsv with a header, pictures (--image) and captions. lines: .txt, a document a
line. jsonl: a JSON object a line. series: .csv or .parquet with a row per time; a file is a series, or several by --by,
or many windows. ts: .ts of the UEA & UCR archive. For lines, jsonl, series and ts the source may be a folder of such
files."""
Kind = Literal["files", "table", "lines", "jsonl", "series", "ts"]
PICTURES = Parameter(group=Group("Pictures in folders", sort_key=0))
TABLE = Parameter(group=Group("Table and jsonl (templates with {column}; a bare word is a column)", sort_key=1))
SERIES = Parameter(group=Group("Series", sort_key=2))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Fields:
    """How the parts of a source become fields."""

    kind: Annotated[Kind | None, Parameter(name="--as", help=KINDS)] = None
    pattern: str | None = None
    """REGEX; files: names without the last extension -> group `key` (dots become _), group `field` (put before the
    extension); other groups become the json"""
    labels: Literal["names", "none"] = "names"
    """`label` of the json. names: of the class folders that hold the samples (lines: of the files), or a column of
    that name; none: leave it out"""
    boxes: Annotated[str | None, PICTURES] = None
    """FILE as COCO has it: `boxes` and `labels` of the json (default: the one in the folder; none: leave them out)"""
    masks: Annotated[str | None, PICTURES] = None
    """a folder with NAME.png of each picture, or `beside` them: the class of each pixel, field mask.png (default:
    NAME_mask.png, and a folder called masks, annotations, ... with a png for pictures; none: they are pictures)"""
    root: Annotated[str | None, TABLE] = None
    """folder of the pictures (default: that of the table)"""
    image: Annotated[list[str], TABLE] = field(default_factory=list)
    """[VARIANT=]TEMPLATE: picture; repeatable (default: the one column that names pictures below --root)"""
    key: Annotated[str | None, TABLE] = None
    """key of a sample, {variant} is there too (default: {key}, or else the path of the picture where it is unique, or
    name of the table and a running number; jsonl: the latter)"""
    text: Annotated[str | None, TABLE] = None
    """text of a sample (default: {caption} or {text}, or else none; jsonl: {text}, or else the only field of texts)"""
    group: Annotated[str | None, TABLE] = None
    """equal groups stay together in a split (default: the key; the picture where there is no key)"""
    meta: Annotated[str | None, TABLE] = None
    """A,B: columns for the json"""
    label: Annotated[str | None, TABLE] = None
    """column that goes into the json as `label` (default: the one of that name); A,B,C: a list of those that hold 1, or
    of what they hold; of series: a column of 0 and 1, the mark of each row"""
    separator: Annotated[str | None, TABLE] = None
    """what stands between several labels in the column: `label` is a list"""
    variant: Annotated[str, TABLE] = "variant"
    """name of the variant in the json"""
    columns: Annotated[str | None, SERIES] = None
    """A,B: channels, in this order (default: all columns of numbers)"""
    by: Annotated[str | None, SERIES] = None
    """column; adjacent rows of equal value there are one series"""
    window: Annotated[int | None, SERIES] = None
    """cut into series of so many rows; shorter ones stay whole"""
    stride: Annotated[int | None, SERIES] = None
    """rows from one window to the next (default: --window); the last one begins earlier where it must, so that no row
    is left out"""
    split_by: Annotated[Literal["time", "series"] | None, SERIES] = None
    """how --split parts series. time (default of windows): the last FRACTION of each, without a row on both sides;
    series (default of whole ones): by a hash"""
    margin: Annotated[int | None, SERIES] = None
    """rows left out between the sides of a split by time (default: 0)"""
    time: Annotated[str | None, SERIES] = None
    """column of the time (default: the only one that surely is; none: rows as they come)"""
    time_format: Annotated[str | None, SERIES] = None
    """how it is written: iso, s, ms, us or ns since 1970, or codes of strptime, e.g. '%d/%m/%Y %H:%M' (default: iso, or
    seconds by their size)"""
    gaps: Annotated[Literal["refuse", "cut", "nan", "keep"] | None, SERIES] = None
    """where rows lack: refuse (default), cut the series there, rows of NaN, or keep (rows follow each other)"""
    repeats: Annotated[Literal["refuse", "first", "last"] | None, SERIES] = None
    """rows of one time: refuse (default), or the one that stays"""
    missing: Annotated[Literal["nan", "refuse"] | None, SERIES] = None
    """empty cells, ?, NA and NaN: nan (default), or refuse the first"""
    resample: Annotated[float | None, SERIES] = None
    """SECONDS from row to row: the mean of the rows in each; with --returns the last"""
    short: Annotated[Literal["keep", "drop"] | None, SERIES] = None
    """pieces shorter than --window: keep (default) or drop"""
    returns: Annotated[Literal["log", "simple"] | None, SERIES] = None
    """prices become returns: ln(p[t] / p[t-1]), or p[t] / p[t-1] - 1; the first row of a series has none"""
    prices: Annotated[str | None, SERIES] = None
    """A,B: the channels that are prices (default: all)"""
    time_features: Annotated[str | None, SERIES] = None
    """A,B of minute, hour, weekday, day, yearday, month: further channels, from -0.5 to 0.5"""
    time_code: Annotated[Literal["number", "circle"] | None, SERIES] = None
    """circle: two channels for each of --time-features, sine and cosine"""
