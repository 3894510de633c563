"""Who waits for what: workers publish their stage in shared memory, and a wait that grows long says what it is for."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from bigssl.data.errors import DataError

PREPARING, DRAWING = "preparing", "reading a drawn sample of"
STAGES = ("starting", "idle", "reading", PREPARING, DRAWING, "collating")
OTHERS = 8  # workers beside the awaited one that a message describes
_SLOT = struct.Struct("<dqB64s160s")  # since, position, stage, source, key; names are cut off at the end

Patience = Callable[[], "float | None"]


class Shards(Protocol):
    """The part of a stream that messages need."""

    def shard_at(self, position: int) -> str: ...


class Stage(NamedTuple):
    """What a worker does, and since when (seconds of the monotonic clock, which processes share)."""

    name: str
    since: float
    source: str
    position: int
    key: str


class Stages:
    """One slot per worker in anonymous shared memory; create it before forking. Without workers, slot 0 is the main
    process's.

    streams: by source; used to name the shard of a position.
    """

    def __init__(self, workers: int, streams: Mapping[str, Shards]) -> None:
        self._slots = max(workers, 1)
        self._memory = mmap.mmap(-1, self._slots * _SLOT.size)
        self._streams = streams
        for number in range(self._slots):
            self.take(number)
            self.publish("starting")
        self.take(0)

    def __len__(self) -> int:
        return self._slots

    def take(self, worker: int) -> None:
        """This process is `worker` from here on."""
        self._offset = worker * _SLOT.size

    def publish(self, stage: str, source: str = "", position: int = -1, key: str = "") -> None:
        """What this process does now; about a microsecond."""
        names = source.encode()[:64], key.encode()[:160]
        _SLOT.pack_into(self._memory, self._offset, time.monotonic(), position, STAGES.index(stage), *names)

    def read(self, worker: int) -> Stage:
        since, position, stage, source, key = _SLOT.unpack_from(self._memory, worker * _SLOT.size)
        return Stage(STAGES[stage], since, *(_text(source), position, _text(key)))

    def describe(self, worker: int) -> str:
        """`reading shard s3://... of source 'img' for 12 s`."""
        stage = self.read(worker)
        stream = self._streams.get(stage.source)
        shard = f"shard {stream.shard_at(stage.position)}" if stream and stage.position >= 0 else ""
        sample = f"sample {stage.key!r} of " if stage.key else ""
        what = f" {sample}{shard} of source {stage.source!r}" if shard else ""
        return f"{stage.name}{what} for {time.monotonic() - stage.since:.0f} s"


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Watchdog:
    """Says what a batch is waited for, after `warn` seconds and then after twice as long each time; raises at `abort`.

    0 switches either off. A slow run is never ended unless `abort` says so.
    """

    def __init__(
        self, stages: Stages, *, rank: int, workers: int, warn: float, abort: float,
        note: Callable[[str], None] = _to_stderr,
    ) -> None:  # fmt: skip
        self._stages, self._rank, self._workers = stages, rank, workers
        self._warn, self._abort, self._note = warn, abort, note

    @contextlib.contextmanager
    def waiting(self, worker: int) -> Iterator[Patience]:
        """Yields a function to call in every round of a wait for `worker`: it speaks or raises DataError when it is
        time, and returns the seconds until it wants to be called again (None: never)."""
        start, due = time.monotonic(), self._warn

        def patience() -> float | None:
            nonlocal due
            waited = time.monotonic() - start
            if self._abort and waited >= self._abort:
                raise DataError(f"{self._message(worker, waited)}; data.watchdog_abort {self._abort:g} s is over")
            if self._warn and waited >= due:
                self._note(f"{self._message(worker, waited)}; still waiting (data.watchdog {self._warn:g} s)")
                due = 2 * waited
            limits = ([due] if self._warn else []) + ([self._abort] if self._abort else [])
            return max(min(limits) - waited, 0.001) if limits else None

        yield patience

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Watches the main process itself where it has no workers. It cannot be interrupted inside a read that hangs,
        so `abort` ends the process with status 1."""
        if not (self._warn or self._abort):
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._guard, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _guard(self, done: threading.Event) -> None:
        with self.waiting(0) as patience:
            try:
                while not done.wait(patience()):
                    pass
            except DataError as error:
                self._note(f"bigssl: {error}")
                os._exit(1)

    def _message(self, worker: int, waited: float) -> str:
        head = f"rank {self._rank}: no batch for {waited:.0f} s: "
        if not self._workers:
            return head + self._stages.describe(0)
        others = [n for n in range(self._workers) if n != worker]
        rest = "".join(f"; worker {n}: {self._stages.describe(n)}" for n in others[:OTHERS])
        rest += f"; and {len(others) - OTHERS} more" if len(others) > OTHERS else ""
        return f"{head}waiting for worker {worker} of {self._workers}: {self._stages.describe(worker)}{rest}"
