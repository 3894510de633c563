"""A rank that is gone is named by those who are left, which end within seconds; one that is only slow ends nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl import distributed, train
from bigssl.engine import zero
from bigssl.engine.launcher import free_port
from bigssl.engine.meeting import watch
from bigssl.engine.meeting.network import MEETING
from bigssl.engine.meeting.watch import SILENCE, Watch

DEMO = Path(__file__).parents[3] / "bigssl" / "demo"
TINY = {
    "name": "tiny", "steps": 1_000_000, "precision": "fp32",
    "objective": {"name": "mlm", "source": "text", "masking": "word"},
    "backbones": {"text": {"type": "bert", "tokenizer": str(DEMO / "tokenizer.json"), "length": 16, "config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}}},
    "data": {"workers": 0, "sources": {"text": {"url": str(DEMO / "text" / "train")}}},
    "batch": {"size": 4}, "checkpoint": {"every": 1_000_000}, "log_every": 1,
}  # fmt: skip


class Pair:
    """Two ranks, forked, what each says on stderr going to a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.members: list[Any] = []

    def start(self, function: Callable[..., Any], *args: Any, **variables: str) -> None:
        port, context = free_port(), multiprocessing.get_context("fork")
        for rank in range(2):
            told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", SILENCE: "3", **variables}  # fmt: skip
            self.members.append(context.Process(target=_rank, args=(self._folder / f"{rank}", told, function, args)))
            self.members[-1].start()

    def said(self, rank: int) -> str:
        return (self._folder / f"{rank}").read_text()

    def tell(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.members[rank].pid, number)

    def code(self, rank: int, seconds: float) -> int | None:
        self.members[rank].join(seconds)
        code: int | None = self.members[rank].exitcode
        return code

    def end(self) -> None:
        for member in self.members:
            member.kill()
            member.join()


def _rank(log: Path, told: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sys.stderr = log.open("w", buffering=1)
    os.environ.update(told)
    os._exit(function(*args) or 0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    both = Pair(tmp_path)
    yield both
    both.end()


def training(recipe: Path) -> int:
    watch.LEFT_ALONE = 0.5
    return train.main(["--config", str(recipe)])


@pytest.mark.parametrize(("number", "rank", "why"), [
    (signal.SIGKILL, 1, "ended: rank 1 on {host}, in {stage} after step {step} has ended (Connection "),
    (signal.SIGKILL, 0, "ended: rank 0's machine, 127.0.0.1, does not answer: it, or this one, is cut off or stopped, "
                        "or rank 0 has ended; "),
    (signal.SIGSTOP, 1, "ended: rank 1 on {host} has said nothing for 3 s (BIGSSL_SILENCE), last in {stage} after "
                        "step {step}: its machine is cut off or stopped; "),
    (signal.SIGSTOP, 0, "ended: rank 0's machine, 127.0.0.1, does not answer: "),
])  # fmt: skip
def test_a_rank_that_is_gone_in_training_is_named(
    number: signal.Signals, rank: int, why: str, pair: Pair, tmp_path: Path
) -> None:
    recipe, metrics = tmp_path / "recipe.yaml", tmp_path / "run" / "metrics.jsonl"
    recipe.write_text(yaml.safe_dump({**TINY, "out": str(metrics.parent)}))
    pair.start(training, recipe)
    deadline = time.monotonic() + 100
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and pair.code(0, 0.05) is pair.code(1, 0) is None, pair.said(0)
    pair.tell(rank, number)
    assert pair.code(1 - rank, 30) == 1, pair.said(1 - rank)
    said = pair.said(1 - rank)
    (line,) = [line for line in said.splitlines() if line.startswith("bigssl: rank") and "ended" in line]
    assert line.startswith(f"bigssl: rank {1 - rank} on {os.uname().nodename}, in "), line
    for part in why.format(host=os.uname().nodename, stage="|", step="|").split("|"):
        assert part in line, line
    assert line.endswith("the same command goes on from the last checkpoint")
    if number == signal.SIGSTOP and rank == 1:  # goes on where it was stopped, and is told
        pair.tell(rank, signal.SIGCONT)
        assert pair.code(rank, 30) == 1, pair.said(rank)


def parting(late: int) -> int:
    """One rank is at the end long before the other, which prints a table, writes a report."""
    zero.start()
    watching = Watch()
    time.sleep(6 if distributed.rank() == late else 0)
    watching.end()
    time.sleep(1)
    return 0 if Watch.current is None else 9


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_is_at_the_end_before_the_other_is_not_gone(late: int, pair: Pair) -> None:
    pair.start(parting, late, **{SILENCE: "2"})
    assert [pair.code(rank, 60) for rank in (0, 1)] == [0, 0], pair.said(0) + pair.said(1)
    assert "ended" not in pair.said(0) + pair.said(1)


def stopped() -> int:
    """In its evaluation, each rank is told to stop for itself, and the first is gone at once."""
    zero.start()
    Watch()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    while distributed.rank():
        time.sleep(0.05)
    return 75


def test_a_rank_that_is_told_to_stop_after_the_first_is_not_left_alone(pair: Pair) -> None:
    pair.start(stopped, **{SILENCE: "2"})
    assert pair.code(0, 60) == 75
    assert pair.code(1, 1.5) is None, pair.said(1)
    pair.tell(1, signal.SIGTERM)
    assert pair.code(1, 5) == 75 and "ended" not in pair.said(1)


def differing(seconds: list[str]) -> int:
    os.environ[SILENCE] = seconds[int(os.environ["RANK"])]
    zero.start()
    watched = (Watch(), Watch.current is not None)[1]
    return 10 + distributed.gather_objects(watched).count(True)


@pytest.mark.parametrize(("seconds", "code"), [(["0", "2"], 10), (["2", "0"], 12)])
def test_ranks_take_the_silence_of_the_first(seconds: list[str], code: int, pair: Pair) -> None:
    """A machine on which it is not set, or set otherwise, would leave the others in a collective."""
    pair.start(differing, seconds)
    assert [pair.code(rank, 60) for rank in (0, 1)] == [code, code]


@pytest.mark.parametrize("name", [SILENCE, MEETING])
def test_seconds_that_are_none_are_refused_before_ranks_meet(
    name: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**TINY, "out": str(tmp_path / "run")}))
    monkeypatch.setenv(name, "soon")
    monkeypatch.delenv("RANK", raising=False)
    assert train.main(["--config", str(tmp_path / "recipe.yaml")]) == 2
    assert capsys.readouterr().err == f"bigssl: {name}: value 'soon'; allowed: a number of seconds\n"
