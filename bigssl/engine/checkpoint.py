"""Checkpoints that are whole or absent.

    checkpoints/step-00000500.tmp/   every rank writes, fsyncs and hashes its share of the files
    checkpoints/step-00000500/       after rank 0 wrote manifest.json (sha256 of every file) and renamed the folder
    checkpoints/latest               name of the newest, for people; loading trusts manifests only

Nothing else is left behind: a save that fails removes its staging folder.

In the folder: state/ (DeepSpeed's files), layout.json (see layout.py), teachers.pt where there are teachers (see
teaching.py), zero_to_fp32.py and its `latest`.

DeepSpeed alone writes `latest` without a barrier, an fsync or a checksum, so that a rank killed while saving leaves it
naming a broken checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bigssl import distributed
from bigssl.config.recipe import CheckpointConfig
from bigssl.engine.guards import NotSaved
from bigssl.engine.plan.facts import unlike
from bigssl.engine.restore import StateError
from bigssl.engine.saved import LAYOUT
from bigssl.engine.teaching import Teachers, load_teachers, save_teachers
from bigssl.engine.zero import Engine
from bigssl.files import DiskFull, disk_full, fsync, write_atomic, writing

MANIFEST = "manifest.json"
ATTEMPTS = 60.0  # seconds between attempts while a run waits for room
REMINDERS = 600.0  # and between the lines that say so
CERTAIN = 0.9  # share of the expected size below which it is of no use to try: planned sizes are right to 6 %


class CheckpointError(RuntimeError):
    """Checkpoints exist but none can be used; the message names each and its fault."""


class Problem(NamedTuple):
    """Why an attempt to save failed; full: for want of room."""

    text: str
    full: bool


def not_told() -> str:
    """No signal."""
    return ""


class CheckpointStore:
    """The checkpoints of one run. All methods are collective.

    Args:
        folder: RUN/checkpoints, on a file system that all ranks see.
        facts: what a manifest records: `world`, and the fields of REASONS, which a resume must match (resume.py).
        note: prints a line for the user.
        teachers: what is saved and restored besides the engine's state.
        expected: bytes of a checkpoint, for messages until one was written.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, facts: dict[str, Any], note: Callable[[str], None],
                 teachers: Teachers | None = None, expected: int = 0) -> None:
        self.folder, self._config, self._facts, self.note = folder, config, facts, note
        self._teachers = teachers or {}
        self._last = 0  # step of the newest checkpoint that this run has written or come from
        self._needs = expected

    def save(self, engine: Engine, step: int, told: Callable[[], str] = not_told) -> None:
        """Write the state after `step`; with `on_full: wait` as soon as there is room for it.

        Args:
            told: name of the signal that told this rank to stop; empty where none has come.

        Raises:
            NotSaved: on every rank, when it could not be written on one; the earlier checkpoints are whole.
        """
        reminded = float("-inf")
        while problem := self._attempt(engine, step):
            waits = problem.full and self._config.on_full == "wait"
            if waits and time.monotonic() - reminded >= REMINDERS:
                reminded = time.monotonic()
                self.note(f"waiting for room for the checkpoint of step {step}: {problem.text}")
            signal = self._wait(told) if waits else _first(told())
            if signal or not waits:
                raise NotSaved(self._farewell(step, problem, signal))
        self._last = step

    def _wait(self, told: Callable[[], str]) -> str:
        """Seconds go by; the signal that has told a rank to stop meanwhile, or empty."""
        for _ in range(max(1, round(ATTEMPTS))):  # counted, not measured: ranks have to agree on the number
            time.sleep(min(1.0, ATTEMPTS))
            if signal := _first(told()):
                return signal
        return ""

    def _farewell(self, step: int, problem: Problem, signal: str) -> str:
        why = f"told to stop by {signal}, but " if signal else ""
        again = (f"{self._path(self._last).name} stays, after which the same command goes on" if self._last else
                 "no checkpoint was written before, the same command begins anew")  # fmt: skip
        room = "; free some room, or take fewer by checkpoint.keep" if problem.full else ""
        return f"{why}no checkpoint of step {step}: {problem.text}{room}; {again}"

    def _attempt(self, engine: Engine, step: int) -> Problem | None:
        """Save once; why not, the same on every rank, where a stage of it failed on one. Nothing of it is left then."""
        final, staging = self._path(step), self._path(step).with_suffix(".tmp")
        share: dict[str, Any] = {}
        stages = (
            lambda: self._make_room(staging) if distributed.is_main() else None,
            lambda: engine.save(staging),
            lambda: save_teachers(staging, self._teachers) if distributed.is_main() else None,
            lambda: _flush_files(staging),
            lambda: share.update(_describe_share(staging)),
        )
        problem = next(filter(None, (self._failure(stage, final, staging) for stage in stages)), None)
        if not problem:
            files = {name: facts for part in distributed.gather_objects(share) for name, facts in part.items()}
            commit = (lambda: self._commit(staging, final, step, files)) if distributed.is_main() else (lambda: None)
            problem = self._failure(commit, final, staging)
            self._needs = sum(facts["bytes"] for facts in files.values())
        if problem:
            if distributed.is_main():
                shutil.rmtree(staging, ignore_errors=True)
            return problem
        if fault := _problem(lambda: self._tidy(final, step) if distributed.is_main() else None):
            self.note(f"{final} is whole, but its folder could not be tidied: {fault.text}. Training goes on")
        return None

    def _failure(self, stage: Callable[[], None], final: Path, staging: Path) -> Problem | None:
        """The problem of the first rank on which a stage of saving fails."""

        def named() -> None:
            with writing(final, self._needs or None, staging):
                stage()

        problems = distributed.gather_objects(_problem(named))
        for rank, problem in enumerate(problems):
            if problem:
                return problem if len(problems) == 1 else problem._replace(text=f"rank {rank}: {problem.text}")
        return None

    def resume(self, engine: Engine) -> int:
        """Load the newest valid checkpoint; the step it was taken after, 0 if there is none.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole or fits this run.
        """
        faults: list[str] = []
        for path in distributed.from_main(self._newest_first()):
            found = [fault for fault in distributed.gather_objects(self._fault(path)) if fault]
            if not found:
                manifest = json.loads((path / MANIFEST).read_text())
                if problem := unlike(manifest, self._facts):
                    raise CheckpointError(f"{path.name} {problem}")
                self._load(engine, path)
                self._last = int(manifest["step"])
                return self._last
            faults.append(f"{path.name}: {found[0]}")
            self.note(f"checkpoint {faults[-1]}; trying the one before")
        if faults:
            raise CheckpointError(f"{self.folder}: no usable checkpoint ({'; '.join(faults)}); to start again, move it")
        return 0

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _newest_first(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step-*") if not p.suffix and p.is_dir()), reverse=True)

    def _make_room(self, staging: Path) -> None:
        """Remove what killed saves left, and spare the disk a checkpoint that will not fit."""
        for path in self.folder.glob("step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
        staging.mkdir(parents=True)
        if shutil.disk_usage(staging).free < CERTAIN * self._needs:
            raise disk_full(staging.with_suffix(""), self._needs)

    def _commit(self, staging: Path, final: Path, step: int, files: dict[str, Any]) -> None:
        if missing := _files(staging).keys() ^ files.keys():
            raise OSError(f"{min(missing)} is not seen by every rank; out has to be on a shared file system")
        manifest = {"step": step, "files": dict(sorted(files.items())), **self._facts}
        write_atomic(staging / MANIFEST, json.dumps(manifest, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)  # a damaged one of this step that resume passed over
        staging.rename(final)

    def _tidy(self, final: Path, step: int) -> None:
        """What follows a checkpoint that is whole: nothing here can take it back."""
        fsync(self.folder)
        write_atomic(self.folder / "latest", f"{final.name}\n".encode())
        self._prune(step)

    def _prune(self, step: int) -> None:
        """Keep the newest ones up to `step`: later ones are damaged, or the run would have gone on from them."""
        every = self._config.keep_every
        for path in [path for path in self._newest_first() if _step(path) <= step][self._config.keep :]:
            if not (every and _step(path) % every == 0):
                shutil.rmtree(path)

    def _fault(self, path: Path) -> str:
        """Why this rank cannot use a checkpoint; each rank verifies its share of the files."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            for number, (name, expected) in enumerate(sorted(manifest["files"].items())):
                if number % distributed.world() != distributed.rank():
                    continue
                if not (path / name).is_file():
                    return f"{name} is missing"
                if _describe(path / name) != expected:
                    return f"{name} does not match its sha256"
        except (OSError, ValueError, KeyError) as error:
            return f"no readable {MANIFEST} ({error})"
        return ""

    def _load(self, engine: Engine, path: Path) -> None:
        if not (path / LAYOUT).exists():
            raise CheckpointError(f"{path.name} is of an earlier bigssl (no {LAYOUT}): use that, or another `out`")
        try:
            load_teachers(path, self._teachers)
            engine.load(path)
        except StateError as error:
            raise CheckpointError(f"{path.name} is of other networks: {error}; allowed: another `out` folder") from None


def _problem(stage: Callable[[], None]) -> Problem | None:
    """What goes wrong, whatever it is: the other ranks wait to be told."""
    try:
        stage()
    except Exception as error:
        return Problem(str(error) or type(error).__name__, isinstance(error, DiskFull))
    return None


def _first(signal: str) -> str:
    """Of the signals of all ranks."""
    return next(filter(None, distributed.gather_objects(signal)), "")


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _describe_share(folder: Path) -> dict[str, Any]:
    """Size and hash of this rank's share of the files; the large ones are dealt first, so that shares are even."""
    sizes = _files(folder)
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    return {name: _describe(folder / name) for name in names[distributed.rank() :: distributed.world()]}


def _files(folder: Path) -> dict[str, int]:
    """Sizes of all files below `folder`, by their relative names."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def _flush_files(folder: Path) -> None:
    for name in _files(folder):
        fsync(folder / name)
