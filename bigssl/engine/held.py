"""One run at a time in a folder: rank 0 holds its lock from before it writes there until it ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from bigssl.config.errors import ConfigError

LOCK = ".lock"  # in a run folder; says who holds it
_TRIES, _PAUSE = 20, 0.1  # others may be looking
_TAKEN = (errno.EACCES, errno.EAGAIN)
_mine: dict[str, int] = {}  # descriptors by file: to close one, or another of the same file, would give the lock back


def hold(folder: Path) -> list[str]:
    """Take the lock of a run folder, which is there, until `let_go` or the end of this process. (By fcntl, since a
    child would inherit that of flock, and a loader that outlives a killed rank for seconds would refuse the next
    start.)

    Returns:
        what there is to say about it.
    Raises:
        ConfigError: another process holds it.
        OSError: the disk refuses.
    """
    path = folder / LOCK
    if str(path.resolve()) in _mine:
        return []
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    for _ in range(_TRIES):
        if (number := _try(file, fcntl.LOCK_EX)) not in _TAKEN:
            break
        time.sleep(_PAUSE)
    else:
        said = _taken(folder, file)
        os.close(file)
        raise said
    _mine[str(path.resolve())] = file
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    if number:
        return [f"{path}: this file system has no locks ({os.strerror(number)}): nothing refuses a second run in "
                f"{folder} meanwhile"]  # fmt: skip
    return []


def let_go() -> None:
    """Give back what this process holds: its run has ended, and it may live on."""
    for file in _mine.values():
        os.close(file)
    _mine.clear()


def refuse_held(folder: Path) -> None:
    """Raises ConfigError where another process trains in a run folder; to be asked before seconds go into a plan."""
    path = folder / LOCK
    if not path.exists() or str(path.resolve()) in _mine:
        return
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:  # `check_folder` says why
        return
    try:
        if _try(file, fcntl.LOCK_SH) in _TAKEN:  # shared: other ranks look, too
            raise _taken(folder, file)
    finally:
        os.close(file)


def _try(file: int, kind: int) -> int:
    """0, or the system's number of why there is no lock."""
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.ENOLCK
    return 0


def _taken(folder: Path, file: int) -> ConfigError:
    by = os.pread(file, 1000, 0).decode(errors="replace").strip() or "another process"
    return ConfigError(
        f"out: value {str(folder)!r}: {by} trains in it; allowed: another folder, for example out={folder}-2, or to "
        f"wait until it has ended"
    )
