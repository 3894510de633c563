"""What a rank does when it is told to stop, before, in and after training, in a process of its own without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigssl.engine.stopping import StopFlag

REPEATS = 0.5
START = f"""
import sys, threading
from bigssl.engine import stopping
stopping.REPEATS = {REPEATS}
stopping.keep_speaking()
attention = stopping.Attention()
attention.start()
def ready():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def start(code: str, *, ignoring: signal.Signals | None = None, **variables: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", START + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **variables},
        preexec_fn=(lambda: signal.signal(ignoring, signal.SIG_IGN)) if ignoring else None,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str], said: str = "") -> tuple[int, str]:
    """Exit code, and what it has said on stderr."""
    assert process.stdin and process.stderr
    process.stdin.write(said)
    process.stdin.flush()
    code = process.wait(60)
    return code, process.communicate()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_outside_of_training_a_signal_ends_it_in_a_line(number: signal.Signals) -> None:
    """Also where the main thread is in C code that no signal interrupts, as in a collective."""
    blocked = "lock = threading.Lock(); lock.acquire(); ready = lambda: print('ready', flush=True)\n"
    blocked += "import ctypes; ready()\nwhile True: ctypes.CDLL(None).usleep(10**9)"
    process = start(blocked)
    process.send_signal(number)
    assert end(process) == (75, f"bigssl: stopped by {number.name}; the same command goes on\n")


def test_one_rank_speaks() -> None:
    process = start("ready()", RANK="1")
    process.terminate()
    assert end(process) == (75, "")


def test_in_training_the_first_wish_sets_the_flag_and_a_later_one_ends_it() -> None:
    process = start("flag = stopping.StopFlag(); ready(); ready()\nwhile not flag.name: pass\nready(); ready()")
    assert process.stdin and process.stdout
    process.terminate()
    process.send_signal(signal.SIGINT)  # as a launcher that passes on what the whole group had
    time.sleep(REPEATS / 5)
    assert process.poll() is None
    for _ in range(2):
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n", "it lives, and the flag is set"
    time.sleep(2 * REPEATS)
    process.terminate()
    assert end(process) == (75, "bigssl: ended at once by a second signal (SIGTERM); the same command goes on\n")


def test_what_comes_too_late_for_the_last_step_counts_after_it() -> None:
    process = start("flag = stopping.StopFlag(); ready(); flag.restore(); attention.heed(); print('evaluates')")
    process.terminate()
    time.sleep(0.3)
    assert end(process, "\n") == (75, "bigssl: stopped by SIGTERM; the same command goes on\n")


def test_a_stop_that_was_heeded_is_not_ended_by_its_repetition() -> None:
    """The launcher ends the others as soon as one has stopped."""
    process = start("flag = stopping.StopFlag(); ready(); flag.heeded = True; flag.restore(); ready()")
    assert process.stdin and process.stdout
    process.terminate()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    time.sleep(REPEATS / 5)
    assert end(process, "\n") == (0, "")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """By nohup, or by a script that started it in the background."""
    process = start("flag = stopping.StopFlag(); ready(); print(repr(flag.name)); flag.restore(); ready()",
                    ignoring=number)  # fmt: skip
    assert process.stdin and process.stdout
    process.send_signal(number)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "''\n" and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    time.sleep(REPEATS / 5)
    assert end(process, "\n") == (0, "")


def test_a_look_at_launchers_that_fails_leaves_it_attentive() -> None:
    process = start("stopping._LOOK = 0.01; attention._launchers.gone = lambda: 1 / 0; ready()")
    time.sleep(1.2)
    process.terminate()
    assert end(process) == (75, "bigssl: stopped by SIGTERM; the same command goes on\n")


def test_a_reader_that_is_gone_ends_no_run(tmp_path: Path) -> None:
    done = tmp_path / "done"
    code = "ready()\nfor _ in range(3): print('lost'); print('lost', file=sys.stderr)\n"
    process = start(code + f"open({str(done)!r}, 'w').close()")
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stderr.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == 0 and done.exists()


def test_handlers_are_as_before_after_training() -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    StopFlag().restore()
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
    assert StopFlag.current is None
