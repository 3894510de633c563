"""What the card of an export may say to people who have neither this machine's folders nor its owner's name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bigssl import exits
from bigssl.data.errors import display

LICENCES = ("LICENSE*", "LICENCE*", "ATTRIBUTION*")
CODE = (".git", "pyproject.toml", "setup.py")  # in a folder whose licence is that of a program
DEMO = Path(exits.__file__).parent / "demo"  # one file for all its datasets
_ABSOLUTE = re.compile(r"(?<![\w:./~$}-])(?:file://)?(?:~[\w.-]*)?/[^\s'\"]*")


def placeless(text: str) -> str:
    """Of absolute paths in it the names they end in; relative ones and addresses stay, as `display` shows them."""
    text = display(text)
    if text.startswith(("/", "~")):
        return Path(text).name or text
    return _ABSOLUTE.sub(lambda found: Path(found.group()).name or found.group(), text)


def placeless_in(values: Any) -> Any:
    """The same of all strings in parts of a recipe, without what is null, which says nothing to a reader."""
    if isinstance(values, dict):
        return {name: placeless_in(value) for name, value in values.items() if value is not None}
    if isinstance(values, list):
        return [placeless_in(value) for value in values]
    return placeless(values) if isinstance(values, str) else values


def licences(sources: Mapping[str, Iterable[str]]) -> list[str]:
    """Files about licences that lie with local data: in the folder of the shards, or the one around it, which may hold
    those of training and of evaluation. What lies in the working directory, the home folder, or a folder of code is
    about something else.

    sources: URLs by the name of their source.
    """
    found: dict[str, None] = {}
    for name, urls in sources.items():
        for folder in (_folder(url) for url in urls if ":" not in url):
            around = [DEMO] if folder.is_relative_to(DEMO) else [folder, folder.parent]
            files = [file for place in filter(_of_data, around) for pattern in LICENCES
                     for file in sorted(place.glob(pattern)) if file.is_file()]  # fmt: skip
            found |= {f"{file.name} beside `{name}`": None for file in files}
    return list(found)


def _folder(url: str) -> Path:
    path = Path(url).expanduser().resolve()
    return path if path.is_dir() else path.parent


def _of_data(place: Path) -> bool:
    here = Path.cwd()
    return not (place == Path.home() or here.is_relative_to(place) or any((place / name).exists() for name in CODE))
