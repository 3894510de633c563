"""Writes one shard after another into a staging folder, in which an interrupted run is found again.

STAGING/.shards/NAME/   a finished shard: NAME.tar, its sidecar, its manifest, and `source`, which says what it was
                        made from; renamed to this place when all of it is written
STAGING/PART/           the shards of a part with their manifest, once all of them are finished
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import webdataset

from bigssl.data.errors import DataError
from bigssl.data.shards import tarwalk
from bigssl.data.shards.index import MANIFEST, build_index
from bigssl.data.tools.sources.base import Item, refuse_fields
from bigssl.files import DiskFull, write_atomic, writing

_FINISHED = ".shards"
_SOURCE = "source"
Answer = TypeVar("Answer")


class ShardPlan(NamedTuple):
    """A shard to be written: the part it belongs to, its name without `.tar`, its samples."""

    part: str
    name: str
    items: Sequence[Item]
    compress: bool


class Written(NamedTuple):
    """How many samples a shard has, and whether it was there already, or was but of another source."""

    samples: int
    kept: bool
    outdated: bool


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """The staging folder of `folder`, for one process at a time. Left where it is with finished shards, if there are
    any, when the block fails. Raises DataError when another process packs there."""
    staging = folder.with_name(f".{folder.name}.staging")
    (staging / _FINISHED).mkdir(parents=True, exist_ok=True)
    lock = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield staging
    except BlockingIOError as error:
        raise DataError(f"{folder}: another process packs it; wait for that one or choose another folder") from error
    except BaseException:
        if not any((staging / _FINISHED).glob(f"[!.]*/{_SOURCE}")):
            shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def forget_others(plans: Sequence[ShardPlan], staging: Path) -> int:
    """Removes what is in `staging` and not in the plan; returns how many finished shards may be of use."""
    names = {plan.name for plan in plans}
    for path in [*staging.iterdir(), *(staging / _FINISHED).iterdir()]:
        if path.name != _FINISHED and not (path.parent.name == _FINISHED and path.name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return sum(1 for _ in (staging / _FINISHED).iterdir())


def write_shard(plan: ShardPlan, staging: Path) -> Written:
    """Writes a shard with its index, unless it is there and made from the same source. Raises DataError."""
    home = staging / _FINISHED / plan.name
    source = _fingerprint(plan)
    if source is not None and _is_finished(home, source):
        return Written(len(plan.items), kept=True, outdated=False)
    outdated = home.exists()
    shutil.rmtree(home, ignore_errors=True)
    unfinished = home.with_name(f".{plan.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        with writing(home, None, unfinished):
            tar = unfinished / f"{plan.name}.tar"
            _write_tar(plan.items, tar)
            build_index([_compress(tar) if plan.compress else tar], unfinished)
            if source is not None:
                write_atomic(unfinished / _SOURCE, source.encode())
            os.replace(unfinished, home)
    except OSError as error:  # of the disk: those of the source have become DataErrors
        shutil.rmtree(unfinished, ignore_errors=True)
        again = "the same command goes on from the finished shards"
        if isinstance(error, DiskFull):
            raise DiskFull(error.errno, f"{error}; free some room, {again}") from error
        raise DataError(f"{unfinished} cannot be written ({error.strerror}); {again}") from error
    return Written(len(plan.items), kept=False, outdated=outdated)


def _fingerprint(plan: ShardPlan) -> str | None:
    digest = hashlib.sha256(json.dumps([webdataset.__version__, plan.part, plan.name, plan.compress]).encode())
    for item in plan.items:
        if item.stamp is None:
            return None
        digest.update(json.dumps([item.key, _ask(item, item.stamp)]).encode())
    return digest.hexdigest()


def _is_finished(home: Path, source: str) -> bool:
    try:
        facts = json.loads((home / MANIFEST).read_bytes())["shards"][0]
        return (home / _SOURCE).read_text() == source and (home / facts["name"]).stat().st_size == facts["bytes"]
    except (OSError, ValueError, LookupError):
        return False


def _write_tar(items: Sequence[Item], tar: Path) -> None:
    # names, owner, mode and time are fixed, fields are sorted by the writer: equal samples, equal bytes
    with tar.open("wb") as file:
        with webdataset.TarWriter(file, user="bigssl", group="bigssl", mtime=0, encoder=False) as writer:
            for item in items:
                fields = _ask(item, item.load)
                refuse_fields(item.key, fields)
                writer.write({"__key__": item.key, **fields})
        file.flush()
        os.fsync(file.fileno())


def _ask(item: Item, what: Callable[[], Answer]) -> Answer:
    try:
        return what()
    except OSError as error:
        raise DataError(f"sample {item.key!r}: {error.filename or ''} cannot be read ({error.strerror})") from error


def _compress(tar: Path) -> Path:
    with tar.open("rb") as file:
        boundaries = [group.start for group in tarwalk.group_entries(tarwalk.walk(file, str(tar)), str(tar))]
    target = tar.with_name(tar.name + ".gz")
    tarwalk.compress(tar, target, boundaries)
    tar.unlink()
    return target


def assemble(plans: Sequence[ShardPlan], staging: Path) -> None:
    """Puts finished shards together: each part in its folder, with one manifest."""
    manifests: dict[str, dict[str, Any]] = {}
    for plan in plans:
        home = staging / _FINISHED / plan.name
        facts = json.loads((home / MANIFEST).read_bytes())
        whole = manifests.setdefault(plan.part, {**facts, "samples": 0, "shards": []})
        whole["samples"] += facts["samples"]
        whole["shards"] += facts["shards"]
        (staging / plan.part).mkdir(exist_ok=True)
        for path in [path for path in home.iterdir() if path.name not in (_SOURCE, MANIFEST)]:
            os.replace(path, staging / plan.part / path.name)
    for part, manifest in manifests.items():
        write_atomic(staging / part / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    shutil.rmtree(staging / _FINISHED)
