"""`changes.jsonl` of a run: where it went on with another recipe on purpose, one field a line.

    {"step": 400, "field": "optim.lr", "before": 0.001, "after": 0.0001}

Steps 401 and later were trained with `after`. config.yaml is the recipe with all changes made.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bigssl.config.errors import ConfigError
from bigssl.files import write_atomic

FILE = "changes.jsonl"


class Change(NamedTuple):
    """What a field of the recipe was up to and including `step`, and is from the next one on."""

    step: int
    field: str
    before: Any
    after: Any

    @property
    def sentence(self) -> str:
        return f"{self.field}: {_short(self.before)} up to step {self.step}, then {_short(self.after)}"


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_changes(folder: Path) -> list[Change]:
    """The changes of a run, in order; [] where there were none. Raises ConfigError where the record is damaged."""
    path, changes = folder / FILE, []
    for number, line in enumerate(path.read_text(errors="replace").splitlines() if path.exists() else [], 1):
        try:
            changes.append(Change(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: line {number} is no change of a run ({error}); allowed: the record without it, "
                              f"in the form {Change(400, 'optim.lr', 0.001, 0.0001)._asdict()}") from None  # fmt: skip
    return changes


def write_changes(folder: Path, changes: Iterable[Change]) -> None:
    """Replace the record of a run, atomically; where there are none, there is no file."""
    text = "".join(json.dumps(change._asdict()) + "\n" for change in changes)
    if text:
        write_atomic(folder / FILE, text.encode())
    else:
        (folder / FILE).unlink(missing_ok=True)
