"""Kills workers at random moments and counts what the main process says, and after how long; for `try.sh`.

    bash benchmarks/libraries/try.sh FILE STAND-IN python benchmarks/libraries/kills.py
"""

import collections
import multiprocessing
import os
import random
import signal
import statistics
import threading
import time
from typing import Any

import torch

from bigssl.data.loading.watchdog import Stages, Watchdog
from bigssl.data.loading.workers import WorkerError, computed_in_order

ROUNDS, PATIENCE = 40, 30.0


def busy(item: int) -> tuple[list[str], torch.Tensor]:
    """A result whose pickle is larger than a socket's buffer."""
    return ["key" * 10] * 4000, torch.full((5000,), float(item))


def kill(processes: list[Any]) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)


def one(seed: int, said: Any) -> None:
    """One run that ends by a kill; `said` is told the error and the seconds to it."""
    draw, killed = random.Random(seed), []
    stages = Stages(2, {})
    results = computed_in_order(
        busy, range(10**6), 2, stages, Watchdog(stages, rank=0, workers=2, warn=0, abort=0)
    )
    try:
        next(results)
        victims = draw.sample(multiprocessing.active_children(), draw.choice([1, 1, 2]))
        threading.Timer(draw.random() * 0.03, lambda: (killed.append(time.monotonic()), kill(victims))).start()
        for number, (_, tensor) in enumerate(results, 1):
            if not tensor.eq(number).all():
                raise AssertionError("a wrong batch")
    except BaseException as error:
        name = "worker and stage named" if isinstance(error, WorkerError) else f"bare {type(error).__name__}"
        said.put((name, time.monotonic() - killed[0]))
    os._exit(0)


def main() -> None:
    context, words, seconds = multiprocessing.get_context("fork"), collections.Counter[str](), []
    for seed in range(ROUNDS):
        said = context.SimpleQueue()
        process = context.Process(target=one, args=(seed, said))
        process.start()
        process.join(PATIENCE)
        if process.is_alive():
            words[f"nothing for {PATIENCE:g} s"] += 1
            process.kill()
            process.join()
        else:
            name, took = said.get()
            words[name] += 1
            seconds.append(took)
    print(dict(words), f"seconds to the error: median {statistics.median(seconds):.2f}, most {max(seconds):.2f}")


if __name__ == "__main__":
    main()
