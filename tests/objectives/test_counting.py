"""The loss of a step is the mean over all its tokens, on all ranks and in all passes, however many these are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import contract_runs as runs
import pytest
import torch
from contract_runs import Cell

from bigssl.objectives.base import discover
from bigssl.report.metrics import read_metrics

TASKS: dict[str, dict[str, Any]] = {
    "mlm": {"ratio": 0.3, "ratio_end": 0.6},
    "packed": {"ratio": 0.3, "packing": True},
    "denoise": {},
    "joint": {"parts": {"few": {"name": "mlm", "ratio": 0.05, "weight": 0.5}, "many": {"name": "mlm", "ratio": 0.5}}},
}
CASES = [("mlm", 1, 2, 1), ("packed", 2, 4, 1), ("joint", 3, 2, 2), ("mlm", 0, 4, 2), ("denoise", 2, 2, 2)]


def recipe_of(task: str, recipe: Any, out: Path, accum: int) -> dict[str, Any]:
    name = task if task in ("joint", "denoise") else "mlm"
    captions = {"workers": 0, "sources": {"shards": {"url": str(runs.DEMO / "emoji/train")}}}  # of uneven lengths
    fields = runs.with_source({"name": name, **TASKS[task]}, "shards")
    batch = {"size": runs.SIZE, "accum": accum}
    of = "denoise" if task == "denoise" else "mlm"
    values: dict[str, Any] = recipe(of, out, objective=fields, batch=batch, data=captions, log_every=1)
    return values


@pytest.mark.distributed
@pytest.mark.parametrize(("task", "stage", "accum", "world"), CASES)
def test_k_passes_of_b_are_one_of_k_times_b(
    task: str, stage: int, accum: int, world: int, recipe: Any, crew: Any, tmp_path: Path
) -> None:
    """Weights, buffers, optimizer's norms and what the metrics say; by tokens, not by passes or samples."""
    split = runs.at_cell(recipe_of(task, recipe, tmp_path / "split", accum), Cell(stage, None, world, "fp32"))
    got = crew(runs.driven, world, split)[0]
    want = crew(runs.driven, 1, recipe_of(task, recipe, tmp_path / "whole", 1))[0]
    for key, value in want.state.items():
        torch.testing.assert_close(got.state[key], value, rtol=1e-4, atol=2e-6, msg=key)
    rows = zip(read_metrics(tmp_path / "split"), read_metrics(tmp_path / "whole"), strict=True)
    for mine, whole in rows:
        for key in (key for key in whole if key.startswith("loss") or key == "optim/grad_norm"):
            assert mine[key] == pytest.approx(whole[key], rel=1e-4), key
    uneven = {round(row["loss"], 3) for row in got.passes[:accum]}
    assert len(uneven) == accum, "passes are alike: nothing is shown"


def test_a_pass_that_nobody_counted_is_the_whole_step(objective: Any, batch: Any) -> None:
    task = objective(discover()["mlm"], "mlm")
    data = batch(task)
    labelled = task.units(data)[""]
    alone = task(data, runs.Progress(0, 10)).total
    told = task(task.told(data, {"": torch.tensor(float(labelled))}), runs.Progress(0, 10)).total
    doubled = task(task.told(data, {"": torch.tensor(2.0 * labelled)}), runs.Progress(0, 10)).total
    torch.testing.assert_close(alone, told)
    torch.testing.assert_close(alone, 2 * doubled)
