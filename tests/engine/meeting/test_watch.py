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
from bigssl.engine.clock import Clock
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


class Team:
    """Ranks, forked, what each says on stderr going to a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.members: list[Any] = []

    def start(self, function: Callable[..., Any], *args: Any, world: int = 2, **variables: str) -> None:
        port, context = free_port(), multiprocessing.get_context("fork")
        for rank in range(world):
            told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", SILENCE: "3", **variables}  # fmt: skip
            self.members.append(context.Process(target=_rank, args=(self._folder / f"{rank}", told, function, args)))
            self.members[-1].start()

    def said(self, rank: int) -> str:
        log = self._folder / f"{rank}"
        return log.read_text() if log.exists() else ""

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
def team(tmp_path: Path) -> Iterator[Team]:
    members = Team(tmp_path)
    yield members
    members.end()


def training(recipe: Path) -> int:
    watch.LEFT_ALONE = 0.5
    return train.main(["--config", str(recipe)])


@pytest.mark.parametrize(("number", "rank", "why"), [
    (signal.SIGKILL, 1, "ended: rank 1 on {host}, in {stage} after step {step} has ended (Connection "),
    (signal.SIGKILL, 0, "ended: rank 0's machine, 127.0.0.1, does not answer: it, or this one, is cut off or stopped, "
                        "or rank 0 has ended; "),
    (signal.SIGSTOP, 0, "ended: rank 0's machine, 127.0.0.1, does not answer: "),
])  # fmt: skip
def test_a_rank_that_is_gone_in_training_is_named(
    number: signal.Signals, rank: int, why: str, team: Team, tmp_path: Path
) -> None:
    recipe, metrics = tmp_path / "recipe.yaml", tmp_path / "run" / "metrics.jsonl"
    recipe.write_text(yaml.safe_dump({**TINY, "out": str(metrics.parent)}))
    team.start(training, recipe)
    deadline = time.monotonic() + 100
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and team.code(0, 0.05) is team.code(1, 0) is None, team.said(0)
    team.tell(rank, number)
    assert team.code(1 - rank, 30) == 1, team.said(1 - rank)
    said = team.said(1 - rank)
    (line,) = [line for line in said.splitlines() if line.startswith("bigssl: rank") and "ended" in line]
    assert line.startswith(f"bigssl: rank {1 - rank} on {os.uname().nodename}, in "), line
    for part in why.format(host=os.uname().nodename, stage="|", step="|").split("|"):
        assert part in line, line
    assert line.endswith("the same command goes on from the last checkpoint")


def standing() -> None:
    zero.start()
    Watch()
    Clock.now = f"backward after step {distributed.rank()}"
    print("ready", file=sys.stderr)
    watch.LEFT_ALONE = 0.5
    time.sleep(100)


def test_what_one_rank_finds_out_is_said_to_all(team: Team) -> None:
    """The third listens to the second, which is stopped; when that goes on, it ends too."""
    team.start(standing, world=3, **{SILENCE: "2"})
    while not all(team.code(rank, 0.05) is None and team.said(rank) == "ready\n" for rank in range(3)):
        assert all(team.code(rank, 0) is None for rank in range(3)), team.said(0)
    time.sleep(1)  # in which all say where they are
    team.tell(1, signal.SIGSTOP)
    assert [team.code(rank, 30) for rank in (0, 2)] == [1, 1], team.said(0) + team.said(2)
    host = os.uname().nodename
    why = f"rank 1 on {host} has said nothing for 2 s (BIGSSL_SILENCE), last in backward after step 1: its machine is "
    for rank in (0, 2):
        assert f"bigssl: rank {rank} on {host}, in backward after step {rank}: ended: {why}" in team.said(rank)
    team.tell(1, signal.SIGCONT)
    assert team.code(1, 30) == 1


def parting(late: int) -> int:
    """One rank is at the end long before the other, which prints a table, writes a report."""
    zero.start()
    watching = Watch()
    time.sleep(6 if distributed.rank() == late else 0)
    watching.end()
    time.sleep(1)
    return 0 if Watch.current is None else 9


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_is_at_the_end_before_the_other_is_not_gone(late: int, team: Team) -> None:
    team.start(parting, late, **{SILENCE: "2"})
    assert [team.code(rank, 60) for rank in (0, 1)] == [0, 0], team.said(0) + team.said(1)
    assert "ended" not in team.said(0) + team.said(1)


def stopped() -> int:
    """In its evaluation, each rank is told to stop for itself, and the first is gone at once."""
    zero.start()
    Watch()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    while distributed.rank():
        time.sleep(0.05)
    time.sleep(0.5)
    return 75


def test_a_rank_that_is_told_to_stop_after_the_first_is_not_left_alone(team: Team) -> None:
    team.start(stopped, **{SILENCE: "2"})
    assert team.code(0, 60) == 75
    assert team.code(1, 1.5) is None, team.said(1)
    team.tell(1, signal.SIGTERM)
    assert team.code(1, 5) == 75 and "ended" not in team.said(1)


def differing(seconds: list[str]) -> int:
    os.environ[SILENCE] = seconds[int(os.environ["RANK"])]
    zero.start()
    watched = (Watch(), Watch.current is not None)[1]
    return 10 + distributed.gather_objects(watched).count(True)


@pytest.mark.parametrize(("seconds", "code"), [(["0", "2"], 10), (["2", "0"], 12)])
def test_ranks_take_the_silence_of_the_first(seconds: list[str], code: int, team: Team) -> None:
    """A machine on which it is not set, or set otherwise, would leave the others in a collective."""
    team.start(differing, seconds)
    assert [team.code(rank, 60) for rank in (0, 1)] == [code, code]


@pytest.mark.parametrize("name", [SILENCE, MEETING])
def test_seconds_that_are_none_are_refused_before_ranks_meet(
    name: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**TINY, "out": str(tmp_path / "run")}))
    monkeypatch.setenv(name, "soon")
    monkeypatch.delenv("RANK", raising=False)
    assert train.main(["--config", str(tmp_path / "recipe.yaml")]) == 2
    assert capsys.readouterr().err == f"bigssl: {name}: value 'soon'; allowed: a number of seconds\n"
