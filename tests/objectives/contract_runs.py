"""A preset as a run: by the driver's own loop on any ranks and at any stage, and by a plain loop in PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from bigssl import distributed, train
from bigssl.config.recipe import Recipe, recipe_model
from bigssl.data.loading.loader import MicroBatches
from bigssl.engine import loop, zero
from bigssl.engine.guards import NonFiniteLoss
from bigssl.engine.held import let_go
from bigssl.engine.optim import build_optimizer, schedule, set_learning_rate
from bigssl.engine.plan import preflight
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Losses, Objective, config_union, discover
from bigssl.objectives.counting import Counting
from bigssl.report.collapses import ALIKE, PREFIX, RANK
from bigssl.report.progress import ProgressBar

TWIN = "_2"
"""Name of a backbone of a preset and this: one of the same kind, for fields that name a backbone."""
DEMO = Path(__file__).parents[2] / "bigssl" / "demo"
STEPS, SIZE = 4, 8
HELD = 10  # records: what has lain below its line for as many, or for two of the spectra, is taken for collapsed
SETTINGS = ("lr", "initial_lr", "betas", "eps", "weight_decay")

# Against one process in the same precision: fp32 adds in another order on two ranks, which BatchNorm and small
# temperatures enlarge; a wrong convention errs by tens of percents.
SAME = {"fp32": 1e-3, "bf16": 1e-2}
# Of joint in bf16, stage 3 begins off by rounding (1.6e-5 of the loss on words, after a step), which clipping hands to
# all parts: its ResNet makes 1.01 % of it by the fourth step. Its first half has to be closer than that of others.
# Of captions that are heard, weights that are rounded to float32 otherwise (`round_otherwise`), and nothing else, move
# the plain loop's curve by 1.9 % in four steps of two passes, and its first half by 1 %.
LATER = {"joint": (2e-2, 1e-4), **dict.fromkeys(("audio_text", "audio_image"), (2e-2, SAME["bf16"]))}
# Only of two passes a step, rounding of weights moves inpainting by 1.4 % (of a spread, five seeds), its first half by
# .04 %; wav2vec2, which chooses codes, by 2.6 % in two of six seeds; Barlow Twins, whose BatchNorms then have four
# samples, by 27 % (of a part of the loss, four seeds), its first half by .8 %.
TWICE = {**dict.fromkeys(("inpainting", "wav2vec2"), (2e-2, SAME["bf16"])), "barlow_twins": (5e-2, SAME["bf16"])}
MOVED = 2.0
"""How much further from its reference a run in bf16 may be that went on on another number of ranks, which round their
gradients otherwise (seen: 1.4 % of SimCLR with one pass, 1.9 % with two)."""
# A rounding error that takes a ReLU over its kink leaves the loss as it is, but a gradient off by a percent, and what
# follows from it (seen: .8 % of the norm, .5 % of what a weight changed, at one of four steps on two ranks).
KINKS = 30


class Cell(NamedTuple):
    """Where a preset is trained. persistence: parameters smaller than this are whole on every rank at stage 3. accum:
    passes a step."""

    stage: int
    persistence: int | None
    world: int
    precision: str
    accum: int = 1

    def __str__(self) -> str:
        small = "" if self.persistence is None else f"-threshold{self.persistence}"
        passes = "" if self.accum == 1 else f"-{self.accum}passes"
        return f"zero{self.stage}{small}-{self.world}rank{'s' * (self.world > 1)}-{self.precision}{passes}"


PLACES = ((0, None), (1, None), (2, None), (3, 0), (3, None))
CELLS = [Cell(*place, world, dtype) for place in PLACES for world in (1, 2) for dtype in ("fp32", "bf16")]
EVERY = [cell._replace(accum=accum) for cell in CELLS for accum in (1, 2)]
"""The whole matrix; CI takes of CELLS, and two passes a step with a NaN among them."""
HARDEST = Cell(3, 0, 2, "fp32")
"""What a task is likeliest to get wrong: nothing but slices of its weights, half of the samples."""


def covering(names: list[str]) -> list[tuple[str, Cell]]:
    """Every name at HARDEST and at one more cell at least, every cell for some name. A cell's place among the others is
    that of a hash, so that a name does not get one dtype or one stage only."""
    shuffled = sorted(CELLS, key=lambda cell: zlib.crc32(str(cell).encode()))
    pairs = zip(range(max(len(names), len(CELLS))), itertools.cycle(names), itertools.cycle(shuffled))  # noqa: B905
    found = {(name, HARDEST) for name in names} | {(name, cell) for _, name, cell in pairs}
    return sorted(found, key=str)


@dataclasses.dataclass
class Run:
    """What came of a run on one rank.

    Attributes:
        passes: of each forward pass, its numbers by name: "loss", "loss/PART", "blind", "spread/NAME", "stats/NAME".
        norms: of the gradient, by step (of the steps that the loop recorded).
        start, state: whole weights, buffers, teachers and extra state by name, before and after.
        settings: of each parameter group at the end.
        notes: what the loop told the user, each after how many forward passes.
    """

    passes: list[dict[str, float]]
    norms: list[float]
    start: dict[str, Any]
    state: dict[str, Any]
    settings: list[dict[str, Any]]
    notes: list[tuple[int, str]] = dataclasses.field(default_factory=list)


def with_source(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """A preset's fields with every objective reading `source`."""
    if "parts" in fields:
        return {**fields, "parts": {name: with_source(part, source) for name, part in fields["parts"].items()}}
    return {**fields, "source": source}


def preset_recipe(
    name: str, section: Callable[[Any], Any], out: Path | str = "unused", **changes: Any
) -> dict[str, Any]:
    """The recipe, as YAML has it, that a preset stands for. section: a backbone's section from the preset's word."""
    preset = discover()[name].preset
    backbones = {key: section(kind).model_dump(exclude_defaults=True) for key, kind in preset["backbones"].items()}
    return {
        "name": name,
        "out": str(out),
        "steps": STEPS,
        "precision": "fp32",
        "objective": with_source({"name": name, **preset["objective"]}, "shards"),
        "backbones": backbones,
        "data": {"workers": 0, "sources": {"shards": {"url": str(DEMO / preset.get("data", "emoji/train"))}}},
        "batch": {"size": SIZE},
        # The large eps keeps an update proportional to its gradient: AdamW's usual one makes steps of one size of
        # rounding errors (a bias before BatchNorm has nothing else), and hides a wrong scale of the gradient.
        "optim": {"lr": 0.005, "eps": 1e-2, "weight_decay": 0.05, "clip": 2.0, "warmup": 2},
        "checkpoint": {"every": 2},
    } | changes


def at_cell(values: dict[str, Any], cell: Cell) -> dict[str, Any]:
    options = {} if cell.persistence is None else {"stage3_param_persistence_threshold": cell.persistence}
    split = {} if cell.accum == 1 else {"batch": {**values["batch"], "accum": cell.accum}}
    return values | split | {"precision": cell.precision, "zero": {"stage": cell.stage, "options": options}}


@functools.cache
def model() -> type[Recipe]:
    """Of any task's recipe; made once, which takes as long as a few steps."""
    return recipe_model(config_union())


def validated(values: dict[str, Any]) -> Recipe:
    return model().model_validate(values)


def numbers(losses: Losses) -> dict[str, float]:
    """Without the share of padding: each rank fills rows with what it has, and this changes nothing else."""
    found = {}
    for path, each in losses.named():
        found |= {f"loss{path}": each.total.item(), f"blind{path}": float(each.blind)}
        found |= {f"stats{path}/{name}": float(value) for name, value in each.stats.items() if name != "padding"}
        found |= {f"spread{path}/{name}": float(value) for name, value in each.spread.items()}
    return found


@contextlib.contextmanager
def exact_autocast() -> Iterator[None]:
    """Without the cache of casts, through which two uses of a weight would add their gradients in bfloat16 (at stage 3
    DeepSpeed goes around it and adds them in float32)."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    yield
    torch.set_autocast_cache_enabled(before)


def rest_of_state(task: Objective) -> dict[str, Any]:
    """Teachers, and what modules return from `get_extra_state`."""
    state = {
        f"teacher {name}: {key}": value.detach().cpu().clone()
        for name, teacher in task.teachers().items()
        for key, value in teacher.module.state_dict().items()
    }
    return state | {key: value for key, value in task.state_dict().items() if not isinstance(value, Tensor)}


def whole_state(task: Objective) -> dict[str, Any]:
    """Weights, buffers, teachers and extra state, what is shared by several names once."""
    return zero.full_state(task) | rest_of_state(task)


def settings_of(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: group[key] for key in SETTINGS if key in group} for group in groups]


# On ranks


def driven(
    values: dict[str, Any], poisoned: int | None = None, scramble: bool = False, export: bool = False, without: str = ""
) -> Run:
    """Train as train.py does, from the newest checkpoint of the folder if there is one. Collective.

    Args:
        poisoned: number of the forward pass, from 0, whose loss is NaN on the last rank.
        scramble: spoil all state first, so that nothing is right after a resume that was not loaded.
        export: export at the end.
        without: one of the task's guards, to be taken out first; the run ends once something has collapsed for good.
    """
    recipe = validated(values)
    plan = preflight.plan(recipe, preflight.announced_world())
    device = zero.start()
    passes: list[dict[str, float]] = []
    engines: list[zero.Engine] = []
    notes: list[tuple[int, str]] = []

    def note(bar: ProgressBar, text: str) -> None:
        notes.append((len(passes), text))

    def watch(module: nn.Module, arguments: tuple[Any, ...], losses: Losses | dict[str, Tensor]) -> Losses | None:
        if isinstance(losses, dict):  # embeddings, of which the loop makes losses (batch.cached)
            return None
        if without and has_collapsed(notes, passes, without.rpartition("/")[0]):
            raise Collapsed
        here = poisoned == len(passes) and distributed.rank() == distributed.world() - 1
        passes.append(numbers(losses))
        return losses._replace(total=losses.total * float("nan")) if here else None

    class Kept(zero.Engine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            engines.append(self)

    plan.objective.register_forward_hook(watch)
    if scramble:
        scrambled(plan.objective)
    if without:
        plan.objective.guards()[without]()
    with contextlib.ExitStack() as stack:
        stack.callback(let_go)  # another process of the crew may go on in this folder
        stack.enter_context(exact_autocast())
        stack.enter_context(mock.patch.object(loop, "Engine", Kept))
        stack.enter_context(mock.patch.object(ProgressBar, "note", note))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        with contextlib.suppress(NonFiniteLoss, Collapsed):
            loop.train(recipe, plan, device, None)
        if export:
            train._export(recipe, plan)
    norms = [row["optim/grad_norm"] for row in loop.read_metrics(recipe.folder)] if distributed.is_main() else []
    return Run(passes, norms, {}, whole_state(plan.objective), settings_of(engines[0].groups), notes)


class Collapsed(Exception):
    """The end of a run whose guard was taken out."""


def has_collapsed(notes: list[tuple[int, str]], passes: list[dict[str, float]], part: str) -> bool:
    """Whether something of `part`, and nothing else, lies where the loop has named it, and for so long that it is no
    dip: HELD records, or two of the spectra."""
    since: dict[str, int] = {}
    for name, _, rest in (text.partition(": collapsed ") for _, text in notes if ": collapsed " in text):
        if rest.startswith("since step "):
            since[name] = int(rest.split()[2].rstrip(":"))
        else:
            since.pop(name, None)
    low = {key.removeprefix(PREFIX) for key in passes[-1] if key.startswith(PREFIX)
           and sum(row[key] for row in passes[-HELD:]) / HELD < ALIKE} if len(passes) >= HELD else set()  # fmt: skip
    of_rank = {name for name in since if name.startswith(RANK)}
    held = {name for name in of_rank if len(passes) - since[name] >= loop.SPECTRA}
    held |= {name for name in low & since.keys() if len(passes) - since[name] >= HELD}
    return bool(held) and all(name.removeprefix(RANK).startswith(part) for name in {*since, *low})


@torch.no_grad()
def scrambled(task: Objective) -> None:
    """Other weights, teachers and saved buffers than those a seed gives."""
    modules = [task, *(teacher.module for teacher in task.teachers().values())]
    for tensor in itertools.chain.from_iterable(module.state_dict().values() for module in modules):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor.add_(0.37)
        elif isinstance(tensor, Tensor):
            tensor.add_(1)


# In one process


def plain(
    values: dict[str, Any], spared: int | None = None, device: str = "cpu", rounded: int | None = None
) -> Run:  # fmt: skip
    """The same steps over the same global batches by PyTorch alone: AdamW, clipping, and the teachers' rule by hand.

    Args:
        spared: a step that moves nothing.
        rounded: by this seed, weights begin off by what rounding to float32 may do to them.
    """
    recipe = validated(values | {"zero": {"stage": 0}})
    plan = preflight.plan(recipe, 1)
    task, passes, norms = plan.objective.to(device), [], []
    start = whole_state(task)
    optimizer = build_optimizer(task, recipe.optim)
    assert type(optimizer) is torch.optim.AdamW
    trained = [p for p in task.parameters() if p.requires_grad]
    if rounded is not None:
        round_otherwise(trained, rounded)
    loader = MicroBatches(plan.streams, plan.sizes, task.prepare, task.assemble, recipe.seed, 0, 1, plan.accum,
                          steps=recipe.steps)  # fmt: skip
    for step in range(recipe.steps):
        at = Progress(step, recipe.steps)
        set_learning_rate(optimizer.param_groups, schedule(recipe.optim, step, recipe.steps))
        optimizer.zero_grad()
        batches = [loader[step * plan.accum + micro].to(device).data for micro in range(plan.accum)]
        for data in counted(task, batches):
            with exact_autocast(), torch.autocast(device, torch.bfloat16, enabled=plan.bf16):
                losses = task(data, at)
            (losses.total / plan.accum).backward()
            passes.append(numbers(losses))
        norms.append(float(nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])))
        for members, most in clipped(optimizer):
            nn.utils.clip_grad_norm_(members, most)
        if step != spared:
            optimizer.step()
            constrain(task)
            move_teachers(task, at)
    return Run(passes, norms, start, whole_state(task), settings_of(optimizer.param_groups))


@torch.no_grad()
def round_otherwise(parameters: list[nn.Parameter], seed: int) -> None:
    """Each number off by half of float32's last place, in the mean."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.mul_(1 + 2**-24 * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def counted(task: Objective, passes: list[Any]) -> list[Any]:
    """The passes of a step of one process, each told how many of what its losses are means over a pass has."""
    if not isinstance(task, Counting) or not task.counting:
        return passes
    counts = [task.units(data) for data in passes]
    means = {key: torch.tensor(sum(each[key] for each in counts) / len(passes)) for key in counts[0]}
    return [task.told(data, means) for data in passes]


def clipped(optimizer: torch.optim.Optimizer) -> Iterator[tuple[list[Any], float]]:
    """Parameters that are clipped by one norm, and to which."""
    for number in sorted({group["clip_group"] for group in optimizer.param_groups}):
        groups = [group for group in optimizer.param_groups if group["clip_group"] == number]
        if groups[0]["clip"]:
            yield [parameter for group in groups for parameter in group["params"]], groups[0]["clip"]


@torch.no_grad()
def constrain(task: Objective) -> None:
    for constraint in task.constraints():
        for parameter in constraint.parameters:
            parameter.copy_(constraint.function(parameter))


def on_one_batch(task: Objective, batch: Any, steps: int = 60) -> tuple[Tensor, Losses]:
    """The loss of a first and all losses of a last step of training on nothing but `batch`."""
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    first: Tensor | None = None
    for step in range(steps):
        optimizer.zero_grad()
        losses = task(batch, Progress(step, steps))
        first = losses.total.detach() if first is None else first
        losses.total.backward()
        optimizer.step()
        move_teachers(task, Progress(step, steps))
    assert first is not None
    return first, losses


@torch.no_grad()
def move_teachers(task: Objective, at: Progress) -> None:
    """m · teacher + (1 − m) · student for every parameter of every teacher."""
    for teacher in task.teachers().values():
        momentum = teacher.momentum(at) if callable(teacher.momentum) else teacher.momentum
        students = dict(teacher.student.named_parameters())
        for name, parameter in teacher.module.named_parameters():
            parameter.copy_(momentum * parameter + (1 - momentum) * students[name])


def first_half(run: Run) -> Run:
    """A whole run's losses and norms until the middle, and its state at the end."""
    half = len(run.passes) // 2
    return dataclasses.replace(run, passes=run.passes[:half], norms=run.norms[: len(run.norms) // 2])


def unit_of_mean(key: str, state: dict[str, Any]) -> float:
    """What a running mean may be off by at least: after a projection of what is centred it is nothing but rounding."""
    if not key.endswith("running_mean"):
        return 0.0
    return 1e-3 * state[key.removesuffix("mean") + "var"].max().item() ** 0.5


def allowed(name: str, cell: Cell, moved: bool) -> tuple[float, float | None]:
    """How far the curve may be from its reference, and the first half of a run on one rank, where that is held closer.
    moved: it went on from `cell` on another number of ranks."""
    if cell.precision != "bf16":
        return SAME[cell.precision], None
    known = LATER | (TWICE if cell.accum > 1 else {})
    bound, begun = known.get(name, (SAME["bf16"], None))
    bound *= cell.accum**0.5  # a pass has as many times fewer samples, over which errors of rounding average
    return bound * (MOVED if moved else 1), begun


def distance(got: Run, want: Run, of_state: Run, coarse: bool = False) -> tuple[float, float, str]:
    """Largest difference of the loss curves (relative) and of the states (relative to the change of each tensor), and
    where. of_state: the run that knows where the state began. coarse: in bf16, where running means are compared in
    thousandths of their deviation, too."""
    curve = {}
    for row, wanted in zip(got.passes, want.passes[-len(got.passes) :], strict=True):
        assert row.keys() == wanted.keys()
        for key, value in wanted.items():
            curve[key] = max(curve.get(key, 0.0), abs(row[key] - value) / (abs(value) + 1e-2))
    for value, wanted in zip(got.norms, want.norms[-len(got.norms) :] if got.norms else [], strict=True):
        curve["gradient norm"] = max(curve.get("gradient norm", 0.0), abs(value - wanted) / (wanted + 1e-2) / KINKS)
    assert got.state.keys() == want.state.keys()
    state = {}
    for key, value in want.state.items():
        if not isinstance(value, torch.Tensor):
            assert got.state[key] == value, key
        elif value.numel():
            error = (got.state[key].double() - value.double()).abs().max().item()
            change = (value.double() - of_state.start[key].double()).abs().max().item()
            unit = unit_of_mean(key, want.state) if coarse else 0.0
            rounding = 4e-6 * (1 + value.double().abs().max().item())
            state[key] = max(error - rounding, 0.0) / (change + 1e-4 + unit)
    worst = max(curve, key=lambda key: curve[key]), max(state, key=lambda key: state[key])
    return curve[worst[0]], state[worst[1]], " and ".join(worst)
