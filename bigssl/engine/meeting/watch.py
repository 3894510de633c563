"""Who is gone, and where was it? Ranks tell each other where they are, beside the collectives in which they wait.

A cable that is pulled closes no connection: a collective waits for the other side until its own time is over, half an
hour later, and does not say for whom. A process that is killed closes its own, and the others hear that somebody has.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections import defaultdict
from datetime import timedelta
from typing import ClassVar, NamedTuple

import torch.distributed as dist

from bigssl import distributed, exits
from bigssl.engine.clock import Clock
from bigssl.engine.meeting.network import seconds_of

SILENCE = "BIGSSL_SILENCE"
"""In the environment: seconds after which a rank that says nothing counts as gone (its machine is cut off or stopped);
0: never."""
LEFT_ALONE = 3.0
"""Seconds that a rank waits when another has ended: what told that one to stop may be about to tell this one."""
_BEAT = 2.0  # seconds between two words of a rank, at most
_SLOW = 60.0  # seconds without a step after which rank 0 says who is behind
_AGAIN = "the same command goes on from the last checkpoint"


class LastWord(NamedTuple):
    """What a rank said last: a number that grows, its machine, and what it is in."""

    beat: int
    host: str
    stage: str


class Watch:
    """Threads of each rank that talk through the store at MASTER_ADDR, by a connection of their own.

    Each rank looks whether the one before it still talks, and whether it is answered itself; rank 0, whether all go on.
    The first to find that one is gone says so to all, and each process ends with FAILED: a collective cannot be left.
    Costs 3 small messages a rank every 2 seconds. Building it is a collective.
    """

    current: ClassVar[Watch | None] = None
    """That of this process."""

    def __init__(self) -> None:
        self._rank, self._world = distributed.rank(), distributed.world()
        self._silence = distributed.from_main(seconds_of(SILENCE, 120))  # a machine may have it set otherwise
        self._beat = min(_BEAT, self._silence / 4)
        self._ended, self._count, self._unanswered = False, 0, 0
        self._ending = threading.Lock()
        if not distributed.active() or not self._silence:
            return
        name = distributed.from_main(secrets.token_hex(4))  # torchrun's store outlives its ranks
        self._place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        wait = timedelta(seconds=self._silence)
        self._store = dist.PrefixStore(f"bigssl/{name}", dist.TCPStore(*self._place, is_master=False, timeout=wait))
        self._say_where()
        distributed.barrier()
        Watch.current = self
        for work in (self._talk, self._notice_no_answer):
            threading.Thread(target=work, name="watch", daemon=True).start()

    def end(self) -> None:
        """To be called when ranks part as they should. Collective."""
        distributed.barrier()  # those who are here first talk on: the others may yet be long
        self._ended, Watch.current = True, None
        distributed.barrier()  # nobody leaves, and rank 0 takes the store along, while another listens

    def left_alone(self, how: str) -> None:
        """To be called when a collective has failed since another rank has gone: finds out which, says it, and ends the
        process."""
        try:
            self._store.set("alone", how)
        except Exception:
            self._finish(self._unreachable(), mine=True)
        time.sleep(6 * self._beat)  # rank 0 asks around
        self._finish(f"another rank has ended ({how}); {_AGAIN}", mine=True)

    def _talk(self) -> None:
        before = _Standing(self._silence, self._beat)
        still = _Standing(_SLOW, self._beat)
        while not self._ended:
            try:
                self._say_where()
                if self._store.check(["verdict"]):
                    self._finish(self._store.get("verdict").decode(), mine=False)
                elif before.over(heard := self._heard((self._rank - 1) % self._world)):
                    self._judge(f"rank {(self._rank - 1) % self._world} on {heard.host} has said nothing for "
                                f"{self._silence:g} s ({SILENCE}), last in {heard.stage}: its machine is cut off or "
                                f"stopped")  # fmt: skip
                elif self._rank == 0:
                    self._look_around(still)
                self._unanswered = 0
            except RuntimeError:
                time.sleep(LEFT_ALONE)
                self._finish(self._unreachable(), mine=True)
            time.sleep(self._beat)

    def _look_around(self, still: _Standing) -> None:
        """Rank 0: who has gone, where another was left alone; who is behind, where nothing goes on."""
        if self._store.check(["alone"]):
            how = self._store.get("alone").decode()
            before = self._all()
            time.sleep(2.5 * self._beat)
            self._say_where()
            now = self._all()
            gone = [f"rank {r} on {now[r].host}, in {now[r].stage}" for r in now if now[r].beat == before[r].beat]
            self._judge(f"{' and '.join(gone[:4])} {'has' if len(gone) == 1 else 'have'} ended ({how})" if gone else
                        f"a collective failed ({how}): {_groups(now)}")  # fmt: skip
        elif still.over(Clock.now):
            now = self._all()
            if len({heard.stage for heard in now.values()}) > 1:
                text = f"nothing went on for {still.seconds:.0f} s: {_groups(now)}"
                print(f"\nbigssl: {text}", file=sys.stderr, flush=True)
            still.double()

    def _notice_no_answer(self) -> None:
        """Counts, since a process that was stopped and goes on has heard nothing meanwhile."""
        while not self._ended:
            time.sleep(self._beat)
            self._unanswered += 1
            if (self._unanswered - 2) * self._beat > self._silence:
                self._finish(self._unreachable(), mine=True)

    def _say_where(self) -> None:
        self._count += 1
        self._store.set(str(self._rank), json.dumps([self._count, socket.gethostname(), Clock.now]))

    def _heard(self, rank: int) -> LastWord:
        return LastWord(*json.loads(self._store.get(str(rank))))

    def _all(self) -> dict[int, LastWord]:
        words = self._store.multi_get([str(rank) for rank in range(self._world)])
        return {rank: LastWord(*json.loads(word)) for rank, word in enumerate(words)}

    def _judge(self, text: str) -> None:
        """Tell all why this run ends; the first to say so is heard."""
        text = f"{text}; {_AGAIN}"
        said = self._store.compare_set("verdict", "", text).decode()
        self._finish(said, mine=said == text)

    def _unreachable(self) -> str:
        return (f"rank 0's machine, {self._place[0]}, does not answer: it, or this one, is cut off or stopped, or rank "
                f"0 has ended; {_AGAIN}")  # fmt: skip

    def _finish(self, text: str, *, mine: bool) -> None:
        """Ends this process. mine: this rank has found out; else one rank of each machine says it."""
        if self._ended:
            return
        with self._ending:
            if mine or os.environ.get("LOCAL_RANK", "0") == "0":
                where = f"rank {self._rank} on {socket.gethostname()}, in {Clock.now}"
                print(f"\nbigssl: {where}: ended: {text}", file=sys.stderr, flush=True)
            if self._rank == 0:
                time.sleep(2 * self._beat)  # others hear it from the store, which may be in this process
            os._exit(exits.FAILED)


class _Standing:
    """Whether a value has stayed as it is for `seconds`, asked every `beat`: counted, as in `_notice_no_answer`."""

    def __init__(self, seconds: float, beat: float) -> None:
        self.seconds, self._first, self._beat = seconds, seconds, beat
        self._value: object = None
        self._times = 0

    def over(self, value: object) -> bool:
        if value != self._value:
            self._value, self._times, self.seconds = value, 0, self._first
        self._times += 1
        return self._times * self._beat > self.seconds

    def double(self) -> None:
        self.seconds *= 2


def _groups(heard: dict[int, LastWord]) -> str:
    """Which ranks are where, the fewest first."""
    stages: dict[str, list[int]] = defaultdict(list)
    for rank, each in heard.items():
        stages[each.stage].append(rank)
    texts = []
    for stage, ranks in sorted(stages.items(), key=lambda item: len(item[1])):
        named = ", ".join(f"rank {rank} on {heard[rank].host}" for rank in ranks[:3])
        texts.append(f"{named}{f' and {len(ranks) - 3} more' * (len(ranks) > 3)} in {stage}")
    return "; ".join(texts)
