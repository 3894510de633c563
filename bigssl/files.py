"""Files that are whole or absent, and disks that are full."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers raise exceptions of their own
# torch, for a path, and numpy forget what the system said
_HALF = re.compile(r"unexpected pos \d+|PytorchStreamWriter failed|\d+ requested and \d+ written")
_STEP = re.compile(rb'\{"step": (\d+), ')


class DiskFull(OSError):
    """What was written does not fit. The message is complete: path, bytes that it needs, bytes that are there."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def writing(path: Path, needs: int | None = None, staged: Path | None = None) -> Iterator[None]:
    """Within it, `path` is written; where that does not fit, DiskFull is raised, whichever library noticed it how.

    Args:
        needs: bytes of all that is to be written; None where nobody knows.
        staged: the file or folder that it is written to until it is whole; default: `path`.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None or (needs is None and isinstance(error, DiskFull)):
            raise
        raise disk_full(path, needs, staged, number) from error


def disk_full(path: Path, needs: int | None = None, staged: Path | None = None, number: int = errno.ENOSPC) -> DiskFull:
    """The error that says so, with what is free now and what `staged` takes, which goes away with it."""
    has, of = _room(number, path, bytes_of(staged or path))
    wanted = f"more than {_mib(has)}" if needs is None else _mib(needs)
    return DiskFull(number, f"disk full: {path}, needs {wanted}, has {_mib(has)}{of}")


def _number(error: BaseException) -> int | None:
    """The system's number of a write that did not fit; None for every other error."""
    if isinstance(error, DiskFull):
        return error.errno
    chain, texts = [error], [str(error)]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
        texts.append(str(before))
    numbers = [each.errno for each in chain if isinstance(each, OSError) and each.errno is not None]
    numbers += [int(found[1]) for text in texts if (found := _RUST.search(text))]
    if numbers:
        return next((number for number in numbers if number in _FULL), None)
    return errno.ENOSPC if any(map(_HALF.search, texts)) else None


def _room(number: int, path: Path, written: int) -> tuple[int, str]:
    """Bytes that there are for `path`, of which `written` are in use, and of what, where that is not the disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if number == errno.EFBIG and limit != resource.RLIM_INFINITY:
        return limit, " a file (`ulimit -f`)"
    if number == errno.EDQUOT:
        return written, " of its quota"  # what else there is of it, nobody tells
    status = os.statvfs(existing(path))
    free = status.f_bavail * status.f_frsize
    without_inodes = status.f_files > 0 and status.f_favail == 0
    return free + written, " but no inode for another file" if without_inodes and free else ""


def _mib(size: int) -> str:
    value = size / 2**20
    return f"{value:.0f} MiB" if value >= 10 else f"{value:.2g} MiB" if value >= 0.01 else f"{size} bytes"


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(each for each in [path, *path.absolute().parents] if os.path.lexists(each))


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 where there is nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data` (or its parts) so that `path` is either what it was or the whole new file, also after a power cut.

    Makes the folder. What a failed write left is removed, and its error (OSError of the disk, DiskFull among them, or
    what `data` raises) goes on.
    """
    needs = len(data) if isinstance(data, bytes) else None
    with writing(path, needs), whole(path) as staging, staging.open("wb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name of a file that becomes `path`, all of it, when the block ends, for libraries that write by themselves.
    Otherwise as `write_atomic`."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, None, staging):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staging
            fsync(staging)
            os.replace(staging, path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
        fsync(path.parent)


def append_whole(file: int, data: bytes, path: Path) -> None:
    """Append `data` to an open file (a descriptor) entirely or not at all: half a line would spoil the next one.

    Raises:
        OSError: of the disk, DiskFull among them; the file is as it was.
    """
    size = os.fstat(file).st_size
    with writing(path, len(data)):
        try:
            written = os.write(file, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes fitted")
        except OSError:
            os.ftruncate(file, size)  # shrinking works on a full disk
            raise


def drop_from(path: Path, step: int) -> None:
    """Cut a file of JSON lines (their step first) before the first that is of `step` or later, or not whole.

    Works on a full disk."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            start = _STEP.match(line)
            if not start or int(start[1]) >= step or not line.endswith(b"\n"):
                break
            end += len(line)
    os.truncate(path, end)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
