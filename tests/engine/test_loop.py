"""Runs as a whole: resume is bit-identical, ranks do not change the curve, stops leave a checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from bigssl.engine import guards, loop
from bigssl.engine.checkpoint import CheckpointError


class Interrupt:
    """Sends this process a signal at its n-th call."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


VAL = str(Path(loop.__file__).parents[1] / "demo" / "emoji" / "val")
PROBE = {"every": 1, "bank": VAL, "queries": VAL, "bank_limit": 64, "query_limit": 30, "batch": 16}


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "world"), [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_resume_is_bit_identical(
    stage: int, world: int, tmp_path: Path, ranks: Any, recipe: Any, train: Any, curve: Any
) -> None:
    shape: dict[str, Any] = {"zero": {"stage": stage}, "probe": PROBE, "data": recipe().data.model_dump()}
    shape["data"]["workers"] = 1
    want = ranks(train, world, recipe(tmp_path / "whole", **shape))
    stopped = ranks(train, world, recipe(tmp_path / "broken", **shape), Interrupt(3))
    assert [outcome.step for outcome, _ in stopped] == [4] * world  # the flag of step 3's probe, agreed in step 4
    assert all(outcome.preempted for outcome, _ in stopped)
    got = ranks(train, world, recipe(tmp_path / "broken", **shape))
    for (outcome, state), (_, expected) in zip(got, want, strict=True):
        assert outcome.step == 6 and not outcome.preempted
        for name, value in expected.items():
            assert torch.equal(state[name], value), name
    rows = curve(tmp_path / "broken")
    assert rows == curve(tmp_path / "whole")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and all("probe/knn" in row for row in rows)


@pytest.mark.distributed
def test_ranks_and_stages_keep_the_curve(
    tmp_path: Path, ranks: Any, recipe: Any, joint: Any, train: Any, curve: Any
) -> None:
    """A joint run on one rank, and on two ranks at every ZeRO stage: the same global batches, the same losses."""
    ranks(train, 1, recipe(tmp_path / "one", **joint, zero={"stage": 0}))
    one = curve(tmp_path / "one")
    for stage in (0, 1, 2, 3):
        ranks(train, 2, recipe(tmp_path / f"two{stage}", **joint, zero={"stage": stage}))
        two = curve(tmp_path / f"two{stage}")
        for name in ("loss", "loss/views", "loss/captions", "loss/words"):
            assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=2e-4), (stage, name)


def test_a_nan_stops_the_run_and_names_the_samples(
    tmp_path: Path, ranks: Any, recipe: Any, train: Any, monkeypatch: Any
) -> None:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        return args[0].sum() * float("nan")

    monkeypatch.setattr("bigssl.objectives.simclr.nt_xent", poisoned)

    def attempt() -> str:
        try:
            train(recipe(tmp_path / "run"))
        except guards.NonFiniteLoss as error:
            return str(error)
        return ""

    (message,) = ranks(attempt, 1)
    assert "NaN or infinite at step 1" in message and "optim.lr" in message
    noted = (tmp_path / "run" / "nonfinite-rank0.txt").read_text()
    assert noted.startswith("step 1 emoji: ") and len(noted.split()) == 3 + 8
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.distributed
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, ranks: Any, recipe: Any, train: Any, curve: Any) -> None:
    want = ranks(train, 2, recipe(tmp_path / "whole"))[0][1]
    ranks(train, 2, recipe(tmp_path / "hurt"))
    folder = tmp_path / "hurt" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000004", "step-00000006"]  # keep: 2
    flip_byte(next((folder / "step-00000006").rglob("*rank_1*optim*")))
    got = ranks(train, 2, recipe(tmp_path / "hurt"))[0][1]
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    assert curve(tmp_path / "hurt") == curve(tmp_path / "whole")

    for path in folder.glob("step-*/manifest.json"):
        path.unlink()
    message = ranks(resume_error, 2, train, recipe(tmp_path / "hurt"))[1]
    assert "no usable checkpoint" in message and "step-00000006" in message and "manifest.json" in message


def resume_error(train: Any, recipe: Any) -> str:
    try:
        train(recipe)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_a_full_disk_keeps_training_and_the_last_checkpoint(
    tmp_path: Path, ranks: Any, recipe: Any, train: Any, monkeypatch: Any, capfd: Any
) -> None:
    usage = type("usage", (), {"free": 10})
    ranks(train, 1, recipe(tmp_path / "run", steps=2, optim={"schedule": "constant"}))
    monkeypatch.setattr("bigssl.engine.checkpoint.shutil.disk_usage", lambda _: usage)
    ((outcome, _),) = ranks(train, 1, recipe(tmp_path / "run", steps=4, optim={"schedule": "constant"}))
    assert outcome.step == 4
    assert "no checkpoint written" in capfd.readouterr().err
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*[0-9]")] == ["step-00000002"]
