"""Features: written by each rank to a file as they come and read back in pieces, where they need not fit into memory;
or held by each rank, those of a probe during training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from bigssl.files import DiskFull, writing
from bigssl.transfer.team import Team

FOLDER = ".scorecard"
ROWS, VALUES = 4096, 1 << 24  # of a piece at most: 64 MiB of float32
TYPES = {torch.uint8: np.uint8, torch.float32: np.float32}


Batches = Iterator[Mapping[str, Tensor]]


class Part(Protocol):
    """One rank's rows: `count` of `width` values each."""

    @property
    def count(self) -> int: ...

    @property
    def width(self) -> int: ...

    def read(self, first: int, last: int) -> Tensor:
        """float32 [last - first, width], on the CPU."""
        ...


@dataclass(frozen=True)
class FilePart:
    """In a file, float32 or uint8; uint8 values count as 0..1, in 255 steps."""

    path: Path
    count: int
    width: int
    dtype: torch.dtype

    def read(self, first: int, last: int) -> Tensor:
        kind = np.dtype(TYPES[self.dtype])
        count, offset = (last - first) * self.width, first * self.width * kind.itemsize
        values = torch.from_numpy(np.fromfile(self.path, kind, count, offset=offset)).view(-1, self.width)
        return values.float().div_(255) if self.dtype == torch.uint8 else values


@dataclass(frozen=True)
class HeldPart:
    """In memory. values: float32 [count, width]."""

    values: Tensor

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def read(self, first: int, last: int) -> Tensor:
        return self.values[first:last]


class Store(Protocol):
    """Where a rank's features are put."""

    def store(self, batches: Batches) -> Mapping[str, Part]:
        """Batches of rows (uint8 or float32 [n, width], by name), one below the other. Not a collective."""
        ...


class Held:
    """A store in memory."""

    def store(self, batches: Batches) -> dict[str, HeldPart]:
        rows: dict[str, list[Tensor]] = {}
        for batch in batches:
            for name, values in batch.items():
                rows.setdefault(name, []).append(values)
        return {name: HeldPart(torch.cat(values)) for name, values in rows.items()}


class Matrix:
    """float32 [len, width], the parts of all ranks one below the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = [part for part in parts if part.count]
        self.width = self.parts[0].width if self.parts else 0
        self._starts = np.cumsum([0, *(part.count for part in self.parts)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def rows(self) -> int:
        """Rows of a piece: as many as `VALUES` allows, `ROWS` at most."""
        return max(1, min(ROWS, VALUES // max(1, self.width)))

    def read(self, start: int, stop: int) -> Tensor:
        """float32 [stop - start, width], on the CPU."""
        found = []
        for part, begin in zip(self.parts, self._starts, strict=False):
            first, last = max(start - begin, 0), min(stop - begin, part.count)
            if first < last:
                found.append(part.read(first, last))
        return torch.cat(found) if len(found) != 1 else found[0]

    def pieces(self, rows: range | None = None) -> Iterator[tuple[range, Tensor]]:
        """(row numbers, their values), of all rows or of contiguous `rows`, in order."""
        rows = range(len(self)) if rows is None else rows
        for start in range(rows.start, rows.stop, self.rows):
            piece = range(start, min(start + self.rows, rows.stop))
            yield piece, self.read(piece.start, piece.stop)


class Scratch:
    """This rank's files below the run folder, which all ranks see. A context manager, which all ranks enter together;
    the files are gone afterwards."""

    def __init__(self, run_folder: Path, team: Team) -> None:
        self.team = team
        self._folder = run_folder / FOLDER / f"rank-{team.rank}"
        self._number = 0

    def __enter__(self) -> Scratch:
        self.team.gather(self._make)
        return self

    def _make(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # of an evaluation that was killed
        self._folder.mkdir(parents=True)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # another rank's files are still there
            self._folder.parent.rmdir()

    def store(self, batches: Batches) -> dict[str, FilePart]:
        parts: dict[str, FilePart] = {}
        files: dict[str, BinaryIO] = {}
        self._number += 1
        try:
            with writing(self._folder):
                for batch in batches:
                    for name, rows in batch.items():
                        if name not in files:
                            path = self._folder / f"{self._number}-{len(parts)}"
                            files[name] = path.open("wb", buffering=0)
                            parts[name] = FilePart(path, 0, rows.shape[1], rows.dtype)
                        _write_all(files[name], rows.contiguous().numpy().tobytes())
                        old = parts[name]
                        parts[name] = FilePart(old.path, old.count + len(rows), old.width, old.dtype)
        except DiskFull as error:
            advice = "free some room, or lower bank_limit and query_limit of the evaluation"
            raise DiskFull(error.errno, f"{error}; {advice}") from error
        finally:
            for file in files.values():
                file.close()
        return parts


def _write_all(file: BinaryIO, data: bytes) -> None:
    """To an unbuffered file, of which one call may take a part only. (A buffer would be written when it is closed.)"""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def joined(parts: Sequence[Mapping[str, Part]]) -> dict[str, Matrix]:
    """The matrices by name from what `store` gave on each rank."""
    names = dict.fromkeys(name for each in parts for name in each)
    return {name: Matrix([each[name] for each in parts if name in each]) for name in names}
