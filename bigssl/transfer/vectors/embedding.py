"""Vectors of a whole dataset, written as they come: a kill loses some batches, and the same call goes on.

Beside the file `F` that is asked for lies a folder `.F.partial` until it is whole:

    about.json   what the vectors are made of; another call with other weights, data or batch is refused
    vectors      float32 [rows, D]
    rows.jsonl   key and metadata of each row
    done.json    how much of both is on the disk for certain: what is behind it is written anew

A forward pass sees the same samples together however often it was interrupted, so that the file is the same to the
byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.files import DiskFull, write_atomic, writing
from bigssl.transfer.features import Views, view_batches
from bigssl.transfer.matrix import FilePart, Matrix
from bigssl.transfer.vectors.encoder import Encoder
from bigssl.transfer.vectors.tables import about_of, write_table

SAVE = 32  # batches from one entry in done.json to the next


@dataclass(frozen=True)
class Given:
    """What is embedded. mark: which version of it. samples: those from a number on, in order."""

    name: str
    mark: str
    count: int
    samples: Callable[[int], Iterator[Sample]]


@dataclass(frozen=True)
class Reached:
    """rows that are written, and the bytes that rows.jsonl has for them."""

    rows: int = 0
    bytes: int = 0
    width: int = 0


def embed_to(
    out: Path, encoder: Encoder, given: Given, *, batch: int, overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[int, int]:  # fmt: skip
    """Writes `out` (.npz or .parquet) with keys, vectors float32 and the metadata of all samples, in order; returns
    (rows, width).

    Holds some batches in memory, and a piece of the table. note: is told where an earlier call is gone on with, and
    what of the metadata has no place.

    Raises:
        ConfigError: `out`, or the beginning of it, was made of something else, and is not to be overwritten; another
            process writes it.
        DataError, DiskFull: a sample cannot be read; no room. The same call goes on.
    """
    about = {"weights": encoder.mark, "network": encoder.name, "data": given.mark, "samples": given.count,
             "batch": batch, "device": encoder.device.type}  # fmt: skip
    partial = out.with_name(f".{out.name}.partial")
    with _alone(partial, out):
        for left in out.parent.glob(f".{escape(out.name)}.[0-9]*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
        if _is_there(out, about, overwrite):
            note(f"{out}: there already, made of the same")
            shutil.rmtree(partial, ignore_errors=True)
            return about_rows(out)
        progress = _begun(partial, about, overwrite, note)
        with _room(out):
            progress = _append(partial, progress, encoder, given, batch)
            matrix = Matrix([FilePart(partial / "vectors", progress.rows, progress.width, torch.float32)])
            write_table(out, matrix, partial / "rows.jsonl", about | {"width": progress.width}, note)
        shutil.rmtree(partial)
    return progress.rows, progress.width


def about_rows(out: Path) -> tuple[int, int]:
    """(rows, width) of a file that was written."""
    about = about_of(out)
    assert about is not None
    return int(about["samples"]), int(about["width"])


@contextmanager
def _alone(partial: Path, out: Path) -> Iterator[None]:
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial.with_name(partial.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        said = f"--out: {out} is being written by another process; wait for it, or write another file"
        raise ConfigError(said) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def _room(out: Path) -> Iterator[None]:
    try:
        with writing(out):
            yield
    except DiskFull as error:
        raise DiskFull(error.errno, f"{error}; free some room, then the same command goes on") from error


def _is_there(out: Path, about: dict[str, Any], overwrite: bool) -> bool:
    if overwrite or not os.path.lexists(out):
        return False
    before = about_of(out)
    if before is not None and {name: before.get(name) for name in about} == about:
        return True
    why = "was not made by `bigssl embed`" if before is None else f"was made of {_differs(before, about)}"
    raise ConfigError(f"--out: {out} exists and {why}; allowed: another file, or --overwrite")


def _differs(before: dict[str, Any], about: dict[str, Any]) -> str:
    words = {"weights": "other weights or settings", "network": f"the network {before.get('network')!r}",
             "data": "other data", "samples": f"{before.get('samples')} samples",
             "batch": f"batches of {before.get('batch')}", "device": f"the device {before.get('device')}"}  # fmt: skip
    return ", ".join(text for name, text in words.items() if before.get(name) != about[name])


def _begun(partial: Path, about: dict[str, Any], overwrite: bool, note: Callable[[str], None]) -> Reached:
    try:
        before = json.loads((partial / "about.json").read_bytes())
    except (OSError, ValueError):
        before = None  # killed before anything was written
    if before not in (None, about) and not overwrite:
        raise ConfigError(f"--out: {partial} is the beginning of a file made of {_differs(before, about)}; allowed: "
                          "the same command as then, another file, or --overwrite to begin anew")  # fmt: skip
    if before == about and (partial / "done.json").is_file():
        progress = Reached(**json.loads((partial / "done.json").read_bytes()))
        note(f"goes on behind sample {progress.rows} of {about['samples']}")
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_atomic(partial / "about.json", json.dumps(about).encode())
        progress = Reached()
    for name, size in (("vectors", 4 * progress.rows * progress.width), ("rows.jsonl", progress.bytes)):
        with (partial / name).open("ab") as file:
            file.truncate(size)
    return progress


def _append(partial: Path, progress: Reached, encoder: Encoder, given: Given, batch: int) -> Reached:
    if progress.rows == given.count:
        return progress
    batches = view_batches(given.samples(progress.rows), encoder.takes, batch=batch)
    rows, width = progress.rows, progress.width
    with (partial / "vectors").open("ab") as vectors, (partial / "rows.jsonl").open("ab") as keys:
        for number, views in enumerate(batches, 1):
            found = encoder.of(views)
            _refuse_nan(found, views)
            rows, width = rows + len(found), found.shape[1]
            vectors.write(found.contiguous().numpy().tobytes())
            keys.writelines(_line(key, meta) for key, meta in zip(views.keys, views.meta, strict=True))
            if number % SAVE == 0 or rows == given.count:
                for file in (vectors, keys):
                    file.flush()
                    os.fsync(file.fileno())
                progress = Reached(rows, keys.tell(), width)
                write_atomic(partial / "done.json", json.dumps(vars(progress)).encode())
    if progress.rows != given.count:
        raise DataError(f"{given.name}: {progress.rows} samples were read of {given.count}; it has changed meanwhile")
    return progress


def _refuse_nan(found: torch.Tensor, views: Views) -> None:
    finite = found.isfinite().all(1)
    if not finite.all():
        raise DataError(f"sample {views.keys[int((~finite).nonzero()[0])]!r}: its vector is not finite; are these the "
                        "weights of a training that went wrong?")  # fmt: skip


def _line(key: str, meta: dict[str, Any]) -> bytes:
    return json.dumps([key, meta], separators=(",", ":")).encode() + b"\n"
