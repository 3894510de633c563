"""The bad samples that a run did without: each counts once, whichever rank met it and however often.

    RUN/skipped.jsonl    {"step": 7, "source": "img", "sample": "12", "cause": "shard ..., sample 'a': ..."}

A sample that is bad is met again each epoch, by another rank or worker; and a run that goes on after a stop has not
forgotten what it skipped before. `data.max_errors` limits the number of lines of that file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from bigssl import distributed
from bigssl.data.loading.loader import Bad
from bigssl.files import append_whole, drop_from

FILE = "skipped.jsonl"
SHOWN = 3  # causes in the sentence that ends a run
log = logging.getLogger("bigssl")


class Tally:
    """Bad samples, each once. allowed: how many a run may skip."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self._causes: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._causes)

    def add(self, found: Iterable[Bad]) -> list[Bad]:
        """Those of `found` that were not known."""
        new = {(bad.source, bad.sample): bad for bad in found if (bad.source, bad.sample) not in self._causes}
        self._causes |= {name: bad.cause for name, bad in new.items()}
        return list(new.values())

    @property
    def excess(self) -> str:
        """What ends a run: how many, the limit and the last ones; empty where they are allowed."""
        if len(self) <= self.allowed:
            return ""
        last = " | ".join(list(self._causes.values())[-SHOWN:])
        return f"{len(self)} bad samples, data.max_errors allows {self.allowed}; the last: {last}"


class Skipped(Tally):
    """Those of a run over all its ranks, kept in its folder. Lines beyond `resume_step` belong to work that is about
    to be repeated and are dropped. A disk that refuses is warned of and never stops the training. Collective."""

    def __init__(self, folder: Path, *, allowed: int, resume_step: int) -> None:
        super().__init__(allowed)
        self._path = folder / FILE
        self.pending: list[Bad] = []  # met by this rank since the last `gather`
        self.add(distributed.from_main(self._read(resume_step) if distributed.is_main() else []))

    def gather(self, step: int, pending: int) -> None:
        """Count what all ranks met up to `step`; `pending`: how many that are, a sum that the ranks have agreed on."""
        if pending:
            mine, self.pending = self.pending, []
            new = self.add(bad for found in distributed.gather_objects(mine) for bad in found)
            if distributed.is_main():
                self._write(step, new)

    def _read(self, resume_step: int) -> list[Bad]:
        if not self._path.exists():
            return []
        try:
            drop_from(self._path, resume_step + 1)
        except OSError as error:
            log.warning("skipped: cannot write %s: %s. Training goes on", self._path, error)
        rows = [json.loads(line) for line in self._path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return [Bad(row["source"], row["sample"], row["cause"]) for row in rows if row["step"] <= resume_step]

    def _write(self, step: int, new: list[Bad]) -> None:
        data = "".join(json.dumps({"step": step, **bad._asdict()}) + "\n" for bad in new).encode()
        try:
            with self._path.open("ab", buffering=0) as file:
                append_whole(file.fileno(), data, self._path)
        except OSError as error:
            log.warning("skipped: %d bad samples of step %d are not in %s: %s. Training goes on, but a resumed run "
                        "will not count them", len(new), step, self._path, error)  # fmt: skip
