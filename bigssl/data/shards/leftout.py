"""What a folder, a table or a tar holds that becomes no sample, or not the one that one may think: counted, with
examples, so that nothing is left out unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXAMPLES = 3

HIDDEN = "hidden files (names that begin with a dot)"
FOLDERS = "hidden folders with all that is in them"
SYSTEM = "files and folders that an operating system puts beside others"
SPECIAL = "files that are no ordinary ones (pipes, sockets, devices)"
NAMELESS = "files without an extension, so without a name for their field"
META = "files that webdataset passes over (__NAME__)"
OTHERS = "files of another kind than the ones that are read"
BLANK = "files without a line"
UNSEEN = "pictures that a file of boxes names are not in the folder"
FLAT = "boxes without width or height"
LOOSE = "annotations of pictures that their file of boxes does not list"
UNMET = "masks of which there is no picture"
# taken, but not as one may think
CUT = "boxes reach out of their picture and end at its edge"
BARE = "pictures are not in the file of boxes, and have none"
MASKLESS = "pictures have no mask"
EMPTY = "files are empty"
DOTS = "keys had dots in their last part, which became _"
TWINS = "files are a second picture or sound of their sample, of which training reads one"
MISSING = "texts are empty or stand for a missing value"
UNNAMED = "labels are written as programs write a missing value"
_TAKEN = (EMPTY, DOTS, TWINS, MISSING, UNNAMED, CUT, BARE, MASKLESS)
_ADVICE = {
    HIDDEN: "rename those that are data",
    FOLDERS: "rename those that hold data",
    SYSTEM: "nothing is lost",
    SPECIAL: "copy their content into files where it is data",
    NAMELESS: "rename those that are data",
    META: "rename those that are data",
    OTHERS: "say with --as what they are, or pack them too",
    BLANK: "nothing is lost unless they should hold something",
    UNSEEN: "add them, or take the file that belongs to this folder",
    FLAT: "the picture keeps its others",
    LOOSE: "mend the file where they count",
    UNMET: "rename them as their pictures are",
    CUT: "nothing is lost",
    BARE: "packed without; `detect` refuses them: list them in the file, with no boxes where there are none",
    MASKLESS: "packed without; `segment` refuses them: add masks, or move them away",
    EMPTY: "packed as they are; remove those that should not be there",
    DOTS: "rename them for other keys",
    TWINS: "rename those that are samples of their own",
    UNNAMED: "taken for names of classes; leave the cell empty where there is none",
    MISSING: "packed as they are; remove those rows, or `bigssl shards clean --drop empty-text`",
}


class LeftOut:
    """Counts by reason (one of those above), with the first names of each."""

    def __init__(self, found: Mapping[str, Any] | None = None) -> None:
        """found: what `as_json` gave."""
        self._found: dict[str, tuple[int, list[str]]] = {
            reason: (int(count), list(names)) for reason, (count, names) in (found or {}).items()
        }

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """`name` was left out (and `count` - 1 others like it)."""
        before, names = self._found.get(reason, (0, []))
        self._found[reason] = (before + count, names if len(names) >= EXAMPLES else [*names, name])

    def merge(self, other: LeftOut) -> None:
        """Adds what another part of the same source left out."""
        for reason, (count, names) in other._found.items():
            for number, name in enumerate(names):
                self.add(reason, name, count - len(names) + 1 if number == 0 else 1)

    def as_json(self) -> dict[str, list[Any]]:
        """reason -> [count, examples]."""
        return {reason: [count, names] for reason, (count, names) in self._found.items()}

    def lines(self) -> list[str]:
        """A line for each reason: how many, which, what to do."""
        return [
            f"{'note' if reason in _TAKEN else 'left out'}: {count} {reason}, e.g. {', '.join(map(repr, names))}; "
            f"{_ADVICE.get(reason, 'look at them')}"
            for reason, (count, names) in sorted(self._found.items())
        ]
