"""Runs as a whole: resume is bit-identical, ranks do not change the curve, stops leave a checkpoint."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from bigssl.config.errors import ConfigError
from bigssl.engine import guards, loop, zero
from bigssl.engine.checkpoint import CheckpointError
from bigssl.engine.plan import preflight
from bigssl.train import live_probe
from bigssl.transfer.team import Team
from bigssl_kernels import nt_xent


class Interrupt:
    """Sends this process a signal at its n-th call."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


VAL = str(Path(loop.__file__).parents[1] / "demo" / "emoji" / "val")
NEAR = {"task": "knn", "bank": VAL, "queries": VAL, "bank_limit": 64, "query_limit": 30, "batch": 16,
        "label": "category"}  # fmt: skip
PROBE = {"every": 1, "near": NEAR}


def without_a_difference(recipe: Any) -> None:
    """Train a text network whose layers forget nearly all that goes through them."""
    plan = preflight.plan(recipe, preflight.announced_world())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in plan.objective.modules():
            if isinstance(layer, torch.nn.LayerNorm):
                layer.weight.mul_(1e-4)
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    device = zero.start()
    loop.train(recipe, plan, device, live_probe(recipe, plan, device, Team()))
    zero.stop()


@pytest.mark.distributed
def test_a_text_network_that_collapsed_is_named_while_it_trains(
    tmp_path: Path, ranks: Any, recipe: Any, joint: Any, capfd: Any
) -> None:
    """By what a probe finds, whatever a task watches; and the picture network beside it is not accused."""
    probe = PROBE | {"texts": NEAR | {"backbone": "text"}}
    shape = {**joint, "steps": 3, "precision": "fp32", "probe": probe}
    ranks(without_a_difference, 1, recipe(tmp_path / "run", **shape))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("directions of ")]
    assert said and all(line.startswith("directions of text: collapsed since step 1: they are about 1.0 of 16 ")
                        for line in said), said  # fmt: skip
    assert len(said) == 2, "when it begins, and at the end"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "world", "optimizer", "precision"),
    [(0, 1, "lamb", "bf16"), (2, 1, "lars", "fp32"), (3, 2, "adamw", "bf16")],
)
def test_resume_is_bit_identical(
    stage: int, world: int, optimizer: str, precision: str, tmp_path: Path, ranks: Any, recipe: Any, train: Any,
    curve: Any,
) -> None:  # fmt: skip
    options = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}  # slice small layers too
    shape: dict[str, Any] = {"zero": {"stage": stage, "options": options}, "probe": PROBE, "precision": precision}
    shape |= {"optim": {"name": optimizer, "lr": 0.01, "warmup": 2}, "data": recipe().data.model_dump()}
    shape["data"]["workers"] = 1
    want = ranks(train, world, recipe(tmp_path / "whole", **shape))
    stopped = ranks(train, world, recipe(tmp_path / "broken", **shape), Interrupt(3))
    assert [outcome.step for outcome, _ in stopped] == [4] * world  # the flag of step 3's probe, agreed in step 4
    assert all(outcome.preempted for outcome, _ in stopped)
    got = ranks(train, world, recipe(tmp_path / "broken", **shape))
    assert all(outcome.step == 6 and not outcome.preempted for outcome, _ in got)
    for name, value in want[0][1].items():
        assert torch.equal(got[0][1][name], value), name
    rows = curve(tmp_path / "broken")
    assert rows == curve(tmp_path / "whole")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and all("probe/near" in row for row in rows)


@pytest.mark.distributed
def test_ranks_and_stages_keep_the_curve(
    tmp_path: Path, ranks: Any, recipe: Any, joint: Any, train: Any, curve: Any
) -> None:
    """A joint run, with dropout, on one rank, and on two at ZeRO 2 and 3: the same global batches, the same losses.
    (Without dropout, at every stage: tests/objectives/test_contract_runs.py.)"""
    joint = copy.deepcopy(joint) | {"steps": 4}
    joint["backbones"]["text"]["config"] |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    ranks(train, 1, recipe(tmp_path / "one", **joint, zero={"stage": 0}))
    one = curve(tmp_path / "one")
    for stage in (2, 3):
        options = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
        ranks(train, 2, recipe(tmp_path / f"two{stage}", **joint, zero={"stage": stage, "options": options}))
        two = curve(tmp_path / f"two{stage}")
        for name in ("loss", "loss/views", "loss/captions", "loss/words", "blind", "blind/words"):
            assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=2e-4), (stage, name)


@pytest.mark.distributed
def test_a_run_is_the_same_whatever_probes_it(
    tmp_path: Path, ranks: Any, recipe: Any, joint: Any, train: Any, curve: Any
) -> None:
    """Every evaluation, on two ranks of which one has nothing to judge; weights to the bit, and rows of the metrics.
    At stage 3, where weights are whole for a probe and in slices again after it."""
    text, shots = str(Path(VAL).parents[1] / "text" / "val"), {"queries": VAL, "captions": VAL, "label": "category"}
    views = {"queries": VAL, "pair": "code", "view": "design"}
    few = {"query_limit": 1, "batch": 8}
    probe = {
        "every": 2, "near": NEAR | few, "texts": NEAR | few | {"backbone": "text"},
        "designs": {"task": "retrieval", "bank": VAL, "bank_limit": 9, **views},
        "names": {"task": "zero_shot", "caption_limit": 400, **shots, **few},
        "means": {"task": "class_mean", "caption_limit": 400, **shots, **few},
        "words": {"task": "language", "bank": text, "queries": text, **few},
    }  # fmt: skip
    sliced = {"stage": 3, "options": {"stage3_param_persistence_threshold": 0}}
    shape = {**joint, "steps": 3, "precision": "bf16", "zero": sliced}
    plain = ranks(train, 2, recipe(tmp_path / "plain", **shape))
    probed = ranks(train, 2, recipe(tmp_path / "probed", **shape, probe=probe))
    for name, value in plain[0][1].items():
        assert torch.equal(probed[0][1][name], value), name
    rows = curve(tmp_path / "probed")
    names = {f"probe/{name}" for name in probe if name != "every"}
    assert names | {"health/image/std", "health/text/uniformity"} <= rows[1].keys() and not names & rows[0].keys()
    assert 2 < rows[1]["probe/words"] < 20 and all(0 <= rows[1][name] <= 1 for name in names - {"probe/words"})
    of_probes = ("probe/", "health/image/", "health/text/")  # the views of a task have their health in every row
    without = [{name: row[name] for name in row if not name.startswith(of_probes)} for row in rows]
    assert without == curve(tmp_path / "plain")


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
    assert "loss or gradient is NaN or infinite at step 1" in message and "optim.lr" in message
    noted = (tmp_path / "run" / "nonfinite-rank0.txt").read_text()
    assert noted.startswith("step 1 emoji: ") and len(noted.split()) == 3 + 8
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_dropout_that_cannot_follow_the_samples_is_named(
    rate: float, tmp_path: Path, ranks: Any, recipe: Any, train: Any, monkeypatch: Any, capfd: Any
) -> None:
    """Once, and only where it draws; dropout of chance/dropout.py does not (see tests/objectives/test_dropout.py)."""

    def dropping(first: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        return nt_xent(torch.nn.functional.dropout(first, rate), *others, **options)

    monkeypatch.setattr("bigssl.objectives.simclr.nt_xent", dropping)
    ranks(train, 1, recipe(tmp_path / "run", steps=3))
    assert capfd.readouterr().err.count("the loss depends on the number of ranks") == (rate > 0)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.distributed
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, ranks: Any, recipe: Any, train: Any, curve: Any) -> None:
    want = ranks(train, 2, recipe(tmp_path / "hurt"))[0][1]
    whole = curve(tmp_path / "hurt")
    folder = tmp_path / "hurt" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000004", "step-00000006"]  # keep: 2
    flip_byte(next((folder / "step-00000006").rglob("*rank_1*optim*")))
    got = ranks(train, 2, recipe(tmp_path / "hurt"))[0][1]
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    assert curve(tmp_path / "hurt") == whole and len(whole) == 6

    for path in folder.glob("step-*/manifest.json"):
        path.unlink()
    message = ranks(resume_error, 2, train, recipe(tmp_path / "hurt"))[1]
    assert "no usable checkpoint" in message and "step-00000006" in message and "manifest.json" in message


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "before", "after", "optimizer"),
    [(2, 1, 2, "lamb"), (3, 2, 1, "adamw")],
)
def test_another_number_of_ranks_goes_on(
    stage: int, before: int, after: int, optimizer: str, tmp_path: Path, ranks: Any, recipe: Any, joint: Any,
    train: Any, curve: Any,
) -> None:  # fmt: skip
    options = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    changes = {**joint, "zero": {"stage": stage, "options": options}, "probe": PROBE}
    changes["optim"] = {"name": optimizer, "lr": 0.01, "warmup": 2}
    ranks(train, before, recipe(tmp_path / "whole", **changes))
    ranks(train, before, recipe(tmp_path / "moved", **changes), Interrupt(2))
    ((outcome, _), *_) = ranks(train, after, recipe(tmp_path / "moved", **changes))
    assert outcome.step == 6
    whole, moved = ([row["loss"] for row in curve(tmp_path / name)] for name in ("whole", "moved"))
    assert moved == pytest.approx(whole, rel=1e-4)  # the state itself: test_state.py


@pytest.mark.distributed
def test_bf16_follows_fp32(tmp_path: Path, ranks: Any, recipe: Any, joint: Any, train: Any, curve: Any) -> None:
    gentle = {"lr": 0.001, "warmup": 2}  # at ten times the rate, rounding grows to a tenth of the loss in four steps
    for precision in ("fp32", "bf16"):
        ranks(train, 1, recipe(tmp_path / precision, **joint, precision=precision, optim=gentle))
    full, half = ([row["loss"] for row in curve(tmp_path / name)] for name in ("fp32", "bf16"))
    assert half != full  # autocast did something
    assert half == pytest.approx(full, rel=0.02)  # 8 bits of mantissa


@pytest.mark.distributed
def test_other_data_or_passes_are_refused(tmp_path: Path, ranks: Any, recipe: Any, train: Any) -> None:
    """The shards changed under a name that stayed: the manifest knows their fingerprint."""
    ranks(train, 1, recipe(tmp_path / "run", steps=2, optim={"schedule": "constant"}))
    path = tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json"
    path.write_text(path.read_text().replace('"emoji": "', '"emoji": "0'))
    again = recipe(tmp_path / "run", steps=4, optim={"schedule": "constant"})
    with pytest.raises(ConfigError, match="step-00000002 has data .*shards"):
        preflight.plan(again, 1)


def test_the_only_good_checkpoint_is_not_pruned(tmp_path: Path, ranks: Any, recipe: Any, train: Any) -> None:
    """A damaged newer one must not count as kept while the run repeats the steps before it."""
    keep_one = {"every": 2, "keep": 1, "keep_every": 2}
    ranks(train, 1, recipe(tmp_path / "run", checkpoint=keep_one))
    folder = tmp_path / "run" / "checkpoints"
    for name in ("step-00000004", "step-00000006"):
        flip_byte(next((folder / name).rglob("*optim*")))
    ranks(train, 1, recipe(tmp_path / "run", checkpoint={"every": 2, "keep": 1}, probe=PROBE), Interrupt(1))
    assert (folder / "latest").read_text() == "step-00000004\n"
    (message,) = ranks(resume_error, 1, train, recipe(tmp_path / "run", checkpoint={"every": 2, "keep": 1}))
    assert not message
    assert (folder / "latest").read_text() == "step-00000006\n"


def resume_error(train: Any, recipe: Any) -> str:
    try:
        train(recipe)
    except CheckpointError as error:
        return str(error)
    return ""
