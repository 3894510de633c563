"""Verdicts: what was looked at, how it stands, and what to do."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "fail"
LEVELS = (OK, NOTE, WARN, FAIL)
"""note: said, and no matter of right or wrong (a part that could not be looked at here). Only `fail` ends with 1."""
_WIDTH = 118


@dataclass(frozen=True)
class Diagnosis:
    """A verdict.

    Attributes:
        section: environment, data, kernels, network or equivalence.
        name: what was looked at; the same on every machine, for scripts.
        level: one of LEVELS.
        said: where, and the value that was found.
        todo: what to do; empty where nothing is.
        host: the machine, where there are several.
    """

    section: str
    name: str
    level: str
    said: str
    todo: str = ""
    host: str = ""


@dataclass
class Diagnoses:
    """The findings of one section, as they are made."""

    name: str
    host: str = ""
    found: list[Diagnosis] = field(default_factory=list)

    def ok(self, name: str, said: str) -> None:
        self._add(name, OK, said, "")

    def note(self, name: str, said: str, todo: str = "") -> None:
        self._add(name, NOTE, said, todo)

    def warn(self, name: str, said: str, todo: str) -> None:
        self._add(name, WARN, said, todo)

    def fail(self, name: str, said: str, todo: str) -> None:
        self._add(name, FAIL, said, todo)

    def attempt(self, name: str, look: Callable[[], object], todo: str) -> None:
        """Call `look`, which adds findings; what it raises is one, too."""
        try:
            look()
        except Exception as error:  # whatever a broken installation raises
            self.fail(name, f"{type(error).__name__}: {first_line(error)}", todo)

    def _add(self, name: str, level: str, said: str, todo: str) -> None:
        self.found.append(Diagnosis(self.name, name, level, said, todo, self.host))


def first_line(error: BaseException) -> str:
    """What an error says, as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or "no message"


def merged(found: Iterable[Diagnosis]) -> list[Diagnosis]:
    """What several machines say alike as one finding, with their names; sections stay in order."""
    hosts: dict[Diagnosis, list[str]] = {}
    for each in found:
        names = hosts.setdefault(dataclasses.replace(each, host=""), [])
        names += [each.host] * (bool(each.host) and each.host not in names)
    return [dataclasses.replace(each, host=_listed(names)) for each, names in hosts.items()]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def findings_json(found: list[Diagnosis]) -> str:
    """One object: `findings`, and how many there are of each level."""
    rows: list[dict[str, Any]] = [dataclasses.asdict(each) for each in found]
    return json.dumps({"findings": rows} | counted_levels(found), indent=1)


def counted_levels(found: Iterable[Diagnosis]) -> dict[str, int]:
    levels = [each.level for each in found]
    return {level: levels.count(level) for level in LEVELS}


def findings_text(found: list[Diagnosis]) -> str:
    """By section, a verdict each, with what to do below it; then how many there are of each level."""
    lines: list[str] = []
    widest = max((len(each.name) for each in found), default=0)
    for section in dict.fromkeys(each.section for each in found):
        lines += [section, *(line for each in found if each.section == section for line in _told(each, widest))]
    count = counted_levels(found)
    verdict = "not fit" if count[FAIL] else "fit"
    counts = ", ".join(f"{count[level]} {level}" for level in (FAIL, WARN, NOTE, OK))
    return "\n".join([*lines, f"{verdict}: {counts}"])


def _told(each: Diagnosis, widest: int) -> list[str]:
    head = f"  {each.level.upper() if each.level == FAIL else each.level:<5}{each.name:<{widest + 2}}"
    text = f"{each.host}: {each.said}" if each.host else each.said
    below = " " * len(head)
    lines = textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=below, break_on_hyphens=False,
                          break_long_words=False)  # fmt: skip
    todo = textwrap.wrap(each.todo, _WIDTH, initial_indent=f"{below}-> ", subsequent_indent=f"{below}   ",
                         break_on_hyphens=False, break_long_words=False)  # fmt: skip
    return lines + (todo if each.todo else [])
