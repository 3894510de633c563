"""Checkpoints that are whole or absent.

    checkpoints/step-00000500.tmp/   every rank writes, fsyncs and hashes its share of the files
    checkpoints/step-00000500/       after rank 0 wrote manifest.json (sha256 of every file) and renamed the folder
    checkpoints/latest               name of the newest, for people; loading trusts manifests only

In the folder: state/ (DeepSpeed's files), layout.json (see layout.py), teachers.pt where there are teachers (see
teaching.py), zero_to_fp32.py and its `latest`.

DeepSpeed alone writes `latest` without a barrier, an fsync or a checksum, so that a rank killed while saving leaves it
naming a broken checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigssl import distributed
from bigssl.config.recipe import CheckpointConfig
from bigssl.engine.plan.facts import unlike
from bigssl.engine.restore import StateError
from bigssl.engine.saved import LAYOUT
from bigssl.engine.teaching import Teachers, load_teachers, save_teachers
from bigssl.engine.zero import Engine
from bigssl.files import fsync, write_atomic

MANIFEST = "manifest.json"
SPARE = 1.2  # a new checkpoint is expected to be no more than this times the last one


class CheckpointError(RuntimeError):
    """Checkpoints exist but none can be used; the message names each and its fault."""


class CheckpointStore:
    """The checkpoints of one run. All methods are collective.

    Args:
        folder: RUN/checkpoints, on a file system that all ranks see.
        facts: what a manifest records: `world`, and the fields of REASONS, which a resume must match (resume.py).
        note: prints a line for the user.
        teachers: what is saved and restored besides the engine's state.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, facts: dict[str, Any], note: Callable[[str], None],
                 teachers: Teachers | None = None) -> None:
        self.folder, self._config, self._facts, self.note = folder, config, facts, note
        self._teachers = teachers or {}

    def save(self, engine: Engine, step: int) -> bool:
        """Write the state after `step`; False (and a note) where the disk refuses: the earlier checkpoints stay.

        (A rank that fails alone inside DeepSpeed's own save leaves the others in its barrier: the launcher's or the
        group's time-out ends the run then, with the earlier checkpoints whole.)
        """
        final, staging = self._path(step), self._path(step).with_suffix(".tmp")
        share: dict[str, Any] = {}
        stages = (
            lambda: self._make_room(staging) if distributed.is_main() else None,
            lambda: engine.save(staging),
            lambda: save_teachers(staging, self._teachers) if distributed.is_main() else None,
            lambda: _flush_files(staging),
            lambda: share.update(_describe_share(staging)),
        )
        if any(self._fails(stage) for stage in stages):
            return False
        files = {name: facts for part in distributed.gather_objects(share) for name, facts in part.items()}
        if self._fails(lambda: self._commit(staging, final, step, files) if distributed.is_main() else None):
            return False
        if problem := _problem(lambda: self._tidy(final, step) if distributed.is_main() else None):
            self.note(f"{final} is whole, but its folder could not be tidied: {problem}. Training goes on")
        return True

    def _fails(self, stage: Callable[[], None]) -> bool:
        """Whether a stage of saving fails on any rank; the note, which only rank 0 can show, tells of the first."""
        problems = distributed.gather_objects(_problem(stage))
        for rank, problem in enumerate(problems):
            if problem:
                who = f"rank {rank}: " if len(problems) > 1 else ""
                self.note(f"no checkpoint in {self.folder}: {who}{problem}. Training goes on; the last one stays")
                return True
        return False

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
                return int(manifest["step"])
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
        """Remove what a killed save left, and see whether the disk takes a checkpoint like the last one."""
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        needed = SPARE * max((sum(_files(path).values()) for path in self._newest_first()[:1]), default=0)
        free = shutil.disk_usage(staging).free
        if free < needed:
            raise OSError(f"{free / 2**20:.0f} MiB free, about {needed / 2**20:.0f} needed")

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


def _problem(stage: Callable[[], None]) -> str:
    """What a disk that refuses says; torch.save reports some of its errors as RuntimeError."""
    try:
        stage()
    except (OSError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return ""


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
