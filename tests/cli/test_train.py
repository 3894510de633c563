"""The last minute of runs, with real processes: who ends the launcher, or the terminal, leaves a checkpoint and nobody.

One run folder throughout: each run goes on where the one before was stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from bigssl.cli import supervisor, train
from bigssl.cli.main import main
from bigssl.report.metrics import read_metrics

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LONGER_THAN_A_LOOK = 2.5  # seconds in which ranks look after their launcher at least twice
LAUNCHER = 1  # processes of DeepSpeed's launcher below what was started; a rank and its worker come on top
RECIPE = {
    "steps": 1_000_000, "precision": "fp32", "batch": {"size": 16}, "checkpoint": {"every": 1_000_000},
    "objective": {"name": "simclr", "source": "emoji"},
    "backbones": {"image": {"type": "resnet", "size": 16, "config": {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}}},
    "data": {"workers": 1, "sources": {"emoji": {"url": str(ROOT / "bigssl/demo/emoji/val")}}},
}  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


class Run:
    """A run on a terminal of its own; `process` is what a user would have started.

    controlled: the terminal is that of its session, whose first process it is: its death then hangs up the others.
    """

    def __init__(
        self, folder: Path, words: list[str], *, controlled: bool = True, ignoring: tuple[signal.Signals, ...] = ()
    ) -> None:
        self.folder, self._shown, self._before = folder, bytearray(), len(rows(folder))
        self._terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))

        def prepare() -> None:
            if controlled:
                fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
            for number in ignoring:
                signal.signal(number, signal.SIG_IGN)

        self.process = subprocess.Popen(
            words, cwd=folder, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=prepare,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.below: list[psutil.Process] = []

    def train(self, steps: int = 3) -> None:
        """Until it has logged that many steps, and trained for longer than its ranks take to look around."""
        self.until(lambda: len(rows(self.folder)) >= self._before + 1)
        begun = time.monotonic()
        self.until(lambda: len(rows(self.folder)) >= self._before + steps
                   and time.monotonic() - begun > LONGER_THAN_A_LOOK)  # fmt: skip
        self.below = self.all_below()

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not reached():
            assert self.process.poll() is None, self.shown()
            assert time.monotonic() < deadline, self.shown()
            time.sleep(0.05)
            self.shown()

    def shown(self) -> str:
        """All that has come to the terminal."""
        with contextlib.suppress(OSError):  # it is closed, here or by the last of them
            while self._terminal >= 0 and select.select([self._terminal], [], [], 0)[0]:
                self._shown += os.read(self._terminal, 1 << 16)
        return self._shown.decode(errors="replace")

    def type(self, text: bytes) -> None:
        os.write(self._terminal, text)

    def close_terminal(self) -> None:
        os.close(self._terminal)
        self._terminal = -1

    def part(self, word: str) -> psutil.Process:
        return next(process for process in self.below if word in " ".join(process.cmdline()))

    def all_below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def is_over(self, least: int = LAUNCHER + 2) -> int:
        """Nobody is left: launchers, ranks and their workers. Returns what a shell would be told."""
        assert len(self.below) >= least
        deadline = time.monotonic() + 60
        while self.process.poll() is None or any(map(lives, self.below)):
            self.shown()
            left = [process for process in self.below if lives(process)]
            assert time.monotonic() < deadline, f"still there: {left}\n{self.shown()}"
            time.sleep(0.05)
        return self.process.wait()

    def end(self) -> None:
        for process in [*self.below, psutil.Process(self.process.pid)] if self.process.poll() is None else self.below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        if self._terminal >= 0:
            self.close_terminal()


def lives(process: psutil.Process) -> bool:
    """Not one that has ended, and that nobody has waited for: the first process of a container need not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def rows(folder: Path) -> list[dict[str, float]]:
    return read_metrics(folder / "run")  # also while a line is being written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("last-minute")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "run", "out": str(folder / "run"), **RECIPE}))
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def started(words: list[str], **how: Any) -> Run:
        runs.append(Run(folder, words, **how))
        return runs[-1]

    yield started
    for run in runs:
        run.end()


def by_deepspeed(ranks: int) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    start = [str(BIN / "deepspeed"), "--num_gpus", str(ranks), "--master_port", port]
    return [*start, str(ROOT / "bigssl/train.py"), "--config", "recipe.yaml"]


def by_bigssl(*words: str) -> list[str]:
    return [str(BIN / "bigssl"), "train", "recipe.yaml", *words]


def stopped(run: Run) -> int:
    """A checkpoint at the step where the metrics end, all of its run, and only one: no other was due. Its step."""
    step = int((run.folder / "run/checkpoints/latest").read_text().strip().removeprefix("step-"))
    assert step == rows(run.folder)[-1]["step"] == len(rows(run.folder))
    assert step > run._before, "it trained"
    assert not list((run.folder / "run").rglob("*.tmp"))
    assert f"resumed after step {run._before}" in run.shown() or not run._before
    assert "Traceback" not in run.shown()
    return step


@pytest.mark.distributed
def test_the_deepspeed_process_is_killed(start: Any) -> None:
    """It has no handler: what it started is left behind. Two ranks notice at different moments."""
    run = start(by_deepspeed(2), controlled=False)
    run.train()
    run.process.terminate()
    assert run.is_over() == -signal.SIGTERM
    assert f"stopped by the end of its launcher after step {stopped(run)}" in run.shown()


def test_the_process_that_holds_the_ranks_is_killed(start: Any) -> None:
    run = start(by_bigssl())
    run.train()
    run.part("deepspeed.launcher.launch ").kill()
    assert run.is_over() == 75, "DeepSpeed would say 0; the rank, now a child of ours, says what it is"
    assert f"stopped by the end of its launcher after step {stopped(run)}" in run.shown()


def test_ctrl_c_at_the_terminal(start: Any) -> None:
    run = start(by_bigssl())
    run.train()
    assert re.search(r"\d+%\|.*step/s", run.shown()), "the bar of a terminal"
    run.type(b"\x03")
    assert run.is_over() == 75
    assert f"stopped by SIGTERM after step {stopped(run)}" in run.shown() and "bigssl: SIGINT: " in run.shown()


def test_the_terminal_is_closed(start: Any) -> None:
    run = start(by_bigssl())
    run.train()
    run.close_terminal()
    assert run.is_over() == 75
    stopped(run)


def test_with_nohup_only_the_terminal_goes_until_bigssl_train_is_killed(start: Any) -> None:
    run = start(by_bigssl(), ignoring=(signal.SIGHUP,))
    run.train()
    run.close_terminal()
    before = len(rows(run.folder))
    begun = time.monotonic()
    run.until(lambda: len(rows(run.folder)) > before + 3 and time.monotonic() - begun > LONGER_THAN_A_LOOK)
    run.process.kill()
    assert run.is_over() == -signal.SIGKILL
    stopped(run)


def test_a_run_that_is_told_before_it_trains_says_so_in_a_line(start: Any) -> None:
    run = start(by_bigssl("out=elsewhere"))
    run.until(lambda: any("--local_rank=0" in process.cmdline() for process in run.all_below()))
    time.sleep(0.5)  # it imports
    run.below = run.all_below()
    run.process.terminate()
    assert run.is_over(least=LAUNCHER) == 75
    assert "bigssl: stopped by SIGTERM; the same command goes on" in run.shown() and "Traceback" not in run.shown()
    assert not (run.folder / "elsewhere").exists()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `bigssl train` would start, on a machine without GPUs; nothing is started."""
    seen: list[Any] = []
    for name in (train.VISIBLE, "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(train, "_count_gpus", lambda: 0)
    monkeypatch.setattr(train.Supervisor, "run", lambda self, *what: seen.append(what) or 75)
    monkeypatch.setattr(os, "execv", lambda file, words: seen.append((words, {})) or sys.exit(3))
    return seen


def between(words: list[str]) -> list[str]:
    """The options of the launcher, without those that are always there."""
    return words[words.index("--master_port") + 2 : words.index(str(train.SCRIPT))]


def test_the_words_of_the_launcher_and_of_the_ranks(folder: Path, launched: list[Any], monkeypatch: Any) -> None:
    recipe = str(folder / "recipe.yaml")
    given = ["a.b=1", "--ranks", "2", "--change", "steps,optim.lr", "c=2", "--", "--bind_cores_to_rank"]
    assert main(["train", recipe, *given]) == 75
    words, environment = launched.pop()
    assert words[words.index(str(train.SCRIPT)) + 1 :] == [
        "--config", recipe, "--change", "steps,optim.lr", "a.b=1", "c=2"]  # fmt: skip
    assert between(words) == ["--num_gpus", "2", "--bind_cores_to_rank"] and environment["DS_ACCELERATOR"] == "cpu"
    main(["train", recipe])
    words, _ = launched.pop()
    assert between(words) == ["--num_gpus", "1"] and words[words.index("--master_port") + 1] != "29500"
    monkeypatch.setattr(train, "_count_gpus", lambda: 2)
    monkeypatch.setenv(train.VISIBLE, "3,5")
    for given, expected in (["--ranks", "1"], ["--include", "localhost:3"]), ([], []):
        main(["train", recipe, *given])
        words, environment = launched.pop()
        assert between(words) == expected and environment[train.VISIBLE] == "3,5"
    assert main(["train", recipe, "--ranks", "3"]) == 2 and not launched, "more than there are GPUs"
    with pytest.raises(SystemExit):
        hosts = folder / "hosts"
        hosts.write_text("one slots=2\n")
        main(["train", recipe, "--hostfile", str(hosts)])
    assert launched.pop()[0][3:] == ["--hostfile", str(hosts), str(train.SCRIPT), "--config", recipe]


@pytest.mark.parametrize(("words", "variables", "said"), [
    (["nowhere.yaml"], {}, "--config: no file nowhere.yaml"),
    (["recipe.yaml", "steps"], {}, "override 'steps': expected a.b=c"),
    (["recipe.yaml", "--hostfile", "nowhere"], {}, "--hostfile: no file nowhere; allowed: a file with a line"),
    (["recipe.yaml", "--ranks", "0"], {}, "--ranks"),
    (["recipe.yaml"], {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS: value 4: this was started as one of many"),
])  # fmt: skip
def test_what_cannot_be_started_is_refused_before_the_launcher(
    words: list[str], variables: dict[str, str], said: str, folder: Path, launched: list[Any], capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *words]) == 2 and not launched
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


OUTLIVED = -1  # no process: ranks outlived the launcher


@pytest.mark.parametrize(("codes", "told", "code", "said"), [
    ({1: 0}, False, 0, ""), ({1: 2}, False, 2, ""), ({1: 75}, True, 75, ""),
    ({1: 247}, False, 1, "was killed by SIGKILL (if memory ran out"),  # launch.py of a rank that ended with -9
    ({1: -9, 2: 75}, False, 75, ""), ({1: -9, 2: 0}, False, 0, ""),  # the runner was killed, launch.py lived on
    ({1: 0, 2: 75, 3: 75}, False, 75, ""), ({1: 0, 2: -9}, False, 1, "SIGKILL"),  # launch.py was killed, ranks lived on
    ({1: 0, OUTLIVED: 0}, False, 1, "SIGKILL"), ({1: 0, OUTLIVED: 0}, True, 75, ""),  # as children of nobody knows whom
    ({1: 0, OUTLIVED: 0, 2: 0}, False, 0, ""),
    ({1: 143}, True, 75, ""), ({1: 143}, False, 1, "SIGTERM"), ({1: 3}, False, 1, "ended with code 3"),
])  # fmt: skip
def test_the_exit_code_is_that_of_the_ranks(
    codes: dict[int, int], told: bool, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher = supervisor.Supervisor(train.SCRIPT)
    watcher._launcher, watcher._told = 1, 0.0 if told else None
    watcher._outlived = codes.get(OUTLIVED) is not None
    codes = {pid: value for pid, value in codes.items() if pid != OUTLIVED}
    assert watcher._code(codes) == code
    assert said in (line := capsys.readouterr().err) and bool(line) == bool(said)


WATCHED = """
import ctypes, os, signal, sys
from pathlib import Path
from bigssl.cli.supervisor import Supervisor
libc = ctypes.CDLL(None)
if sys.argv[1] == "no reaper":
    def CDLL(name): raise OSError
    ctypes.CDLL = CDLL
def state():
    reaper = ctypes.c_int()
    libc.prctl(37, ctypes.byref(reaper), 0, 0, 0)
    return reaper.value, [signal.getsignal(number) for number in signal.valid_signals()]
supervisor, before = Supervisor(Path(os.environ["SCRIPT"])), state()
code = supervisor.run(["bash", "-c", sys.argv[2]], {"PATH": "/usr/bin:/bin"})
print("code" if state() == before else "it has left signals or orphans to itself", code)
"""


@pytest.mark.parametrize(("how", "launcher", "code"), [
    # A launcher that is done leaves one that fails (a `pipe:` source whose reader has enough) and one that stays
    # (a connection that ssh keeps).
    ("reaper", "( (sleep 0.2; exit 7) & ) ; (sleep 60 >&- & echo $!) ; sleep 0.6", 0),
    # One that is killed leaves a rank.
    ("reaper", "bash -c 'sleep 1.5; exit 75' {rank} & sleep 0.5", 75),
    ("no reaper", "bash -c 'sleep 2.5; exit 0' {rank} & sleep 1.3", 1),
])  # fmt: skip
def test_only_ranks_and_launchers_are_waited_for_and_heard(how: str, launcher: str, code: int, tmp_path: Path) -> None:
    rank = tmp_path / "train.py"
    words = [sys.executable, "-c", WATCHED, how, launcher.format(rank=rank)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=30, env={**os.environ, "SCRIPT": str(rank)})
    left, *_ = lines = done.stdout.splitlines()
    if len(lines) > 1:
        psutil.Process(int(left)).kill()
    assert lines[-1] == f"code {code}"


def test_a_build_for_cpus_is_not_asked_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would say 0, after the seconds that an import of torch takes."""
    monkeypatch.setattr(train, "version", lambda _: "2.13.0+cpu")
    monkeypatch.setattr(train.subprocess, "run", None)
    assert train._count_gpus() == 0
    other = subprocess.CompletedProcess([], 0, "3\n")
    monkeypatch.setattr(train, "version", lambda _: "2.13.0")
    monkeypatch.setattr(train.subprocess, "run", lambda *_, **__: other)
    assert train._count_gpus() == 3
