"""GradCache: k passes of b samples leave the state that one pass of k · b leaves, at every ZeRO stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import contract_runs as runs
import pytest
import torch
from conftest import DROPPING, TOKENIZER
from contract_runs import Cell

from bigssl.config.errors import ConfigError
from bigssl.data.loading.loader import Batch
from bigssl.engine.plan import preflight
from bigssl.engine.stepping.cached import CachedPasses, rows_of_passes
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover
from bigssl.report.metrics import read_metrics

AT = Progress(0, 100)
SIMCLR = {"name": "simclr", "hidden": 16, "dim": 8, "norm": False, "learn_temperature": True}
CLIP = {"name": "clip", "dim": 8}
MOCO = {"name": "moco", "hidden": 16, "dim": 8, "momentum": 0.9}
V3 = {"queue": 0, "predictor": True, "layers": 3, "last_momentum": 1.0, "freeze_patches": True}
TASKS: dict[str, dict[str, Any]] = {  # without BatchNorm; a queue that no number of batches fills exactly
    "simclr": SIMCLR,
    "clip": CLIP,
    "siglip": {"name": "siglip", "dim": 8, "bias": -3.0},
    "moco": MOCO | {"queue": 13},
    "moco-v3": MOCO | V3,
    "joint": {"name": "joint", "parts": {"views": SIMCLR, "pairs": CLIP | {"weight": 0.5}}},
}
FEW = [
    ("joint", Cell(3, 0, 2, "fp32")), ("siglip", Cell(2, None, 2, "fp32")), ("moco", Cell(1, None, 2, "fp32")),
    ("moco-v3", Cell(0, None, 1, "fp32")),
]  # fmt: skip
EVERY = [(name, Cell(*place, world, "fp32")) for name in TASKS for place in runs.PLACES for world in (1, 2)]
CASES = EVERY if os.environ.get("BIGSSL_CONTRACT_MATRIX") else FEW


@pytest.fixture(scope="module")
def values(recipe: Any) -> Any:
    """`values(name, out, batch)`: a recipe whose networks drop a tenth, with recomputed activations."""
    sections = {"image": DROPPING["vit"], "text": DROPPING["bert"]}

    def make(name: str, out: Path, precision: str, **batch: Any) -> dict[str, Any]:
        fields = runs.with_source(TASKS[name], "shards")
        texts = name in ("clip", "siglip", "joint")
        used = {key: s.model_dump(exclude_defaults=True) for key, s in sections.items() if key == "image" or texts}
        return recipe("simclr", out, objective=fields, backbones=used, batch={"size": 8, **batch}, precision=precision)

    return make


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "cell"), CASES, ids=[f"{name}-{cell}" for name, cell in CASES])
def test_k_passes_of_b_are_one_of_k_times_b(name: str, cell: Cell, values: Any, crew: Any, tmp_path: Path) -> None:
    """Weights, teachers, queue, learned scale; loss, blind line, spread and gradient norm in the metrics."""
    cached = values(name, tmp_path / "run", cell.precision, accum=2, cached=True)
    ranks = crew(runs.driven, cell.world, runs.at_cell(cached, cell))
    got, want = ranks[0], runs.plain(values(name, tmp_path / "plain", cell.precision))
    bound = runs.SAME[cell.precision]
    got.passes = [{key: row[key] for key in want.passes[0]} for row in read_metrics(tmp_path / "run")]
    curve_off, state_off, where = runs.distance(got, want, want)
    assert curve_off <= bound and state_off <= runs.KINKS * bound, f"{where}: off by {curve_off:.1e}, {state_off:.1e}"
    for other in ranks[1:]:
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(got.state[k])) for k, v in other.state.items())


@pytest.mark.distributed
def test_statistics_of_batch_norm_move_once_a_pass(recipe: Any, crew: Any, tmp_path: Path) -> None:
    """Of network and teacher: not in the first half of a step, which is thrown away. At its first step all weights are
    the same as without a cache, so that the statistics are as well."""
    batch, fields = {"size": 8, "accum": 2}, MOCO | V3 | {"norm": True, "source": "shards"}
    optim = {"lr": 1e-9, "eps": 1e-2}
    states = []
    for name, cached in (("cached", True), ("plain", False)):
        values = recipe("moco", tmp_path / name, objective=fields, batch=batch | {"cached": cached}, optim=optim)
        states.append(crew(runs.driven, 1, values)[0].state)
    moved = [key for key in states[0] if "running" in key or "num_batches" in key]
    assert len(moved) >= 12 and any(key.startswith("teacher slow") for key in moved)
    for key in moved:
        torch.testing.assert_close(states[0][key], states[1][key], msg=key)
    assert {int(states[0][key]) for key in moved if "num_batches" in key} == {2 * runs.STEPS}


def test_networks_that_draw_from_torchs_generator_draw_the_same_in_both_halves(objective: Any, batch: Any) -> None:
    """XLM calls torch's dropout itself. The gradient of a step is that of one graph over all its passes."""
    drawing = {"type": "xlm", "length": 16, "tokenizer": TOKENIZER,
               "config": {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.5, "attention_dropout": 0.5}}
    task = objective(discover()["clip"], "clip", beside={"still": "vit", "drawing": drawing}, image="still",
                     text="drawing")  # fmt: skip
    batches = [Batch(batch(task, size=6, step=n), {}) for n in range(3)]
    torch.manual_seed(7)
    embedded = [task(each.data, AT, True) for each in batches]
    rows = {name: rows_of_passes([each[name] for each in embedded]) for name in embedded[0]}
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad(task.compare(rows, AT).total, trained, allow_unused=True)
    torch.manual_seed(7)
    passes = CachedPasses(task, task, torch.device("cpu"), bf16=False)
    for each in passes.begin(iter(batches), AT):
        value, _ = passes(each.data, AT)
        (value / len(batches)).backward()
    found = [parameter.grad for parameter in trained if parameter.grad is not None]
    torch.testing.assert_close(found, [each for each in wanted if each is not None], rtol=1e-4, atol=1e-6)


def test_what_is_not_exact_or_not_possible_is_said(recipe: Any, tmp_path: Path) -> None:
    batch = {"size": 8, "accum": 4, "cached": True}
    plan = preflight.plan(runs.validated(recipe("simclr", tmp_path / "run", batch=batch)), 1)
    (note,) = plan.notes
    assert note.startswith("batch.cached: the loss sees all 4 passes of a step as one batch, but each BatchNorm")
    with pytest.raises(ConfigError, match="^batch.cached: value true, but the loss of mlm is one of each sample"):
        preflight.plan(runs.validated(recipe("joint", tmp_path / "run", batch=batch)), 1)
