"""The same function on many tasks in several processes, results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from bigssl.data.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

# what the processes forked by `each` work on: inherited, so neither function nor tasks need be picklable
_work: tuple[Callable[[Any], Any], Sequence[Any]] | None = None


def each(function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """`function(task)` for every task, in order; in this process when `jobs` is 1. Results must be picklable.

    Raises what `function` raises, and DataError for jobs < 1 and when a process is killed. Tasks that have not begun
    are then given up.
    """
    if jobs < 1:
        raise DataError(f"--jobs {jobs}: 1 or more processes are allowed")
    if jobs == 1 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    pool = _fork(function, tasks, min(jobs, len(tasks)))
    try:
        yield from pool.map(_call, range(len(tasks)))
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed; if memory ran out, lower --jobs or the shard size") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _fork(function: Callable[[Any], Any], tasks: Sequence[Any], jobs: int) -> ProcessPoolExecutor:
    global _work
    _work = (function, tasks)
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_start)


def _start() -> None:
    """Ctrl-C reaches every process of the terminal: the parent reports it, the others end without a traceback. A
    killed parent leaves none behind, which would hold its files and locks."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(number: int) -> Any:
    assert _work is not None
    function, tasks = _work
    return function(tasks[number])
