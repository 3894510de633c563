"""What a folder may mean besides what `bigssl shards pack` makes of it: asked before hours go into the wrong one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from bigssl.data.errors import DataError
from bigssl.data.kinds.decode import IMAGES
from bigssl.data.tools.classes import part_names

FEW = 50  # files, from which on nobody takes a file for a class
SOME, MANY = 100, 1000  # lines of a file that may be documents, and that hardly are one
_TABLES = ("csv", "tsv", "jsonl", "ts")


def ask_of_parts(source: Path, names: Sequence[str], target: Path, parted: bool) -> str:
    """What to say of folders (or files) that are called train, val, ...: that they are packed as one; nothing where
    there are none. Raises DataError where they would be mixed, to be parted anew (`parted`)."""
    found = part_names(names)
    commands = " and ".join(f"`bigssl shards pack {source / name} {target / Path(name).stem}`" for name in found)
    if found and parted:
        advice = f"pack each by itself: {commands}; or all as one without --split, then `bigssl shards split`"
        raise DataError(f"source {source} has parts already ({', '.join(found)}), which --split would mix; {advice}")
    if not found:
        return ""
    return (
        f"{', '.join(found)} of {source} are packed as one (their keys begin with these names), so that a run on it is "
        f"trained on all of them; to keep them apart: {commands}"
    )


def ask_of_texts(source: Path, names: Sequence[str]) -> str:
    """What to say where a folder of few .txt files may hold a document a line. Raises DataError where it surely does
    not hold a document a file."""
    if not 0 < len(names) < FEW or not all(name.lower().endswith(".txt") for name in names):
        return ""
    lines = [_lines(source / name) for name in names]
    mean = sum(lines) / len(lines)
    many = f"{len(names)} .txt files with {'over ' if mean > MANY else ''}{min(mean, MANY):,.0f} lines each"
    if mean > MANY:
        raise DataError(
            f"source {source}: {many}; is a file a document (--as files), or a line (--as lines, with the names of "
            "the files as labels)?"
        )
    if mean < SOME:
        return ""
    return f"{many}: a file is a sample; --as lines makes each line one, with the names of the files as labels"


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
        advice = f"--as {'series' if kind == 'csv' else kind} reads " + (
            "a row per time" if kind == "csv" else "their lines"
        )
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
