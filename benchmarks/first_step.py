"""How long from the command to the first step? `python benchmarks/first_step.py [RECIPE] [--ranks N]`

The demo (or another recipe), by `bigssl train` as its user starts it, up to the first record in metrics.jsonl, in a
folder that is thrown away; then one rank alone, by phase: imports, plan (checks, networks, a look at the data), engine
(process group, DeepSpeed), data (loader processes up to the first batch), first step. What the whole has beyond the
phases are the launchers: each process in the chain of `bigssl train` imports torch anew. Seconds of the clock, and of
processors, which do not depend on what else the machine does. Exit status 1 where the whole takes more than AIM seconds
of the clock: worth something on an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

AIM = 20.0
ROOT = Path(__file__).resolve().parents[1]
FIELDS = ["steps=1", "log_every=1", "optim.warmup=0", "evaluate=null", "probe=null"]
PHASES = ("imports", "plan", "engine", "data", "first step")


def command(recipe: str, out: Path, ranks: int | None) -> list[str]:
    devices = [] if ranks is None else ["--ranks", str(ranks)]
    return [sys.executable, "-m", "bigssl", "train", *devices, recipe, f"out={out}", *FIELDS]


def whole(recipe: str, ranks: int | None) -> tuple[float, float]:
    """Seconds (clock, processors of all its processes) until the first step is recorded."""
    with tempfile.TemporaryDirectory(prefix="first-step-") as folder:
        out, begin = Path(folder) / "run", time.perf_counter()
        process = subprocess.Popen(command(recipe, out, ranks), cwd=ROOT, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
        metrics, used = out / "metrics.jsonl", dict[int, float]()
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            look(process.pid, used)
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        recorded = metrics.exists() and metrics.stat().st_size
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate()
        if not recorded:
            raise SystemExit(f"no step was made:\n{said[-2000:]}")
        return seconds, sum(used.values())


def look(pid: int, used: dict[int, float]) -> None:
    """Processor seconds of a process and those below it, as far as they have come."""
    try:
        family = [(top := psutil.Process(pid)), *top.children(recursive=True)]
        used.update({each.pid: sum(each.cpu_times()[:2]) for each in family})
    except psutil.Error:
        return


class Marks:
    """When each phase ended, by the clock and by the processors of this process."""

    def __init__(self) -> None:
        self.rows = dict[str, list[float]]()
        self._last = time.time(), 0.0

    def since(self, start: float) -> None:
        self._last = start, 0.0

    def end(self, phase: str) -> None:
        now = time.time(), time.process_time()
        self.rows[phase] = [now[0] - self._last[0], now[1] - self._last[1]]
        self._last = now

    def after(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*given: Any, **named: Any) -> Any:
            found = function(*given, **named)
            self.end(phase)
            return found

        return marked


def by_phase(recipe: str, out: Path) -> None:
    """In a process of its own: prints the seconds of PHASES, and ends."""
    marks = Marks()
    marks.since(psutil.Process().create_time())
    from bigssl import train
    from bigssl.engine import loop

    marks.end("imports")
    train.preflight.plan = marks.after("plan", train.preflight.plan)
    loop._engine = marks.after("engine", loop._engine)
    batches, update = loop._Run._timed, loop._Run._update

    def first(self: Any, passes: Iterator[Any], done: int) -> Iterator[Any]:
        for batch in batches(self, passes, done):
            if "data" not in marks.rows:
                marks.end("data")
            yield batch

    def once(*given: Any) -> None:
        update(*given)
        marks.end("first step")
        print(json.dumps(marks.rows), flush=True)
        os._exit(0)

    loop._Run._timed, loop._Run._update = first, once
    raise SystemExit(train.main(["--config", recipe, f"out={out}", "data.workers=0", *FIELDS]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="launch/recipes/demo.yaml")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--phases-into", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phases_into is not None:
        by_phase(given.recipe, given.phases_into)
    seconds, used = whole(given.recipe, given.ranks)
    with tempfile.TemporaryDirectory(prefix="first-step-") as folder:
        one = [sys.executable, __file__, given.recipe, "--phases-into", f"{folder}/run"]
        said = subprocess.run(one, cwd=ROOT, capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(f"one rank, by phase: exit status {said.returncode}: {said.stderr[-2000:]}")
        rows = json.loads(said.stdout.splitlines()[-1])
    print(f"{'':12}{'clock':>8}{'processors':>12}   seconds")
    for phase in PHASES:
        print(f"{phase:12}{rows[phase][0]:8.1f}{rows[phase][1]:12.1f}")
    print(f"{'one rank':12}{sum(row[0] for row in rows.values()):8.1f}{sum(row[1] for row in rows.values()):12.1f}")
    print(f"{'whole':12}{seconds:8.1f}{used:12.1f}   bigssl train, launchers included (aim: {AIM:g})")
    return int(seconds > AIM)


if __name__ == "__main__":
    sys.exit(main())
