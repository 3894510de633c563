"""Checkpoints that are whole or absent.

    checkpoints/step-00000500.tmp/   every rank writes, fsync, barrier
    checkpoints/step-00000500/       after rank 0 wrote manifest.json (sha256 of every file) and renamed the folder
    checkpoints/latest               name of the newest, for people; loading trusts manifests only

DeepSpeed alone writes `latest` without a barrier, an fsync or a checksum, so that a rank killed while saving leaves it
naming a broken checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigssl import distributed
from bigssl.config import CheckpointConfig
from bigssl.engine.restore import StateError
from bigssl.engine.zero import Engine

MANIFEST = "manifest.json"
REASONS = {
    "accum": "contrastive losses and BatchNorm see one pass at a time",
    "data": "the order of samples follows from the shards",
}
SPARE = 1.2  # a new checkpoint is expected to be no more than this times the last one


class CheckpointError(RuntimeError):
    """Checkpoints exist but none can be used; the message names each and its fault."""


class CheckpointStore:
    """The checkpoints of one run. All methods are collective.

    Args:
        folder: RUN/checkpoints, on a file system that all ranks see.
        facts: what a manifest records: `world`, and the fields of REASONS, which a resume must match.
        note: prints a line for the user.
    """

    def __init__(
        self, folder: Path, config: CheckpointConfig, facts: dict[str, Any], note: Callable[[str], None]
    ) -> None:
        self.folder, self._config, self._facts, self.note = folder, config, facts, note

    def save(self, engine: Engine, step: int) -> bool:
        """Write the state after `step`; False (and a note) where the disk refuses: the earlier checkpoints stay.

        (A rank that fails alone inside DeepSpeed's own save leaves the others in its barrier: the launcher's or the
        group's time-out ends the run then, with the earlier checkpoints whole.)
        """
        final, staging = self._path(step), self._path(step).with_suffix(".tmp")
        stages = (
            lambda: self._make_room(staging) if distributed.is_main() else None,
            lambda: engine.save(staging),
            lambda: _flush_files(staging),
            lambda: self._commit(staging, final, step) if distributed.is_main() else None,
        )
        for stage in stages:
            problem = _problem(stage)
            if problem:
                self.note(f"no checkpoint in {self.folder}: {problem}. Training goes on; the last one stays")
            if not distributed.agree(not problem):
                return False
        return True

    def resume(self, engine: Engine) -> int:
        """Load the newest valid checkpoint; the step it was taken after, 0 if there is none.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole or fits this run.
        """
        faults: list[str] = []
        for path in distributed.from_main(self._newest_first()):
            fault = self._fault(path)
            if distributed.agree(not fault):
                manifest = json.loads((path / MANIFEST).read_text())
                self._refuse_other_shape(path, manifest)
                self._load(engine, path)
                return int(manifest["step"])
            faults.append(f"{path.name}: {fault or 'damaged for another rank'}")
            self.note(f"checkpoint {faults[-1]}; trying the one before")
        if faults:
            raise CheckpointError(f"{self.folder}: no usable checkpoint ({'; '.join(faults)}); to start again, move it")
        return 0

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _newest_first(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step-*") if not p.suffix and p.is_dir()), reverse=True)

    def _make_room(self, staging: Path) -> None:
        """Remove what a killed save left, and see whether the disk takes a checkpoint like the last one."""
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        needed = SPARE * max((_size(path) for path in self._newest_first()[:1]), default=0)
        free = shutil.disk_usage(staging).free
        if free < needed:
            raise OSError(f"{free / 2**20:.0f} MiB free, about {needed / 2**20:.0f} needed")

    def _commit(self, staging: Path, final: Path, step: int) -> None:
        files = {str(p.relative_to(staging)): _describe(p) for p in sorted(staging.rglob("*")) if p.is_file()}
        manifest = {"step": step, "files": files, **self._facts}
        _write_durably(staging / MANIFEST, json.dumps(manifest, indent=1))
        shutil.rmtree(final, ignore_errors=True)  # a damaged one of this step that resume passed over
        staging.rename(final)
        _fsync(self.folder)
        pointer = self.folder / "latest.tmp"
        _write_durably(pointer, final.name + "\n")
        pointer.replace(self.folder / "latest")
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
        try:
            engine.load(path)
        except StateError as error:
            raise CheckpointError(f"{path.name} is of other networks: {error}; allowed: another `out` folder") from None

    def _refuse_other_shape(self, path: Path, manifest: dict[str, Any]) -> None:
        for field, mine in self._facts.items():
            if field in REASONS and manifest[field] != mine:
                raise CheckpointError(
                    f"{path.name} has {field} {manifest[field]}, this run {mine}; allowed: the same "
                    f"({REASONS[field]}), or a new `out` folder"
                )


def _problem(stage: Callable[[], None]) -> str:
    """What a disk that refuses says; torch.save reports some of its errors as RuntimeError."""
    try:
        stage()
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _flush_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
