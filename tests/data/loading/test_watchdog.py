"""A wait that grows long names the rank, the worker, its stage, the shard and the sample."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigssl.data.errors import DataError
from bigssl.data.loading.loader import make_loader
from bigssl.data.loading.watchdog import Stages, Watchdog
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample


class Named:
    def shard_at(self, position: int) -> str:
        return f"shard-{position}.tar"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("bigssl.data.loading.watchdog.time.monotonic", lambda: self.now)


def test_stages_are_seen_from_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)  # which stands still
    stages = Stages(3, {"img": Named()})
    child = os.fork()
    if child == 0:
        stages.take(1)
        stages.publish("preparing", "img", 7, "schlüssel-" + "x" * 500)
        os._exit(0)
    os.waitpid(child, 0)
    assert stages.read(1).position == 7 and stages.read(1).key.startswith("schlüssel-xx")
    assert stages.describe(1).startswith("preparing sample 'schlüssel-xxx")
    assert stages.describe(1).endswith("of shard shard-7.tar of source 'img' for 0 s")
    assert stages.describe(0) == "starting for 0 s"
    stages.publish("reading", "img", 3)
    assert stages.describe(0) == "reading shard shard-3.tar of source 'img' for 0 s"
    stages.publish("idle")
    assert stages.describe(0) == "idle for 0 s" and len(stages) == 3


def test_it_speaks_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), list[tuple[float, str]]()
    stages = Stages(2, {})
    dog = Watchdog(stages, rank=3, workers=2, warn=10, abort=0, note=lambda text: said.append((clock.now, text)))
    with dog.waiting(1) as patience:
        for _ in range(400):
            pause = patience()
            assert pause is not None and 0 < pause <= 2000
            clock.now += min(pause, 5)
    assert [at - 1000 for at, _ in said] == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert said[0][1].startswith("rank 3: no batch for 10 s: waiting for worker 1 of 2: starting for 10 s; worker 0: ")
    assert "data.watchdog 10 s" in said[0][1]


def test_it_ends_only_what_a_limit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    dog = Watchdog(Stages(1, {}), rank=0, workers=1, warn=0, abort=30, note=said.append)
    with dog.waiting(0) as patience:
        assert patience() == 30
        clock.now += 29
        assert patience() == pytest.approx(1)
        clock.now += 1
        with pytest.raises(DataError, match=r"rank 0: no batch for 30 s: .*data\.watchdog_abort 30 s is over"):
            patience()
    with Watchdog(Stages(1, {}), rank=0, workers=1, warn=0, abort=0).waiting(0) as patience:
        assert patience() is None
    assert not said


def test_many_workers_are_not_all_listed() -> None:
    dog = Watchdog(Stages(30, {}), rank=0, workers=30, warn=1e-9, abort=0, note=(said := list[str]()).append)
    with dog.waiting(4) as patience:
        patience()
    assert "waiting for worker 4 of 30" in said[0] and "and 21 more" in said[0]


def stuck(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    if sample.key == "s-00004":
        time.sleep(60)
    return {"n": 1}


def loader(index: Any, workers: int, **limits: float) -> Any:
    stream = Stream(index, seed=0, source="img")
    return make_loader({"img": stream}, {"img": 2}, stuck, dict, seed=0, rank=1, world=1, accum=1, workers=workers,
                       start_step=0, stop_step=10, device_pin=False, **limits)  # fmt: skip


def test_a_stuck_worker_is_named_and_the_run_ended(
    dataset: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = dataset((3, 7))
    monkeypatch.setattr(Stream, "micro_batch", lambda self, step, *rest: np.array([step]))  # rank 1 of one world
    with pytest.raises(DataError, match=r"rank 1: no batch for \d s: .*data.watchdog_abort 1 s is over"):
        list(loader(index, 2, warn_after=0.2, abort_after=1))
    shown = capsys.readouterr().err
    assert "preparing sample 's-00004' of shard" in shown and "shard-001.tar of source 'img' for" in shown
    assert "rank 1: no batch for 0 s: waiting for worker" in shown and shown.count("still waiting") >= 2


SCRIPT = """
import sys, time
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.loading.loader import make_loader
from bigssl.data.order.stream import Stream
stream = Stream(DatasetIndex.load(sys.argv[1]), seed=0, source="img")
list(make_loader({"img": stream}, {"img": 2}, lambda *_: time.sleep(100), dict, seed=0, rank=0, world=1, accum=1,
                 workers=0, start_step=0, stop_step=2, device_pin=False, warn_after=0.2, abort_after=0.5))
"""


def test_without_workers_the_process_itself_is_watched(dataset: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, dataset((3, 7)).url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    first, *_, last = done.stderr.splitlines()
    assert "rank 0: no batch for 0 s: preparing sample 's-000" in first and "still waiting" in first
    assert last.startswith("bigssl: rank 0: no batch") and "data.watchdog_abort 0.5 s is over" in last
