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
from pathlib import Path
from types import FrameType

import psutil

from bigssl import exits
from bigssl.engine.launcher import SUPERVISOR
from bigssl.engine.stopping import REPEATS, heard

_PATIENCE = 10.0  # seconds until ranks that were told twice are killed
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


class Supervisor:
    """Starts a launcher of ranks in a session of its own: what the terminal sends does not reach it, nor the ranks.

    DeepSpeed's launcher ends ranks after 30 seconds when it is told to stop, and leaves them behind when it is killed.
    So ranks are told directly. On Linux, orphans become children of this process, which ends when no one is left.

    script: what each rank runs, by which ranks are known.
    """

    def __init__(self, script: Path) -> None:
        self._script, self._launcher = str(script), 0
        self._told: float | None = None

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """The exit code of the run."""
        for number in heard():
            signal.signal(number, self._tell)
        signal.signal(signal.SIGTSTP, self._pause)
        signal.signal(signal.SIGCONT, self._go_on)
        with contextlib.suppress(AttributeError, OSError):  # not Linux
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        environment = environment | {SUPERVISOR: str(os.getpid())}
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        self._launcher = process.pid
        if self._told is not None:  # meanwhile
            self._pass_on()
        codes = self._wait()
        process.returncode = codes.get(process.pid, 0)  # it was waited for here, and is not by its destructor
        return self._code(codes)

    def _wait(self) -> dict[int, int]:
        """Exit codes by process id (negative: signals), in the order in which they ended."""
        codes: dict[int, int] = {}
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                return codes
            codes[pid] = os.waitstatus_to_exitcode(status)

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
        return self._script in words and not {"deepspeed.launcher.launch", "deepspeed.launcher.runner"} & set(words)

    def _code(self, codes: dict[int, int]) -> int:
        """That of the ranks. The launcher passes it on; where the launcher was killed, ranks are among those that
        ended here."""
        launcher = codes.pop(self._launcher, 0)
        others = next((code for code in codes.values() if code), exits.DONE)
        code = others or (exits.DONE if codes and launcher < 0 else launcher)
        if code in exits.MEANINGS:
            return code
        if self._told is not None:
            return exits.STOPPED
        name = _signal_name(code)
        memory = " (if memory ran out, `dmesg` says so)" if name == "SIGKILL" else ""
        how = f"was killed by {name}{memory}" if name else f"ended with code {code}"
        _say(f"a rank, or the launcher, {how}; the same command begins again at the last checkpoint, if there is one")
        return exits.FAILED


def _signal_name(code: int) -> str:
    """Of the signal that ended a process: its code is -N, what the launcher makes of it 256-N, a shell's 128+N."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code if code < 0 else 256 - code if code > 192 else code - 128).name
    return ""


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
