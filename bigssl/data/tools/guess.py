"""What a source of `bigssl shards pack` is, and which of its columns are meant, where no option says it. What may mean
two things is asked, before hours go into the wrong one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from bigssl.data.errors import DataError
from bigssl.data.kinds.decode import IMAGES
from bigssl.data.tools.channels import is_number
from bigssl.data.tools.classes import CLASSES, dataset_parts
from bigssl.data.tools.sources.tables import rows
from bigssl.data.tools.sources.text import HEAD

SUFFIXES = {"lines": ".txt", "jsonl": ".jsonl", "series": ".csv", "ts": ".ts"}
FEW = 50  # files, from which on nobody takes a file for a class
SOME, MANY = 10, 1000  # lines of a file that may be documents, and that hardly are one
_TABLES = ("csv", "tsv", "jsonl", "ts", "parquet")
Rows = Sequence[Mapping[str, str]]


def refuse_array(source: Path) -> None:
    """Raises DataError of an array of numbers by itself, which no kind of source is."""
    if source.suffix.lower() in (".npy", ".npz") and source.is_file():
        numbers = "numpy.load(...)[NAME] saved as .npy" if source.suffix.lower() == ".npz" else source.name
        raise DataError(f"source {source}: an array is a sample of a folder: put {numbers} into one, and pack that "
                        "(without --as); `bigssl shards split DIR OUT --cut` then parts a long series by time")


def kind_of(source: Path) -> str:
    """files, table, lines, jsonl or ts, by the name of `source`. Raises DataError for others."""
    if source.is_dir():
        return "files"
    kinds = {".tsv": "table", ".csv": "table"} | {suffix: kind for kind, suffix in SUFFIXES.items() if kind != "series"}
    suffix = source.suffix.lower()
    if suffix == ".parquet":
        return "series"
    if suffix == ".json":
        needed = "a .json is one value; allowed is .jsonl, an object a line"
        raise DataError(f"source {source}: {needed}; {_lines_of(source)}")
    if suffix not in kinds:
        there = ", ".join(sorted([*kinds, ".parquet"]))
        raise DataError(f"source {source}: allowed are a folder, {there}; or say what it is with --as")
    return kinds[suffix]


_SQUAD = (
    ".data[].paragraphs[] | .context as $c | .qas[] | {id, question, context: $c, answers: {text: [.answers[].text], "
    "answer_start: [.answers[].answer_start]}}"
)


def _lines_of(path: Path) -> str:
    """What makes lines, or uses, of a .json, by its beginning."""
    with path.open("rb") as file:
        begin = file.read(1 << 16)
    if b'"images"' in begin or b'"annotations"' in begin:
        return f"boxes go with the folder of their pictures: --boxes {path}"
    what, each = ("questions", _SQUAD) if b'"paragraphs"' in begin else ("an array", ".[]")
    return f"`jq -c '{each}' {path} > {path.with_suffix('.jsonl')}` makes lines of {what}"


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


def pictureless(path: Path, root: Path, first: Rows, target: Path) -> DataError:
    """The error of a table in which no column names pictures: what it may be, with a command."""
    there = ", ".join(first[0])
    if named := named_pictures(first):
        cell = first[0][named[0]]
        if "://" in cell:
            what = f"column {named[0]!r} holds URLs of pictures, e.g. {cell!r}; download them, then name the files"
            return DataError(f"source {path}: {what} in a column, or give --image with their path")
        what = f"the pictures of column {named[0]!r}, e.g. {cell!r}, are not below {root}"
        return DataError(f"source {path}: {what}; say with --root where they are")
    if holds_numbers(first):
        advice = f"a table of numbers is one with `bigssl shards pack {path} {target} --as series --window 96`"
    elif texts := text_columns(first):
        text = _quoted(max(texts, key=lambda name: sum(len(row[name]) for row in first)))
        advice = f"a table of texts is one with `bigssl shards pack {path} {target} --text {text}`"
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


def text_columns(first: Rows) -> list[str]:
    """Columns that hold words: neither numbers nor names of classes."""
    return [name for name in (first[0] if first else ()) if name.lower() not in CLASSES
            and not all(is_number(row[name]) for row in first)]  # fmt: skip


def ask_of_parts(source: Path, names: Sequence[str], target: Path, parted: bool, kind: str = "files") -> str:
    """What to say of folders (or files of another kind) that are called train, val, ...: that they are packed as one;
    nothing where there are none. Raises DataError where they would be mixed, to be parted anew (`parted`)."""
    suffix = SUFFIXES.get(kind, "")
    found = dataset_parts(source, (f"{name[: -len(suffix)]}/" for name in names) if suffix else names)
    if not found:
        return ""
    files = {part: path.with_name(path.name + suffix) for part, path in found.items()}
    paths = {part: files[part] if files[part].is_file() else path for part, path in found.items()}
    how = f" --as {kind}" if suffix else ""
    commands = " and ".join(f"`bigssl shards pack {path} {target / part}{how}`" for part, path in paths.items())
    there = ", ".join(path.name for path in paths.values())
    if parted:
        advice = f"pack each by itself: {commands}; or all as one without --split, then `bigssl shards split`"
        raise DataError(f"source {source} has parts already ({there}), which --split would mix; {advice}")
    return (
        f"{there} of {source} are packed as one (their keys begin with these names), so that a run on it is "
        f"trained on all of them; to keep them apart: {commands}"
    )


def ask_of_texts(source: Path, names: Sequence[str]) -> str:
    """What to say where a folder of few .txt files may hold a document a line. Raises DataError where it surely does
    not hold a document a file."""
    mean = _lines_each(source, names)
    if mean > MANY:
        raise DataError(_asked_of_texts(source, names, mean))
    if mean < SOME:
        return ""
    each = "--as lines makes each line one, with the names of the files as labels"
    return f"{_counted(names, mean)}: a file is a sample; {each}"


def ask_of_few_texts(source: Path, names: Sequence[str]) -> None:
    """The same where files are too few to be the samples of a run. Raises DataError where lines may be them."""
    if (mean := _lines_each(source, names)) >= SOME:
        raise DataError(_asked_of_texts(source, names, mean))


def _asked_of_texts(source: Path, names: Sequence[str], mean: float) -> str:
    asked = "is a file a document (--as files), or a line (--as lines, with the names of the files as labels)?"
    return f"source {source}: {_counted(names, mean)}; {asked}"


def _counted(names: Sequence[str], mean: float) -> str:
    return f"{len(names)} .txt files with {'over ' if mean > MANY else ''}{min(mean, MANY):,.0f} lines each"


def _lines_each(source: Path, names: Sequence[str]) -> float:
    """Lines of a file in the mean; 0 where there are other files, or many."""
    if not 0 < len(names) < FEW or not all(name.lower().endswith(".txt") for name in names):
        return 0
    return sum(_lines(source / name) for name in names) / len(names)


def _lines(path: Path) -> int:
    """Line ends in the file, or in its beginning where there are more than MANY."""
    found = 0
    with path.open("rb") as file:
        while found <= MANY and (data := file.read(1 << 16)):
            found += data.count(b"\n")
    return found


def ask_of_tables(source: Path, fields: Mapping[str, Sequence[str]], target: Path) -> None:
    """Raises DataError where files of a folder would be samples that nothing reads. fields: key -> extensions of its
    files."""
    lone = [f"{key}.{kinds[0]}" for key, kinds in fields.items() if set(kinds) <= set(_TABLES)]
    if not lone:
        return
    name, kind = lone[0], lone[0].rpartition(".")[2]
    pictures = any(set(kinds) & set(IMAGES) for kinds in fields.values())
    if kind in ("csv", "tsv") and (pictures or kind == "tsv"):
        advice = f"a table of pictures is a source itself: `bigssl shards pack {source / name} {target}`"
    else:
        timed = kind in ("csv", "parquet")
        advice = f"--as {'series' if timed else kind} reads {'a row per time' if timed else 'their lines'}"
    raise DataError(
        f"source {source} holds {len(lone)} files that as such no objective reads, e.g. {name!r}; {advice}; "
        "--as files packs them as they are"
    )


def ask_of_twins(source: Path, fields: Mapping[str, Sequence[str]]) -> None:
    """Raises DataError where two folders hold files of the same names and different kinds, as in images/1.jpg and
    texts/1.txt, which may be one sample. fields: key -> extensions of its files."""
    folders: dict[str, dict[str, frozenset[str]]] = {}
    for key, kinds in fields.items():
        folder, _, name = key.rpartition("/")
        folders.setdefault(folder, {})[name] = frozenset("picture" if kind in IMAGES else kind for kind in kinds)
    for one, other in zip(folders, islice(folders, 1, None), strict=False):
        both = set(folders[one]) & set(folders[other])
        if len(both) * 2 <= max(len(folders[one]), len(folders[other])):
            continue
        if all(not folders[one][name] & folders[other][name] for name in both):
            raise DataError(
                f"source {source}: the folders {one or '.'!r} and {other!r} hold files of the same names "
                f"({min(both)!r}) and of different kinds; --pattern '(.*/)?(?P<key>[^/]+)' makes one sample of each "
                "name, --pattern '(?P<key>.+)' keeps them apart"
            )
