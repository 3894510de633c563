"""Every pretext task under the driver, at every ZeRO stage, on one rank and two, is a plain loop in one process.

`bash launch/test.sh --matrix` runs every task at every cell; without it, a covering design (see `contract_runs`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contract_runs as runs
import pytest
import torch
from contract_runs import Cell, Run
from safetensors.torch import load_file
from transformers import AutoModel

from bigssl.data.loading.loader import MicroBatches
from bigssl.engine.plan import preflight
from bigssl.nets.modality.kinds import unused_parameters
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Network, Objective, discover, exported_heads, exported_networks
from bigssl.report.collapses import ALIKE, PREFIX, RANK, collapses
from bigssl.report.metrics import read_metrics

MATRIX = os.environ.get("BIGSSL_CONTRACT_MATRIX")  # a file for the rows of the whole matrix
TODO = os.environ.get("BIGSSL_CONTRACT_TODO", "[]")  # JSON: [task, *cell] of each that it still lacks
NAMES = sorted(discover())
CASES = [(name, Cell(*cell)) for name, *cell in json.loads(TODO)] if MATRIX else runs.covering(NAMES)
each_case = pytest.mark.parametrize(("name", "cell"), CASES, ids=[f"{name}-{cell}" for name, cell in CASES])

# Two ranks round their own halves of a gradient to bfloat16, and the step after sees it: a bound on gross errors only.
# The stages are compared with each other, at two ranks each, as closely as the rest.
HALVES = 0.2
# Of joint with two passes, whose BatchNorm then has four samples, gradients off by 2**-9 alone move the plain loop's
# last spread by 17 %: its first half alone is held against one process, closer (seen: 1.2 %).
EARLY = 0.05


@pytest.fixture(scope="module")
def plain(recipe: Any) -> Callable[..., Run]:
    """`plain(name, precision)`: the plain loop on a preset, run once."""
    known: dict[Any, Run] = {}

    def run(name: str, precision: str, **changes: Any) -> Run:
        key = name, precision, str(changes)
        if key not in known:
            spared = changes.pop("spared", None)
            known[key] = runs.plain(recipe(name, precision=precision, **changes), spared)
        return known[key]

    return run


@pytest.fixture(scope="module")
def halves(recipe: Any, crew: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Run]:
    """`halves(name, accum)`: a preset at stage 0 in bf16 on two ranks, run once."""
    known: dict[tuple[str, int], Run] = {}

    def run(name: str, accum: int) -> Run:
        if (name, accum) not in known:
            values = recipe(name, tmp_path_factory.mktemp("halves") / "run")
            place = Cell(0, None, 2, "bf16", accum)
            known[name, accum] = mean_of(crew(runs.driven, 2, runs.at_cell(values, place)))
        return known[name, accum]

    return run


@pytest.fixture(scope="module")
def hardest(recipe: Any, crew: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """`hardest(name)`: a preset at HARDEST, run once and exported: its recipe, and what came of it on each rank."""
    known: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in known:
            values = runs.at_cell(recipe(name, tmp_path_factory.mktemp("hardest") / "run"), runs.HARDEST)
            known[name] = values, crew(runs.driven, 2, values, None, False, True)
        return known[name]

    return run


def mean_of(ranks: list[Run]) -> Run:
    """One run from those of its ranks: the mean of what each saw of its own share.

    What a loss says of the global batch is the same on every rank, and so are teachers.
    """
    first, *others = ranks
    for other in others:
        for here, there in zip(first.passes, other.passes, strict=True):
            for key in here:
                if key.startswith(("blind", "spread")):
                    assert here[key] == pytest.approx(there[key], rel=1e-5), f"{key} differs between ranks"
        for key, value in other.state.items():
            same = torch.equal(torch.as_tensor(value), torch.as_tensor(first.state[key]))
            assert same, f"{key} differs between ranks"
    together = zip(*(rank.passes for rank in ranks), strict=True)
    passes = [{key: sum(rank[key] for rank in row) / len(row) for key in row[0]} for row in together]
    return Run(passes, first.norms, first.start, first.state, first.settings)


def check(
    got: Run, cell: Cell, name: str, plain: Any, halves: Any, moved: bool = False
) -> tuple[float, float, str]:  # fmt: skip
    """(curve, state, where), as `distance` from the closest reference; asserts that both are small. moved: it went on
    from `cell` on another number of ranks."""
    split = {} if cell.accum == 1 else {"batch": {"size": runs.SIZE, "accum": cell.accum}}
    want = plain(name, cell.precision, **split)
    bound, begun = runs.allowed(name, cell, moved)
    whole = len(got.passes) == len(want.passes)  # not a run that went on
    if begun is not None and cell.world == 1 and whole:
        for row, wanted in list(zip(got.passes, want.passes, strict=True))[: runs.STEPS // 2 * cell.accum]:
            assert row == pytest.approx(wanted, rel=begun, abs=begun)
    coarse = cell.precision == "bf16"
    if coarse and cell.world > 1:
        check_gross(got, want, cell.accum, early=name == "joint" and cell.accum > 1)
        found = runs.distance(got, halves(name, cell.accum), want, coarse)
    else:
        found = runs.distance(got, want, want, coarse)
    curve, state, where = found
    assert curve <= bound and state <= runs.KINKS * bound, f"{where}: curve off by {curve:.1e}, state by {state:.1e}"
    return found


def check_gross(got: Run, want: Run, accum: int, early: bool) -> None:
    """No gross error of two ranks' losses against one process. early: in the first half of a whole run, and closer."""
    if early and len(got.passes) < len(want.passes):
        return
    if early:
        got, want = runs.first_half(got), runs.first_half(want)
    curve, _, where = runs.distance(got, want, want)
    assert curve <= (EARLY if early else HALVES) * accum**0.5, f"{where}: {curve:.1e}"


@pytest.fixture
def recorded(name: str, cell: Cell) -> Iterator[list[Any]]:
    """Takes what `check` found; what stands in it at the end goes to the matrix."""
    found: list[Any] = []
    yield found
    if MATRIX:
        with open(MATRIX, "a") as file:
            file.write(json.dumps([name, *cell, *(found or [0, 0, "", False])]) + "\n")


@pytest.mark.distributed
@each_case
def test_a_run_is_the_plain_loop_and_goes_on_anywhere(
    name: str, cell: Cell, recipe: Any, plain: Any, halves: Any, hardest: Any, crew: Any, tmp_path: Path,
    recorded: list[Any],
) -> None:  # fmt: skip
    """The curve and the whole state; then from the middle again, from spoilt weights: each task once, of slices (at
    HARDEST), every other one on other ranks at another stage."""
    if cell == runs.HARDEST:
        values, ranks = hardest(name)
    else:
        values = recipe(name, tmp_path / "run")
        ranks = crew(runs.driven, cell.world, runs.at_cell(values, cell))
    got, checkpoints = mean_of(ranks), Path(values["out"]) / "checkpoints"
    found = check(got, cell, name, plain, halves)
    places = [cell, elsewhere(cell)]
    mine = places[NAMES.index(name) % 2 :][:1] if cell == runs.HARDEST else []
    for place in places if MATRIX else mine:
        shutil.rmtree(max(checkpoints.glob("step-*")))
        again = mean_of(crew(runs.driven, place.world, runs.at_cell(values, place), None, True))
        assert len(again.passes) == runs.STEPS // 2 * cell.accum, "it did not go on from the checkpoint"
        assert again.settings == got.settings
        check(again, cell, name, plain, halves, place.world != cell.world)
    recorded += [*found, True]


def elsewhere(cell: Cell) -> Cell:
    """The other number of ranks, at another stage."""
    places = list(runs.PLACES)
    stage, persistence = places[(places.index((cell.stage, cell.persistence)) + 2) % len(places)]
    return Cell(stage, persistence, 3 - cell.world, cell.precision, cell.accum)


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_a_nan_among_accumulated_passes_moves_nothing(
    name: str, recipe: Any, plain: Any, crew: Any, tmp_path: Path
) -> None:
    """Two passes a step, and one pass that is NaN on one rank, the other finite (the first of the two, or, of every
    other task, the last): for the whole step weights and teachers stay, the rest goes on."""
    poisoned = 2 + NAMES.index(name) % 2
    place = runs.PLACES[(NAMES.index(name) + 2 * (poisoned % 2)) % len(runs.PLACES)]
    changes = {"batch": {"size": runs.SIZE, "accum": 2}, "log_every": 100, "checkpoint": {"every": 100}}
    values = recipe(name, tmp_path / "run", **changes)
    got = mean_of(crew(runs.driven, 2, runs.at_cell(values, Cell(*place, 2, "fp32")), poisoned))
    want = plain(name, "fp32", spared=poisoned // 2, **changes)
    (curve, state, where), bound = runs.distance(got, want, want), runs.SAME["fp32"]
    assert curve <= bound and state <= runs.KINKS * bound, f"{where}: off by {curve:.1e}, {state:.1e}"


@pytest.fixture(scope="module")
def exported(hardest: Any) -> Callable[[str], Any]:
    """`exported(name)`: the folder that a preset at HARDEST exports to, its state, and an untrained plan."""

    def of(name: str) -> Any:
        values, (first, _) = hardest(name)
        untrained = runs.validated(values | {"out": "", "zero": {"stage": 0}})
        return Path(values["out"]) / "export", first.state, preflight.plan(untrained, 1)

    return of


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_every_export_loads_and_gives_the_features_of_the_run(name: str, exported: Any) -> None:
    folder, state, plan = exported(name)
    towers = {id(tower.model) for tower in plan.backbones.values()}
    for key, part in plan.objective.exports().items():
        backbone = isinstance(part, Network) and id(part.model) in towers
        assert not backbone, f"{key} is a backbone, which is exported anyway"
    for key, (_, model) in exported_networks(plan.objective, plan.backbones).items():
        loaded = AutoModel.from_pretrained(folder / key).eval()
        model.load_state_dict(part_of_state(plan.objective, model, state), strict=False)
        stored = load_file(folder / key / "model.safetensors")
        for path, value in model.eval().state_dict().items():
            assert path not in stored or torch.equal(stored[path], value), f"{key}: {path}"
        with torch.no_grad():
            for inputs in inputs_of(plan, model):
                assert torch.allclose(loaded(**inputs)[0], model(**inputs)[0], atol=1e-5), key


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_a_run_begins_with_all_that_another_exported(name: str, exported: Any, recipe: Any, tmp_path: Path) -> None:
    """Weights, buffers, heads, teachers and extra state, from another seed; what no feature needs (a pooler) apart."""
    folder, state, _ = exported(name)
    plan = preflight.plan(runs.validated(recipe(name, tmp_path / "run", seed=1, start_from=str(folder))), 1)
    (tmp_path / "run").mkdir()
    plan.beginning.begin(plan.objective, plan.backbones)  # type: ignore[union-attr]
    got = runs.whole_state(plan.objective)
    assert got.keys() == state.keys()
    networks = exported_networks(plan.objective, plan.backbones).values()
    unused = tuple(path for network in networks for path in unused_parameters(network.model))
    for key in [key for key in state if not key.endswith(unused)]:
        assert torch.equal(torch.as_tensor(got[key]), torch.as_tensor(state[key])), key
    record = json.loads((tmp_path / "run" / "started_from.json").read_text())
    assert record["folder"] == str(folder) and record["steps"] == runs.STEPS and len(record["sha256"]) == 64
    assert len(plan.notes) == 1 and "the optimizer is fresh" in plan.notes[0]


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_every_exported_head_is_what_was_trained(name: str, exported: Any) -> None:
    """Each tensor of it, from slices: what the task says of itself with the weights of the run."""
    folder, state, plan = exported(name)
    task = plan.objective
    untrained = copies_of_heads(task)
    assert {key for key, _ in task.named_parameters()} <= state.keys()
    task.load_state_dict({key: value for key, value in state.items() if not key.startswith("teacher ")}, strict=False)
    trained, buffers = copies_of_heads(task), {id(buffer) for buffer in task.buffers()}
    fixed = {id(value) for head in exported_heads(task).values() for value in head.tensors.values()} & buffers
    assert {path.stem for path in (folder / "heads").glob("*")} == trained.keys()
    for key, head in trained.items():
        stored = load_file(folder / "heads" / f"{key}.safetensors")
        assert stored.keys() == head.keys()
        for path, value in head.items():
            assert torch.equal(stored[path], value), f"{key}: {path}"
            same = torch.equal(untrained[key][path], value)
            assert not same or id(exported_heads(task)[key].tensors[path]) in fixed, f"{key}: {path} did not move"


def copies_of_heads(task: Objective) -> dict[str, dict[str, torch.Tensor]]:
    heads = exported_heads(task).items()
    return {key: {path: value.detach().clone() for path, value in head.tensors.items()} for key, head in heads}


def part_of_state(task: Objective, model: torch.nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """What `state` holds of one of the networks of a task or of its teachers."""
    nets = {"": task} | {f"teacher {name}: ": teacher.module for name, teacher in task.teachers().items()}
    (start,) = {f"{prefix}{path}." for prefix, net in nets.items() for path, m in net.named_modules() if m is model}
    found = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    assert found
    return found


def inputs_of(plan: preflight.Plan, model: torch.nn.Module) -> list[dict[str, Any]]:
    """What a pass gives to `model`; nothing where a task calls parts of it only."""
    seen: list[dict[str, Any]] = []
    handle = model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    task = plan.objective
    loader = MicroBatches(plan.streams, plan.sizes, task.prepare, task.assemble, 0, 0, 1, 1)
    task(loader[0].data, Progress(0, runs.STEPS))
    handle.remove()
    return seen


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_a_collapse_is_named_while_it_happens(
    name: str, recipe: Any, objective: Any, batch: Any, crew: Any, tmp_path: Path
) -> None:
    """With all that a task has against it, nothing ends collapsed; without any one of these, something does, of the
    part that lacks it, samples (a spread) or dimensions (the rank of embeddings); and the loop has named, when it
    happened, what was ever below its line, and nothing else. (Guards of a joint task are its parts', which have lost
    each of theirs already: one is enough to see that the right part is named.)"""
    task = objective(discover()[name], name)
    guards = list(task.guards())
    watched = any(each.spread for _, each in task(batch(task), Progress(0, 60)).named())
    assert watched == bool(guards or task.cannot_collapse), "guards() has to say what keeps each `spread` from falling"
    steps = discover()[name].preset.get("collapses", 60)
    rate = discover()[name].preset.get("rate", 0.01)
    optim = {"lr": rate, "weight_decay": 0.0, "schedule": "constant" if steps > 60 else "cosine"}
    changes = {"steps": steps, "batch": {"size": 16}, "optim": optim, "checkpoint": {"every": steps}}
    planted = ["", *guards] if not discover()[name].__dict__.get("composite") else [*guards][:1]
    for without in planted if watched else []:
        out = tmp_path / without.replace("/", "-") / "run"
        (run,) = crew(runs.driven, 1, recipe(name, out, **changes), None, False, False, without)
        curves = {key: [row[key] for row in run.passes] for key in run.passes[0] if key.startswith(PREFIX)}
        low = {key.removeprefix(PREFIX) for key, curve in curves.items() if min(curve) < ALIKE}
        fallen = {key.removeprefix(PREFIX) for key, curve in curves.items() if sum(curve[-10:]) / 10 < ALIKE}
        said = collapses(read_metrics(out))
        fallen |= {each.name.removeprefix(RANK) for each in said if each.end is None and each.name.startswith(RANK)}
        part = without.rpartition("/")[0]
        assert bool(fallen) == bool(without), f"without {without or 'nothing'}, {fallen or 'nothing'} ends collapsed"
        assert all(each.startswith(part) for each in fallen), f"without {without}, {fallen} collapsed"
        noted = {text.split(":")[0] for done, text in run.notes if f": collapsed since step {done}:" in text}
        assert {each for each in noted if not each.startswith(RANK)} == low and noted == {each.name for each in said}
