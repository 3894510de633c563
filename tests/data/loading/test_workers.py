"""Results in order; a worker that dies at any moment is an error that names it, never a hang; nothing is left over."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from bigssl.data.loading import workers as module
from bigssl.data.loading.watchdog import Stages, Watchdog
from bigssl.data.loading.workers import WorkerError, computed_in_order

SHARED_MEMORY = Path("/dev/shm")


def start(function: Callable[[int], Any], items: range, workers: int = 2) -> Generator[Any, None, None]:
    stages = Stages(workers, {})
    watchdog = Watchdog(stages, rank=0, workers=workers, warn=0, abort=0)
    return computed_in_order(function, items, workers, stages, watchdog)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 23])
def test_results_come_in_order(workers: int, count: int, started) -> None:
    def late(item: int) -> tuple[int, int]:
        time.sleep(0.002 * (item % 3))
        return item, os.getpid()

    results = list(start(late, range(5, 5 + count), workers))
    assert [item for item, _ in results] == list(range(5, 5 + count))
    assert len({pid for _, pid in results}) == min(workers, count)
    assert not started()


def test_a_worker_keeps_no_more_than_it_is_asked_for() -> None:
    stages = Stages(2, {})
    begun = torch.zeros(100, dtype=torch.uint8).share_memory_()

    def mark(item: int) -> int:
        begun[item] = 1
        return item

    results = computed_in_order(mark, range(100), 2, stages, Watchdog(stages, rank=0, workers=2, warn=0, abort=0))
    assert [next(results) for _ in range(10)] == list(range(10))
    time.sleep(0.1)
    assert int(begun.sum()) <= 10 + 2 * module.AHEAD
    results.close()


def test_large_results_and_small_buffers() -> None:
    """Pickles far beyond a socket's buffer, of both workers at once."""
    results = list(start(lambda item: (["k" * 1000] * 2000, torch.full((100,), item)), range(6)))
    assert [int(tensor[0]) for _, tensor in results] == list(range(6))
    assert all(len(keys) == 2000 for keys, _ in results)


def test_an_exception_arrives_with_its_traceback(started) -> None:
    def wrong(item: int) -> int:
        return 1 // (item - 3)

    results = start(wrong, range(9))
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(WorkerError, match=r"(?s)data worker 1 failed:.*in wrong.*ZeroDivisionError"):
        next(results)
    assert not started()
    with pytest.raises(WorkerError, match="(?s)data worker 0 failed:.*pickle"):
        next(start(lambda item: lambda: None, range(3)))


def test_an_exit_is_named_with_its_code() -> None:
    with pytest.raises(WorkerError, match=r"data worker 0 \(pid \d+\) ended with code 3 while starting"):
        list(start(lambda item: os._exit(3), range(3), workers=1))


def busy(item: int) -> tuple[list[str], torch.Tensor]:
    return ["key" * 10] * 4000, torch.full((5000,), float(item))


def kill(*processes: Any) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)


def test_a_kill_at_any_moment_is_an_error(started) -> None:
    """Also in the middle of a message: the pickles are larger than the sockets' buffers."""
    draw = random.Random(0)
    for _ in range(25):
        results = start(busy, range(10**6))
        next(results)
        victims = draw.sample(started(), draw.choice([1, 1, 2]))
        killer = threading.Timer(draw.random() * 0.03, kill, victims)
        killer.start()
        with pytest.raises(WorkerError, match=r"data worker [01] \(pid \d+\) was killed by SIGKILL while \w+"):
            for number, (_, tensor) in enumerate(results, 1):
                assert tensor.eq(number).all()
        killer.join()
        assert not started()


def test_one_that_nobody_waits_for_is_noticed(started) -> None:
    results = start(lambda item: time.sleep(item % 2 * 60), range(10**6))
    next(results)  # worker 1 sleeps; worker 0 dies
    first = min(started(), key=lambda child: int(child.name.split("-")[-1]))
    kill(first)
    with pytest.raises(WorkerError, match="data worker 0 .* was killed by SIGKILL"):
        next(results)


SCRIPT = """
import signal, sys, time, torch
from bigssl.data.loading.watchdog import Stages, Watchdog
from bigssl.data.loading.workers import computed_in_order
def item(number):
    if number > 40 and sys.argv[1] == "asleep":
        time.sleep(100)
    return torch.zeros(10000)
stages = Stages(3, {})
watchdog = Watchdog(stages, rank=0, workers=3, warn=0, abort=0)
for n, _ in enumerate(computed_in_order(item, range(10**9), 3, stages, watchdog)):
    print(n, flush=True)
    time.sleep(0.005)
"""


@pytest.mark.parametrize(
    ("number", "state"),
    [(signal.SIGINT, "awake"), (signal.SIGINT, "asleep"), (signal.SIGTERM, "asleep"), (signal.SIGKILL, "awake")],
)
def test_nothing_outlives_the_main_process(gone, number: signal.Signals, state: str) -> None:
    """Ctrl-C in a terminal reaches all of the group; TERM and KILL only the main process, which cannot say goodbye."""
    before = set(SHARED_MEMORY.iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, state], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for _ in range(20 if state == "awake" else 41):
            process.stdout.readline()
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(children) == 3
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        process.wait(timeout=30)
    assert gone(children)
    mine = {*children, process.pid}
    fresh = set(SHARED_MEMORY.iterdir()) - before  # perhaps another process's
    left = [path for path in fresh if mine & {int(number) for number in re.findall(r"\d+", path.name)}]
    assert not left
