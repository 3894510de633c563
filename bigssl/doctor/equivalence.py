"""Have ranks the loss and the gradient that one process has? Each task of a recipe, at its stage and precision, on the
same batch: under DeepSpeed on all ranks, and in plain PyTorch on one device."""

from __future__ import annotations

import gc
import math
import os
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bigssl import distributed
from bigssl.config.recipe import Recipe
from bigssl.data.loading.loader import Batch, MicroBatches
from bigssl.doctor.findings import Diagnoses, first_line
from bigssl.doctor.small import smaller, tasks_alone
from bigssl.engine import zero
from bigssl.engine.plan import preflight
from bigssl.engine.stepping.passes import CountedPasses, EachPass
from bigssl.nets.norm import BatchNorm, GlobalBatchNorm
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.counting import Counting


class Parted(RuntimeError):
    """Ranks no longer do the same: the group is of no use."""


@dataclass(frozen=True)
class Bounds:
    """How far a rank's rounding may take it: relative error of a loss, and of the norm of the gradient; 1 − the cosine
    of the two gradients."""

    loss: float
    norm: float
    angle: float


BOUNDS = {"fp32": Bounds(1e-3, 1e-2, 1e-3), "bf16": Bounds(1e-2, 1e-1, 5e-2)}
"""A wrong convention errs by tens of percents: a loss of one rank's samples, or one that is divided by the ranks twice.
fp32 adds in another order on several ranks, which BatchNorm and small temperatures enlarge; in bf16 each rank rounds
its own share of a gradient."""


@dataclass
class Reference:
    """What one process has: losses by path ("" is the whole), the gradient by parameter; error: why there is none."""

    values: dict[str, Any]
    said: str
    losses: dict[str, float] = field(default_factory=dict)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    weight_norm: float = 0.0
    error: str = ""

    @property
    def norm(self) -> float:
        return _norm(self.gradient.values())

    def told(self) -> dict[str, Any]:
        """What other ranks have to know; rate: of a step of SGD that changes weights by as much as there is of them."""
        rate = self.weight_norm / self.norm if self.norm else 0.0
        return {"values": self.values, "norm": self.norm, "rate": rate, "error": self.error}


def references(recipe: Recipe, model: type[Recipe], world: int, device: torch.device) -> dict[str, Reference]:
    """By task, what plain PyTorch makes of it on `device`. To be called before a process group exists, by rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: _reference(recipe, values, model, world, device, f"{folder}/run")
                for name, values in tasks_alone(recipe).items()}  # fmt: skip


def _reference(recipe: Recipe, values: dict[str, Any], model: type[Recipe], world: int, device: torch.device,
               out: str) -> Reference:  # fmt: skip
    last: Reference | None = None  # of networks as they are: what a user can mend
    for made, said in smaller(recipe, values, world, out):
        try:
            return _plain(model.model_validate(made), Reference(made, said), device)
        except Exception as error:  # a network that cannot be so small; a task that needs more samples
            last = Reference(made, said, error=f"{type(error).__name__}: {first_line(error)}")
    assert last is not None
    return last


def _plain(recipe: Recipe, found: Reference, device: torch.device) -> Reference:
    recipe = recipe.model_copy(update={"zero": recipe.zero.model_copy(update={"stage": 0, "options": {}})})
    plan = _planned(recipe, 1)
    task = plan.objective.to(device)
    at, passes = _progress(recipe), []
    batches = [batch.to(device).data for batch in _batches(recipe, plan, 0, 1)]
    for data in _told(task, batches, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16):
            losses = task(data, at)
        (losses.total / plan.accum).backward()
        passes.append(losses)
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    found.losses = _numbers(passes)
    found.gradient = {name: torch.zeros_like(p, device="cpu") if p.grad is None else p.grad.detach().cpu()
                      for name, p in trained.items()}  # fmt: skip
    found.weight_norm = _norm(trained.values())
    return found


def _planned(recipe: Recipe, world: int) -> preflight.Plan:
    torch.manual_seed(recipe.seed)
    return preflight.plan(recipe, world)


def _progress(recipe: Recipe) -> Progress:
    """Half of the run: what begins at 0, or ends there, is there."""
    return Progress(recipe.steps // 2, recipe.steps)


def _batches(recipe: Recipe, plan: preflight.Plan, rank: int, world: int) -> list[Batch]:
    loader = MicroBatches(plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, recipe.seed, rank,
                          world, plan.accum, steps=recipe.steps)  # fmt: skip
    found = [loader[micro] for micro in range(plan.accum)]
    for batch in found:
        if isinstance(batch, Exception):
            raise batch
    return [batch for batch in found if isinstance(batch, Batch)]


def _told(task: Objective, passes: list[Any], device: torch.device) -> list[Any]:
    """The passes of a step of one process, each told how many of what its losses are means over a pass has."""
    if not isinstance(task, Counting) or not task.counting:
        return passes
    counts = [task.units(data) for data in passes]
    means = {key: torch.tensor(sum(each[key] for each in counts) / len(passes), device=device) for key in counts[0]}
    return [task.told(data, means) for data in passes]


def _numbers(passes: list[Losses]) -> dict[str, float]:
    rows = [{path: float(part.total.detach()) for path, part in losses.named()} for losses in passes]
    return {path: math.fsum(row[path] for row in rows) / len(rows) for path in rows[0]}


def _norm(tensors: Any) -> float:
    return math.sqrt(math.fsum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def compare_tasks(section: Diagnoses, model: type[Recipe], found: dict[str, Reference], device: torch.device) -> None:
    """A finding for each task, on rank 0. Collective. found: on rank 0 (elsewhere it does not matter).

    Raises:
        Parted: something failed in a collective; `section` says what, and nothing more can be asked of the ranks.
    """
    for name in distributed.from_main(list(found)):
        want = distributed.from_main(found[name].told() if name in found else {})
        if want["error"]:
            section.warn(name, f"not compared: {want['error']}", "`bigssl config check` says whether the recipe works")
        elif not want["norm"] or not math.isfinite(want["norm"]):
            section.fail(name, f"the norm of the gradient of one process is {want['norm']}",
                         "nothing is learnt from it: look at the loss of this task")  # fmt: skip
        else:
            _compare(section, name, model, want, found.get(name), device)
        gc.collect()


def _compare(section: Diagnoses, name: str, model: type[Recipe], want: dict[str, Any], reference: Reference | None,
             device: torch.device) -> None:  # fmt: skip
    world, problem, prepared = distributed.world(), "", None
    with tempfile.TemporaryDirectory() as folder:
        recipe = model.model_validate(want["values"] | {"out": f"{folder}/run"})
        try:
            plan = _planned(recipe, world)
            prepared = plan, _batches(recipe, plan, distributed.rank(), world)
        except Exception as error:  # files that this machine lacks, and others have
            problem = _raised(error)
    problems = [text for text in distributed.gather_objects(problem) if text]
    if problems or prepared is None:
        section.fail(name, f"on {world} ranks: {problems[0]}", "`bigssl plan` on that machine says more")
        return
    try:
        got = _on_ranks(recipe, *prepared, device, want["rate"])
    except Exception as error:
        section.fail(name, f"on {world} ranks: {_raised(error)}",
                     "the same fails in training: `bigssl train R steps=1 --ranks N` shows the traceback")  # fmt: skip
        raise Parted from error
    if reference is not None:
        _judge(section, name, recipe, reference, got)


def _raised(error: Exception) -> str:
    return f"rank {distributed.rank()} raised {type(error).__name__}: {first_line(error)}"


@dataclass
class _Ranks:
    losses: dict[str, float]
    gradient: dict[str, Tensor]
    precision: str
    local_norms: list[str]


def _on_ranks(
    recipe: Recipe, plan: preflight.Plan, batches: list[Batch], device: torch.device, rate: float
) -> _Ranks:
    """One step of plain SGD under DeepSpeed. What it changes of the weights, by `rate`, is the gradient at every ZeRO
    stage, in the place where an optimizer gets it. rate: such that weights change by as much as there is of them."""
    task = plan.objective
    task.constraints = lambda: []  # type: ignore[method-assign] # they move weights after the step
    if recipe.zero.stage < 3:
        task.to(device)
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([{"params": trained, "clip": 0.0, "clip_group": 0}], lr=rate)
    engine = zero.Engine(task, optimizer, recipe, micro=plan.micro, accum=plan.accum, bf16=plan.bf16)
    before = zero.full_state(task)
    counted = isinstance(task, Counting) and task.counting and plan.accum > 1
    passes = CountedPasses(engine, task, device) if counted else EachPass(engine)  # type: ignore[arg-type]
    done, at = list[Losses](), _progress(recipe)
    for batch in passes.begin(iter(batches), at):
        value, losses = passes(batch.to(device).data, at)
        engine.backward(value)
        engine.step()
        done.append(losses)
    mine = _numbers(done)
    sums = distributed.all_reduce_sum(torch.tensor(list(mine.values()), dtype=torch.float64, device=device))
    after = zero.full_state(task)
    gradient = {key: (before[key].double() - value.double()) / rate for key, value in after.items()
                if value.is_floating_point()}  # fmt: skip
    norms = [name for name, part in task.named_modules()
             if isinstance(part, BatchNorm) and not isinstance(part, GlobalBatchNorm)]  # fmt: skip
    means = dict(zip(mine, (sums / distributed.world()).tolist(), strict=True))
    return _Ranks(means, gradient, "bf16" if plan.bf16 else "fp32", norms)


def _judge(section: Diagnoses, name: str, recipe: Recipe, want: Reference, got: _Ranks) -> None:
    bounds, world, wrong = BOUNDS[got.precision], distributed.world(), list[str]()
    for path, value in want.losses.items():
        if not abs(got.losses[path] - value) <= bounds.loss * (abs(value) + 1e-2):
            wrong.append(f"loss{path} {got.losses[path]:.5g}, on one process {value:.5g}")
    pairs = [(got.gradient[key].flatten(), value.double().flatten()) for key, value in want.gradient.items()]
    inner = math.fsum(float(mine @ other) for mine, other in pairs)
    ratio = _norm(mine for mine, _ in pairs) / want.norm
    cosine = inner / (ratio * want.norm**2) if ratio else 0.0
    if not abs(ratio - 1) <= bounds.norm or not 1 - cosine <= bounds.angle:
        wrong.append(f"gradient {ratio:.4f} times as long, cosine {cosine:.5f}")
    where = f"{recipe.objective.name} on {world} rank{'s' * (world > 1)}, ZeRO {recipe.zero.stage}, {got.precision}"
    if not wrong:
        share = got.losses[""] / want.losses[""] if want.losses[""] else 1.0
        section.ok(name, f"{where}: loss {share:.5f} and gradient {ratio:.5f} times that of one process, cosine "
                   f"{cosine:.5f} ({want.said})")  # fmt: skip
    elif got.local_norms and world > 1:
        why = f"{got.local_norms[0]} is a BatchNorm of each rank's own samples"
        section.warn(name, f"{where}: {'; '.join(wrong)}: {why}",
                     "with_global_batch_norm (bigssl/nets/norm.py) makes one of all ranks")  # fmt: skip
    else:
        allowed = f"allowed: loss {bounds.loss:.1%}, length {bounds.norm:.0%}, 1 - cosine {bounds.angle:.1%}"
        section.fail(name, f"{where}: {'; '.join(wrong)} ({allowed}; {want.said})", _advice(ratio, world))


def _advice(ratio: float, world: int) -> str:
    """What a gradient that is `ratio` times too long is made by."""
    rule = "a loss has to be one whose mean over ranks is the loss of the whole batch (bigssl/distributed.py)"
    if world > 1 and math.isclose(ratio, world, rel_tol=0.05):
        return f"{rule}; this one is {world} times that: multiplied by the ranks once too often"
    if world > 1 and math.isclose(ratio, 1 / world, rel_tol=0.05):
        return f"{rule}; this one is a {world}th of that: divided by the ranks once too often"
    return rule


def local_device() -> torch.device:
    """This rank's, before there is a process group."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
