"""Names in a run folder; and what a path that leads nowhere may have meant: the places beside it, or within it, that
would do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

CONFIG, EXPORT = "config.yaml", "export"  # in a run folder
_SHOWN, _SEEN = 6, 500  # places that are named; names of a folder that are looked at
_DEEP = 3  # folders below the one that exists


def seen_from(path: str | Path) -> str:
    """` in FOLDER`, the working directory, where a relative `path` was looked for; nothing of an absolute one."""
    return "" if Path(os.path.expanduser(path)).is_absolute() else f" in {Path.cwd()}"


def instead(path: str | Path, fits: Callable[[Path], bool]) -> str:
    """`; allowed: runs/x/export/image, runs/x/export/text (nearest: ...)`, or `; DIR holds: ...` where nothing fits, or
    an empty string.

    They are looked for within `path` where it is a folder, otherwise in the last folder on its way that exists, most
    alike first.
    """
    wanted = Path(os.path.expanduser(path))
    root = next((folder for folder in (wanted, *wanted.parents) if _is_folder(folder)), None)
    if root is None:
        return ""
    missing = wanted.relative_to(root).parts
    found = [place for place in (root, *_below(root, min(len(missing) or _DEEP, _DEEP))) if fits(place)]
    near = _alike(str(wanted), [str(place) for place in found])
    if near:
        more = f" and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
        close = f"; nearest: {near[0]}" if len(near) > 1 and missing else ""
        return f"; allowed: {', '.join(sorted(near[:_SHOWN]))}{more}{close}"
    names = [each.name for each in _children(root)]
    shown = (_alike(missing[0], names) if missing else names)[:_SHOWN]
    more = " ..." if len(names) > _SHOWN else ""
    where = Path.cwd() if root == Path() else root
    return f"; {where} holds: {', '.join(shown)}{more}" if names else f"; {where} is empty"


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """What lies up to `depth` folders below, the near first; shown names alone."""
    level = [folder]
    for _ in range(depth):
        level = [child for each in level for child in _children(each)][:_SEEN]
        yield from level


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in islice(folder.iterdir(), _SEEN) if not child.name.startswith("."))
    except OSError:  # no folder, or one that may not be read
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that none can have
        return False


def _alike(word: str, choices: list[str]) -> list[str]:
    return sorted(choices, key=lambda choice: -difflib.SequenceMatcher(None, word, choice).ratio())
