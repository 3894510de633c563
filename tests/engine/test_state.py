"""The whole state of a run: kept over any number of ranks, untouched by a NaN, and readable with DeepSpeed's tools."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from bigssl.config.recipe import Recipe
from bigssl.engine import zero
from bigssl.engine.layout import Layout, inner_optimizer
from bigssl.engine.saved import MASTER, SavedState

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


load_script("state_network")  # which the others import
matrix = load_script("state_matrix")
cost = load_script("state_cost")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("optimizer", "stages"),
    [
        ("lars", (1, 1, 1, 1)),
        ("adamw", (2, 2, 2, 2)),
        ("lamb", (3, 3, 3, 3)),
        ("muon", (0, 3, 2, 1)),
    ],
)
def test_the_whole_state_moves_between_ranks_and_stages(
    optimizer: str, stages: tuple[int, ...], tmp_path: Path, ranks: Any
) -> None:
    """Cells of benchmarks/state_matrix.py: 1, 2, 4 and 1 ranks against plain PyTorch that never stopped."""
    worst, where = matrix.cell(optimizer, stages, tmp_path / "checkpoints", ranks, matrix.WORLDS)
    assert worst <= matrix.TOLERANCE, where


def work_of_a_load(optimizer: str, stage: int, tensors: int, folder: Path) -> dict[str, float]:
    """What a load of the state of so many tensors calls, and how often it works out where one stands."""
    cost.save(optimizer, stage, tensors, folder)
    with mock.patch.object(Layout, "piece", autospec=True, side_effect=Layout.piece) as piece:
        calls = cost.load(optimizer, stage, tensors, folder)
    return {**calls, "places": piece.call_count}


@pytest.mark.distributed
@pytest.mark.parametrize(("optimizer", "stage"), [("muon", 1), ("adamw", 2), ("adamw", 3)])
def test_a_load_costs_each_tensor_the_same(optimizer: str, stage: int, tmp_path: Path, ranks: Any) -> None:
    """Four times the tensors: at most four times the work and a few, no more files, no collective for any."""
    few, many = (ranks(work_of_a_load, 1, optimizer, stage, n, tmp_path / str(n))[0] for n in (20, 80))
    assert many["files"] == few["files"] <= 3 and not many.get("collectives")
    for what in ("reads", "places"):
        assert many[what] <= 4.5 * few[what], (what, few, many)


@pytest.mark.distributed
def test_the_whole_state_moves_where_the_optimizer_is_offloaded(
    tmp_path: Path, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = matrix.recipe

    def offloaded(optimizer: str, stage: int) -> Any:
        if not stage:  # that which never stopped
            return plain(optimizer, stage)
        values = plain(optimizer, stage).model_dump()
        values["zero"]["options"]["offload_optimizer"] = {"device": "cpu"}
        config = Recipe.model_validate(values)
        zero.check_zero(config)
        return config

    monkeypatch.setattr(matrix, "recipe", offloaded)
    worst, where = matrix.cell("adamw", (2, 2, 3, 2), tmp_path / "checkpoints", ranks, matrix.WORLDS)
    assert worst <= matrix.TOLERANCE, where


def state_of(engine: zero.Engine) -> list[Any]:
    """Weights, optimizer state and step counts, as far as this rank has them. (Buffers follow the forward pass.)"""
    module, state = engine._engine.module, inner_optimizer(engine._engine.optimizer).state
    whole, trained = zero.full_state(module), dict(module.named_parameters())
    weights = [value for name, value in whole.items() if name in trained]
    masters = [tensor.detach() for tensor in state]
    return copy.deepcopy([*weights, *masters, *(value for entry in state.values() for value in entry.values())])


def same(before: list[Any], after: list[Any]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


def step_over_a_nan(optimizer: str, bad: float) -> list[tuple[int, bool, bool, int, float, bool]]:
    """By stage: was the state left alone, does the next step change it; skipped steps; norm of the bad gradient."""
    torch.compiler.set_stance("force_eager")  # Muon's kernel
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody wrote to is NaN
    zero.start()
    rank, found = torch.distributed.get_rank(), []
    for stage in (0, 1, 2, 3):
        config, network = matrix.recipe(optimizer, stage), matrix.Network(seed=0)
        engine = zero.Engine(network, matrix.optimizer_of(network, config), config, micro=4, accum=1, bf16=False)
        states = []
        for step in range(3):
            tokens, target = (part[rank * 4 : rank * 4 + 4].clone() for part in matrix.samples(step))
            loss = engine((tokens, target))
            engine.backward(loss * bad if step == 1 and rank == 1 else loss)
            engine.step()
            states.append((state_of(engine), engine.skipped, engine.grad_norm))
        first, second, third = states
        kept, moved = same(first[0], second[0]), not same(second[0], third[0])
        fine = all(torch.as_tensor(value).isfinite().all() for value in third[0])
        found.append((stage, kept, moved, third[1] - first[1], second[2], bool(fine)))
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(("optimizer", "bad"), [("adamw", float("nan")), ("muon", float("inf"))])
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_all(
    optimizer: str, bad: float, ranks: Any
) -> None:
    for found in ranks(step_over_a_nan, 2, optimizer, bad):
        for stage, kept, moved, skipped, norm, fine in found:
            assert kept and moved and fine and skipped == 1, f"stage {stage}: {kept=} {moved=} {fine=} {skipped=}"
            assert not torch.tensor(norm).isfinite(), f"stage {stage}: {norm}"


def as_a_program(folder: Path, name: str, arguments: list[str]) -> None:
    """Run a file, or a module, as `python` would in `folder`; in a forked process, which has its imports already."""
    os.chdir(folder)
    sys.argv = [name, *arguments]
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        sys.modules.pop(name, None)
        runpy.run_module(name, run_name="__main__", alter_sys=True)  # its workers look for their functions there


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_tools_read_a_step_folder(stage: int, tmp_path: Path, ranks: Any) -> None:
    """As its documentation has it: `python zero_to_fp32.py . out` in the folder, which names its tag in `latest`, and
    its conversion to a universal checkpoint."""
    weights = ranks(matrix.part, 2, "adamw", stage, 0, tmp_path / "checkpoints")[0]
    (folder,) = (tmp_path / "checkpoints").glob("step-*")
    ranks(as_a_program, 1, folder, "zero_to_fp32.py", [".", str(tmp_path / "out")])
    got = torch.load(tmp_path / "out" / "pytorch_model.bin")
    own = {name: value for name, value in weights.items() if not name.startswith("teacher ")}  # which is no submodule
    assert got.keys() >= own.keys()
    for name, value in own.items():
        assert torch.equal(got[name].to(value.dtype), value), name

    universal = tmp_path / "universal"
    paths = ["--input_folder", str(folder / zero.TAG), "--output_folder", str(universal / zero.TAG)]
    options = ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    ranks(as_a_program, 1, folder, "deepspeed.checkpoint.ds_to_universal", [*paths, *options])
    saved = SavedState(folder, zero.TAG)
    names = [name for flat in saved.layout.flats for name in flat.names]
    assert "first.weight" in names and "scale" in names
    for name, key in itertools.product(names, (MASTER, "exp_avg", "exp_avg_sq")):
        entry = torch.load(universal / zero.TAG / "zero" / name / f"{key}.pt", weights_only=False)
        value = entry if stage == 3 else entry["param"]  # of stage 3, DeepSpeed writes the values alone
        assert torch.equal(value.flatten(), saved.read(name, key, 0, saved.layout.numel(name))), (name, key)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}, "offload_optimizer.device"),
        ({"mics_shard_size": 2}, "mics_shard_size"),
        ({"elastic_checkpoint": True}, "elastic_checkpoint"),
        ({"compute_grad_norm": False}, "compute_grad_norm"),
    ],
)
def test_settings_under_which_state_would_be_lost_are_refused(options: dict[str, Any], words: str) -> None:
    config = matrix.recipe("adamw", 1)
    config = config.model_copy(update={"zero": config.zero.model_copy(update={"options": options})})
    with pytest.raises(zero.ConfigError, match=words):
        zero.check_zero(config)
