"""`computed_in_order` by torch's DataLoader, for `try.sh` and for benchmarks/stream.py.

How workers take signals, their stages and the words of errors are ours, so that the same tests can be run. Results
travel as torch sends them: each tensor in shared memory of its own, one queue for all workers.
"""

import _thread
import contextlib
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bigssl.data.errors import DataError
from bigssl.data.loading.watchdog import Stages, Watchdog
from bigssl.data.loading.workers import AHEAD, GRACE, WorkerError, _Failure, _obey_only_the_parent, _signals_held


class _Items(Dataset):
    def __init__(self, function: Callable[[int], Any], stages: Stages) -> None:
        self._function, self._stages = function, stages

    def __getitem__(self, item: int) -> Any:
        try:
            return self._function(item)
        except Exception:
            return _Failure(traceback.format_exc())
        finally:
            self._stages.publish("idle")


def _same(value: Any) -> Any:
    return value


def computed_in_order(
    function: Callable[[int], Any], items: Sequence[int], workers: int, stages: Stages, watchdog: Watchdog
) -> Generator[Any, None, None]:
    """As ours."""

    def begin(number: int) -> None:
        _obey_only_the_parent()
        stages.take(number)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors
        with _signals_held():
            results = iter(_loader(function, items, workers, stages, begin))
    crew = list(results._workers)
    try:
        for n in range(len(items)):
            try:
                with _guarded(watchdog, n % workers):
                    result = next(results)
            except (RuntimeError, OSError, EOFError) as error:  # a queue that breaks off says what its socket says
                raise _died(error, crew, stages) from None
            if isinstance(result, _Failure):
                raise WorkerError(f"data worker {n % workers} failed:\n{result.text}")
            yield result
    finally:
        with contextlib.suppress(RuntimeError):  # a worker's death is told again while the others are joined
            results._shutdown_workers()
        for process in crew:
            process.join(GRACE)


def _loader(
    function: Callable[[int], Any], items: Sequence[int], workers: int, stages: Stages, begin: Callable[[int], None]
) -> DataLoader:
    return DataLoader(
        _Items(function, stages), batch_size=None, sampler=items, num_workers=workers, prefetch_factor=AHEAD,
        collate_fn=_same, worker_init_fn=begin, generator=torch.Generator(), multiprocessing_context="fork",
    )  # fmt: skip


@contextlib.contextmanager
def _guarded(watchdog: Watchdog, worker: int) -> Iterator[None]:
    """The loader's own wait cannot be asked to speak: a thread does, and interrupts the main one at the limit."""
    done, errors = threading.Event(), list[DataError]()

    def guard() -> None:
        with watchdog.waiting(worker) as patience:
            try:
                while not done.wait(patience()):
                    pass
            except DataError as error:
                errors.append(error)
                _thread.interrupt_main()

    thread = threading.Thread(target=guard, daemon=True)
    if watchdog._warn or watchdog._abort:
        thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if errors:
            raise errors[0] from None
        raise
    finally:
        done.set()


def _died(error: Exception, crew: list[Any], stages: Stages) -> Exception:
    """Which worker ended, and what it did; the loader names a pid, a broken queue nobody."""
    time.sleep(0.05)
    for number, process in enumerate(crew):
        code = process.exitcode
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            return WorkerError(f"data worker {number} (pid {process.pid}) {how} while {stages.describe(number)}")
    return error
