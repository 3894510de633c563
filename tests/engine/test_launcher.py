"""A rank knows whether those who started it are there, in trees of real processes of each kind, without training."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bigssl.engine import launcher
from bigssl.engine.launcher import SUPERVISOR, Launchers

NODE = """
import json, os, pathlib, subprocess, sys, time
folder, (me, *below) = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
(folder / (me["name"] + ".new")).write_text(str(os.getpid()))
(folder / (me["name"] + ".new")).rename(folder / me["name"])
if below:
    gives = {name: value.format(pid=os.getpid()) for name, value in me["gives"].items()}
    site = ["-S"] if len(below) > 1 else []  # the launchers need no packages
    words = [*below[0]["through"], sys.executable, *site, "-c", open(folder / "node.py").read(), str(folder)]
    sys.exit(subprocess.Popen([*words, json.dumps(below), *below[0]["words"]], env=os.environ | gives).wait())
def until(name):
    while not (folder / name).exists():
        time.sleep(0.01)
until("watch")
from bigssl.engine.launcher import Launchers
launchers = Launchers()
(folder / "watching").touch()
while not launchers.gone() and not (folder / "end").exists():
    time.sleep(0.01)
(folder / ("gone" if launchers.gone() else "there")).touch()
"""
SHELL = ["sh", "-c", '"$0" "$@"; exit $?']  # a wrapper that stays


def node(name: str, *words: str, through: list[str] | None = None, **gives: str) -> dict[str, Any]:
    return {"name": name, "words": words, "through": through or [], "gives": gives}


RANK = node("rank")
RUNNER = node("runner", "deepspeed.launcher.runner")
LAUNCH = node("launch", "deepspeed.launcher.launch", "--world_info=x", CROSS_RANK="0", LOCAL_SIZE="1")
REMOTE = node("launch", "deepspeed.launcher.launch", "--node_rank=1", CROSS_RANK="1", LOCAL_SIZE="1")
TREES = {
    "deepspeed": [RUNNER, LAUNCH, RANK],
    "wrapped": [RUNNER, LAUNCH, node("rank", through=SHELL)],
    "bigssl": [node("supervisor", **{SUPERVISOR: "{pid}"}), RUNNER, LAUNCH, RANK],
    "torchrun": [node("agent", TORCHELASTIC_RUN_ID="none"), RANK],
    "pdsh": [node("sshd"), REMOTE, RANK],
    "alone": [node("shell"), RANK],
}
CASES = [
    ("deepspeed", "runner", True), ("deepspeed", "launch", True), ("wrapped", "launch", True),
    ("bigssl", "supervisor", True), ("bigssl", "runner", True), ("torchrun", "agent", True),
    ("pdsh", "sshd", False), ("pdsh", "launch", True), ("alone", "shell", False),
]  # fmt: skip


class Tree:
    """Processes above each other; the topmost is below one that adopts orphans and is no Python, as most of init."""

    def __init__(self, folder: Path, tree: list[dict[str, Any]]) -> None:
        self.folder = folder
        (folder / "node.py").write_text(NODE)
        words = [sys.executable, "-S", "-c", NODE, str(folder), json.dumps(tree), *tree[0]["words"]]
        unlike = {"CROSS_RANK", "TORCHELASTIC_RUN_ID", SUPERVISOR}
        self.top = subprocess.Popen(
            ["sh", "-c", '"$0" "$@" & while :; do sleep 0.05; done', *words], preexec_fn=_adopt_orphans,
            env={name: value for name, value in os.environ.items() if name not in unlike}, start_new_session=True,
        )  # fmt: skip
        self.until("rank")

    def until(self, name: str) -> str:
        deadline = time.monotonic() + 60
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.01)
        return (self.folder / name).read_text()

    def kill(self, name: str) -> None:
        process = psutil.Process(int(self.until(name)))
        process.kill()
        psutil.wait_procs([process], timeout=10)

    def end(self) -> None:
        below = psutil.Process(self.top.pid).children(recursive=True)
        self.top.kill()
        self.top.wait()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, which outlives exec


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Any]:
    made: list[Tree] = []
    yield lambda name: made.append(Tree(tmp_path, TREES[name])) or made[0]
    made[0].end()


@pytest.mark.skipif(sys.platform != "linux", reason="adopts orphans with Linux's prctl")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("name", "killed", "counts"), CASES, ids=lambda value: str(value))
def test_a_launcher_that_is_killed_is_missed_and_nothing_else_is(
    name: str, killed: str, counts: bool, when: str, tree: Any
) -> None:
    grown = tree(name)
    if when == "before":
        grown.kill(killed)
    (grown.folder / "watch").touch()
    grown.until("watching")
    if when == "after":
        time.sleep(0.2)
        assert not (grown.folder / "gone").exists(), "all of them are there"
        grown.kill(killed)
    if not counts:
        time.sleep(0.2)
        (grown.folder / "end").touch()
    grown.until("gone" if counts else "there")


def test_a_killed_process_that_nobody_has_asked_after_is_gone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = psutil.Process(child.pid)
    assert launcher.is_there(process)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.status() == psutil.STATUS_ZOMBIE and not launcher.is_there(process)
    child.wait()
    assert not launcher.is_there(process)


def test_a_number_that_was_given_away_again_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        earlier = psutil.Process(child.pid)
        monkeypatch.setattr(earlier, "_ident", (child.pid, earlier._ident[1] - 5))
        assert not launcher.is_there(earlier)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def test_where_processes_may_not_be_looked_at_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: psutil.Process) -> Any:
        raise psutil.AccessDenied(self.pid)

    for what in ("parents", "environ", "cmdline"):
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, what, refused)
            assert not Launchers({"CROSS_RANK": "0", "LOCAL_SIZE": "1"}).gone(), what


def test_the_launcher_ends_the_rest_only_when_it_has_noticed_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank of two has ended; until that is reaped, a signal to both may be why."""
    launchers = Launchers({})
    children = [subprocess.Popen(["sleep", "60"]), subprocess.Popen(["true"])]
    try:
        launchers._watched, launchers._local = [psutil.Process()], len(psutil.Process().children())
        os.waitid(os.P_PID, children[1].pid, os.WEXITED | os.WNOWAIT)
        assert not launchers.ends_the_rest()
        children[1].wait()
        assert launchers.ends_the_rest()
    finally:
        children[0].kill()
        children[0].wait()
