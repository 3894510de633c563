"""Who started this rank, and are they still there? DeepSpeed's launcher, torchrun, and `bigssl train` above them.

A rank outlives its launcher (Unix gives orphans a new parent, and DeepSpeed's launcher of one machine has no handler):
it would train on unseen, with nobody to end it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

SUPERVISOR = "BIGSSL_SUPERVISOR"
"""In the environment of what `bigssl train` starts on its machine: its process id."""
_LAUNCH, _ELASTIC = "CROSS_RANK", "TORCHELASTIC_RUN_ID"  # variables that DeepSpeed's launch.py and torchrun give ranks
_GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def free_port() -> str:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def port_taken(port: str) -> str:
    """Why nobody could listen on `port` of this machine; empty where it is free."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the real one: a port just left is free
            probe.bind(("", int(port)))
            probe.listen()
    except (OSError, ValueError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


class Launchers:
    """The launchers above this process, as they were when this was made; none where it was started without one.

    A launcher that was gone by then is known by what it left: its variables are in this process's environment, and no
    process above has given them. Processes above that this one may not look at are taken to be there.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._watched: list[psutil.Process] = []
        self._local = int(environment.get("LOCAL_SIZE") or environment.get("LOCAL_WORLD_SIZE") or 1)
        self._lost = False
        with contextlib.suppress(psutil.AccessDenied):
            try:
                self._lost = not self._find(psutil.Process().parents(), environment)
            except psutil.NoSuchProcess:  # while it was looked at
                self._lost = True

    def _find(self, above: list[psutil.Process], environment: Mapping[str, str]) -> bool:
        """Watch those that are there; False if one is not."""
        supervisor = environment.get(SUPERVISOR, "")
        if _LAUNCH in environment:
            there = self._find_deepspeed(_from_giver(above, _LAUNCH), supervisor)
        else:
            there = self._find_torchrun(_from_giver(above, _ELASTIC)) if _ELASTIC in environment else True
        if supervisor:  # an orphan's new parent has another number, so this is no process that only got the same
            self._watched += (found := [process for process in above if str(process.pid) == supervisor])
            there = there and bool(found)
        return there

    def _find_deepspeed(self, above: list[psutil.Process], supervisor: str) -> bool:
        if not above:
            return True
        words = above[0].cmdline()
        if "deepspeed.launcher.launch" not in words:
            return False
        self._watched.append(above[0])
        if len(above) == 1 or any(word.startswith("--node_rank") for word in words):  # started by ssh, or by hand
            return True
        self._watched.append(above[1])
        return _is_python(above[1]) and str(above[1].pid) != supervisor

    def _find_torchrun(self, above: list[psutil.Process]) -> bool:
        self._watched += above[:1]
        return not above or _is_python(above[0])

    def gone(self) -> bool:
        """Whether one of them has ended. A tenth of a millisecond."""
        return self._lost or not all(is_there(process) for process in self._watched)

    def ends_the_rest(self) -> bool:
        """Whether the launcher has noticed that a rank of this machine has ended, after which it ends the others."""
        try:
            return bool(self._watched) and len(self._watched[0].children()) < self._local
        except psutil.Error:
            return False


def _from_giver(above: list[psutil.Process], variable: str) -> list[psutil.Process]:
    """`above` from the process on that does not have `variable` itself; between it and us stand wrappers."""
    for place, process in enumerate(above):
        try:
            if variable not in process.environ():
                return above[place:]
        except psutil.AccessDenied:  # init's, of another user, as no wrapper is
            return [] if process.uids().real == os.getuid() else above[place:]
    return []


def _is_python(process: psutil.Process) -> bool:
    return Path((process.cmdline() or [""])[0]).name.startswith(("python", "pypy"))


def is_there(process: psutil.Process) -> bool:
    """psutil knows a process by its start too: a number that was given away again is another process."""
    try:
        return process.is_running() and process.status() not in _GONE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
