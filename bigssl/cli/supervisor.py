"""Watches over the processes of a run on this machine: who tells it to stop tells the ranks, and its exit code is
theirs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

from bigssl import exits
from bigssl.engine.launcher import SUPERVISOR, is_there
from bigssl.engine.stopping import REPEATS, heard, hearing

_PATIENCE = 10.0  # seconds until ranks that were told twice are killed
_LOOK, _REST = 1.0, 0.05  # seconds between two looks for ranks, and for processes that have ended
_LAUNCHERS = {"deepspeed.launcher.launch", "deepspeed.launcher.runner"}
_SET_SUBREAPER, _GET_SUBREAPER = 36, 37  # PR_SET_CHILD_SUBREAPER and PR_GET_CHILD_SUBREAPER of prctl(2)


class Supervisor:
    """Starts a launcher of ranks in a session of its own: what the terminal sends does not reach it, nor the ranks.

    DeepSpeed's launcher ends ranks after 30 seconds when it is told to stop, and leaves them behind when it is killed.
    So ranks are told directly. On Linux, orphans become children of this process. Those that are neither ranks nor
    launchers (what a `pipe:` source left, a connection that ssh keeps) neither hold it up nor say how the run ended.

    script: what each rank runs, by which ranks are known.
    """

    def __init__(self, script: Path) -> None:
        self._script, self._launcher = str(script), 0
        self._told: float | None = None
        self._known: dict[int, psutil.Process] = {}  # ranks and launchers
        self._loaders: set[int] = set()  # processes of a rank: forked, they have its words
        self._outlived = False  # the first launcher, by one of them

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """The exit code of the run. Afterwards this process hears signals, and treats orphans, as before; one that was
        told to stop hears nothing more that could take the place of its exit code."""
        environment = environment | {SUPERVISOR: str(os.getpid())}
        told = heard()
        handlers = {signal.SIGTSTP: self._pause, signal.SIGCONT: self._go_on} | dict.fromkeys(told, self._tell)
        with hearing(handlers), _adopting_orphans():
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            self._launcher = process.pid
            if self._told is not None:  # meanwhile
                self._pass_on()
            codes = self._wait()
        if self._told is not None:
            for number in told:
                signal.signal(number, signal.SIG_IGN)
        process.returncode = codes.get(process.pid, 0)  # it was waited for here, and is not by its destructor
        return self._code(codes)

    def _wait(self) -> dict[int, int]:
        """Until the launcher and all ranks have ended. Exit codes of those that ended here, by process id (negative:
        signals), in order."""
        codes: dict[int, int] = {}
        looked = float("-inf")
        while self._launcher not in codes or any(map(_has_not_ended, self._known.values())):
            for pid, code in _ended():
                if pid == self._launcher:
                    self._look()  # at those that it left
                    self._outlived = any(map(is_there, self._known.values()))
                if pid == self._launcher or pid in self._known:
                    codes[pid] = code
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                self._look()
            time.sleep(_REST)
        codes.update((pid, code) for pid, code in _ended() if pid in self._known)
        return codes

    def _look(self) -> None:
        """Remember ranks, and launchers that are below the first."""
        for process in _below():
            words = _words(process)
            if self._script not in words or process.pid in self._loaders:
                continue
            if self._is_rank(words) and self._is_rank(_words(_parent(process))):
                self._loaders.add(process.pid)
            elif process.pid != self._launcher:
                self._known[process.pid] = process

    def _tell(self, number: int, frame: FrameType | None) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        if self._told is None:
            self._told = now
            _say(f"{name}: the run stops, in training with a checkpoint at the next step that it logs; another signal "
                 f"after {REPEATS:.0f} s ends it at once")  # fmt: skip
            self._pass_on()
        elif now - self._told > REPEATS:
            self._pass_on()
            timer = threading.Timer(_PATIENCE, lambda: _send(signal.SIGKILL, _below()))
            timer.daemon = True
            timer.start()

    def _pause(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z, which reaches this process only."""
        _send(signal.SIGSTOP, _below())
        os.kill(os.getpid(), signal.SIGSTOP)

    def _go_on(self, number: int, frame: FrameType | None) -> None:
        _send(signal.SIGCONT, _below())

    def _pass_on(self) -> None:
        """SIGTERM to the ranks; to the launcher where there are none yet. (One that has just begun to load Python
        would answer SIGINT with a traceback.)"""
        if not self._launcher:
            return
        below = _below()
        _send(signal.SIGTERM, self._ranks(below) or below)

    def _ranks(self, below: list[psutil.Process]) -> list[psutil.Process]:
        found = [process for process in below if self._is_rank(_words(process))]
        return [process for process in found if not self._is_rank(_words(_parent(process)))]  # no loaders

    def _is_rank(self, words: list[str]) -> bool:
        return self._script in words and not _LAUNCHERS & set(words)

    def _code(self, codes: dict[int, int]) -> int:
        """That of the ranks. The launcher passes it on; where the launcher was killed, ranks are among those that
        ended here, or, where the system gives orphans to others, nobody knows."""
        launcher = codes.pop(self._launcher, 0)
        others = next((code for code in codes.values() if code), exits.DONE)
        code = others or (exits.DONE if codes and launcher < 0 else launcher)
        if not codes and self._outlived and code == exits.DONE:
            code = -signal.SIGKILL  # of launch.py, for which DeepSpeed's runner ends with 0
        if code in exits.MEANINGS:
            return code
        if self._told is not None:
            return exits.STOPPED
        name = _signal_name(code)
        memory = " (if memory ran out, `dmesg` says so)" if name == "SIGKILL" else ""
        how = f"was killed by {name}{memory}" if name else f"ended with code {code}"
        _say(f"a rank, or the launcher, {how}; the same command begins again at the last checkpoint, if there is one")
        return exits.FAILED


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Those below this process become its children, where the system is Linux."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        yield
        return
    before = ctypes.c_int()
    prctl(_GET_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_SET_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_SUBREAPER, before.value, 0, 0, 0)


def _signal_name(code: int) -> str:
    """Of the signal that ended a process: its code is -N, what the launcher makes of it 256-N, a shell's 128+N."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code if code < 0 else 256 - code if code > 192 else code - 128).name
    return ""


def _has_not_ended(process: psutil.Process) -> bool:
    """Whether it is there, or a child that cannot be waited for yet (its first thread has ended, others have not)."""
    with contextlib.suppress(psutil.Error):
        return is_there(process) or (process.is_running() and process.ppid() == os.getpid())
    return False


def _ended() -> Iterator[tuple[int, int]]:
    """Children that have ended since, and their exit codes."""
    with contextlib.suppress(ChildProcessError):  # none is left
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found[0], os.waitstatus_to_exitcode(found[1])


def _below() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _send(number: signal.Signals, processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _words(process: psutil.Process | None) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline() if process is not None else []
    return []


def _parent(process: psutil.Process) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return process.parent()
    return None


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is closed
        behind_bar = "\n" if sys.stderr.isatty() else ""
        print(f"{behind_bar}bigssl: {text}", file=sys.stderr, flush=True)
