"""The record of what was trained on: one JSON line per step and rank, from a run or, without one, from `shards replay`.

    {"step": 7, "rank": 0, "keys": ["a", "b", ...]}                      one source
    {"step": 7, "rank": 0, "source": "text", "keys": ["a", "b", ...]}    several: a line each, by name

Step s is the run's optimizer step number s, counted from 0: the one that leads to the metrics of step s + 1, and the
first one that a run does after loading checkpoint step-s. The keys of a step (and source), ranks in order, are the
global batch, whatever the number of ranks and passes: micro-batch j of a rank are its `keys[j::accum]`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bigssl.data.errors import DataError
from bigssl.data.loading.loader import Batch, MicroBatches
from bigssl.files import append_whole, drop_from

log = logging.getLogger("bigssl")

Keys = Mapping[str, list[str]]
_FILE = re.compile(r"ledger-rank(\d+)\.jsonl")


def whole_step(passes: Sequence[Keys]) -> dict[str, list[str]]:
    """Keys by source of one rank's step from those of its micro-batches: undoes the dealing of `Stream.micro_batch`."""
    merged: dict[str, list[str]] = {}
    for name in passes[0]:
        merged[name] = [""] * sum(len(keys[name]) for keys in passes)
        for number, keys in enumerate(passes):
            merged[name][number :: len(passes)] = keys[name]
    return merged


def ledger_lines(step: int, rank: int, keys: Keys) -> str:
    """The record of a rank's step: a line per source, each with its newline."""
    several = len(keys) > 1
    rows = (
        {"step": step, "rank": rank, **({"source": name} if several else {}), "keys": keys[name]}
        for name in sorted(keys)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass
class StepKeys:
    """Item i is what rank i % world trains on in step i // world, as a `Batch` without data.

    batches: those of rank 0 in one pass. check: read, verify and prepare every sample as a run does; else keys come
    from the index alone, as if nothing were damaged.
    """

    batches: MicroBatches
    check: bool

    def __call__(self, item: int) -> Batch | DataError:
        step, rank = divmod(item, self.batches.world)
        batches = replace(self.batches, rank=rank)
        try:
            if self.check:
                samples, errors = batches.samples(step, 0)
                return Batch(None, {name: [key for key, _ in pairs] for name, pairs in samples.items()}, errors)
            places = batches.places(step, 0)
            keys = {name: [batches.streams[name].key(p) for p in positions] for name, positions in places.items()}
            return Batch(None, keys)
        except DataError as error:
            return error


class Ledger:
    """Appends the record of one rank's steps to `ledger-rankN.jsonl` in the folder of a run.

    Lines of steps from `resume_step` on belong to work that is about to be repeated: they are dropped when this is
    made, also where it is not `enabled`, and also from files of ranks that no longer exist (which keep the steps
    before); so is a line that a kill cut off. A disk that refuses is warned of and never stops the training.
    """

    def __init__(self, folder: Path, *, rank: int, world: int, resume_step: int, enabled: bool) -> None:
        self._path = folder / f"ledger-rank{rank}.jsonl"
        self._rank, self._file = rank, -1
        try:
            for number, path in files(folder).items():
                if number % world == rank:
                    drop_from(path, resume_step)
            if enabled:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            log.warning("ledger: cannot write %s: %s. Training goes on without it", self._path, error)

    def write(self, step: int, passes: Sequence[Keys]) -> None:
        """The record of `step` (from 0), from the keys of its micro-batches; in the file when this returns."""
        if self._file < 0:
            return
        data = ledger_lines(step, self._rank, whole_step(passes)).encode()
        try:
            append_whole(self._file, data, self._path)
        except OSError as error:
            log.warning("ledger: step %d is missing in %s: %s. Training goes on", step, self._path, error)

    def flush(self) -> None:
        """To the disk, before a checkpoint says that these steps are done."""
        if self._file >= 0:
            try:
                os.fsync(self._file)
            except OSError as error:
                log.warning("ledger: %s: %s. Training goes on", self._path, error)

    def close(self) -> None:
        if self._file >= 0:
            with suppress(OSError):  # some file systems tell only now; `flush` has asked
                os.close(self._file)
            self._file = -1


def files(folder: Path) -> dict[int, Path]:
    """The ledgers in the folder of a run, by rank."""
    found = {path: _FILE.fullmatch(path.name) for path in folder.glob("ledger-rank*.jsonl")}
    return {int(match[1]): path for path, match in found.items() if match}
