"""Being told to stop: by a signal, by a terminal that closes, by the end of the launcher."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

from bigssl import exits
from bigssl.engine.launcher import Launchers

REPEATS = 10.0
"""Seconds in which one wish to stop may come several times: by the terminal, the scheduler, the launcher."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LOOK = 1.0  # seconds between two looks at the launchers
_LOST = "the end of its launcher"


def heard() -> list[signal.Signals]:
    """SIGNALS, less those that were ignored from the start: SIGHUP by `nohup`, SIGINT where a script used `&`."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def hearing(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], Any]]) -> Iterator[None]:
    """Within it, each signal of `handlers` is told to its function; afterwards, to whom it was told before. Nothing
    changes in a thread that is not the first: Python lets that one alone hear."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopFlag:
    """Why training is to stop, or "". Set by one of SIGNALS, and by Attention.

    A signal reaches ranks at different moments, and often only one: the flag is only ever acted on after ranks have
    agreed on it (see `Guard.observe`), so that all stop after the same step. They then set `heeded`.
    """

    current: ClassVar[StopFlag | None] = None
    """That of the training that goes on, or was stopped, in this process."""

    def __init__(self) -> None:
        self.name, self.heeded = "", False
        self._before = {number: signal.signal(number, self._handle) for number in heard()}
        StopFlag.current = self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.set(signal.Signals(number).name)

    def set(self, why: str) -> None:
        self.name = self.name or why

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not self.heeded:
            StopFlag.current = None


class Attention(threading.Thread):
    """Hears signals also while the main thread imports, or waits for other ranks, and looks after the launchers.

    In training it sets the flag; before and after it, where nothing is lost by it, it ends the process with STOPPED.
    A signal more than REPEATS seconds after the first wish ends the process at once in any case. To be made by the
    main thread, before it imports what takes seconds.
    """

    def __init__(self) -> None:
        super().__init__(name="attention", daemon=True)
        self._told: float | None = None
        self._launchers = Launchers()
        self._pipe, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in heard():
            signal.signal(number, _nothing)  # which has the number written into the pipe
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def run(self) -> None:
        while True:
            ready, _, _ = select.select([self._pipe], [], [], _LOOK)
            for number in os.read(self._pipe, 64) if ready else b"":
                if number in SIGNALS:
                    self._signalled(signal.Signals(number).name)
            if self._told is None and self._gone():
                self._tell(_LOST)

    def _gone(self) -> bool:
        """False too where looking fails, however: signals would be heard no more."""
        try:
            return self._launchers.gone()
        except Exception:
            return False

    def heed(self) -> None:
        """To be called when training is over: ends the process if it was told to stop too late for the last step."""
        if self._told is not None:
            self._end(f"stopped by {self._why}")

    def _signalled(self, name: str) -> None:
        if self._told is None:
            self._tell(name)
        elif time.monotonic() - self._told > REPEATS:
            self._end(f"ended at once by a second signal ({name})")

    def _tell(self, why: str) -> None:
        self._why, self._told = why, time.monotonic()
        if StopFlag.current is None:
            self._end(f"stopped by {why}")
        else:
            StopFlag.current.set(why)

    def _end(self, how: str) -> None:
        """One rank speaks, and none where a launcher ends those that are left: another has said why."""
        if os.environ.get("RANK", "0") == "0" and not self._launchers.ends_the_rest():
            print(f"bigssl: {how}; the same command goes on", file=sys.stderr, flush=True)
        os._exit(exits.STOPPED)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, not inherited by programs that are started."""


class _Lasting(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def keep_speaking() -> None:
    """What is printed to a terminal that is closed, or to a pipe whose reader is gone, is lost, and ends no run."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # started without one
            continue
        file = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True))
