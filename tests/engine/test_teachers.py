"""Teachers move once per applied step at every stage, are saved whole, and are exported and judged as networks."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel

from bigssl import distributed
from bigssl import train as driver
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import CheckpointConfig, Recipe
from bigssl.data.loading.loader import make_loader
from bigssl.engine import loop, zero
from bigssl.engine.checkpoint import CheckpointError, CheckpointStore
from bigssl.engine.optim import build_optimizer, schedule, set_learning_rate
from bigssl.engine.plan import preflight
from bigssl.engine.plan.checks import draft
from bigssl.engine.plan.memory import memory
from bigssl.engine.teaching import FILE, teach
from bigssl.nets.ema import Ema
from bigssl.nets.norm import GlobalBatchNorm
from bigssl.nets.progress import Progress
from bigssl.objectives.base import build

BYOL = {"name": "byol", "source": "emoji", "hidden": 16, "dim": 8, "momentum": 0.7}
VAL = str(Path(loop.__file__).parents[1] / "demo" / "emoji" / "val")
ALL = {"stage3_param_persistence_threshold": 0}  # slices small layers too
STAGES: list[tuple[int, dict[str, Any]]] = [(0, {}), (1, {}), (2, {}), (3, ALL), (3, {})]
State = dict[str, Tensor]


def taught(teachers: dict[str, Ema]) -> State:
    return {f"{name} {key}": v.clone() for name, ema in teachers.items() for key, v in ema.module.state_dict().items()}


def differing(got: State, want: State) -> tuple[float, str]:
    """The largest difference of two states relative to max(1, |value|), and where it is."""
    assert got.keys() == want.keys(), got.keys() ^ want.keys()
    pairs = {key: (got[key].double(), value.double()) for key, value in want.items()}
    worst = {key: ((a - b).abs() / b.abs().clamp(min=1)).max().item() for key, (a, b) in pairs.items()}
    name = max(worst, key=lambda key: worst[key])
    return worst[name], name


def distance(got: State, want: State) -> float:
    return math.sqrt(sum((got[key].double() - value.double()).square().sum().item() for key, value in want.items()))


# --- once per applied step ---


class Small(nn.Module):
    """A student with a frozen layer and BatchNorm, and what comes after it. The loss is a function of the teacher."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(6, 9, bias=False), GlobalBatchNorm(9), nn.Linear(9, 5))
        self.student.append(nn.Linear(5, 4).requires_grad_(False))
        self.last = nn.Linear(4, 4)
        self.slow = Ema(self.student, lambda at: 0.5 + 0.05 * at.step)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.slow.module(x)
        loss: Tensor = (self.last(self.student(x)) - wanted).square().mean()
        return loss


def moves(recipes: list[Recipe]) -> list[list[tuple[bool, float, str]]]:
    """By recipe and call of step(): was it applied; how far is the teacher from the formula, or from where it was.

    Two passes a step; the gradient of one step is NaN on one rank.
    """
    zero.start()
    found = []
    for recipe in recipes:
        network = Small()
        optimizer = build_optimizer(network, recipe.optim)
        engine, calls = zero.Engine(network, optimizer, recipe, micro=4, accum=2, bf16=False), []
        teachers = {"slow": network.slow}
        for call in range(8):
            step = call // 2
            x = torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * call + distributed.rank()))
            loss = engine(x)
            engine.backward(loss * math.nan if step == 2 and distributed.is_main() else loss)
            engine.step()
            before = taught(teachers)
            if engine.applied:
                teach(teachers, Progress(step, 4))
            want = dict(before)
            with zero.gathered(network.student.parameters()):
                followed = {key: value.detach().clone() for key, value in network.student.named_parameters()}
            m = 0.5 + 0.05 * step
            for key, value in followed.items():
                if call % 2 and step != 2:
                    want[f"slow {key}"] = m * before[f"slow {key}"] + (1 - m) * value
            calls.append((engine.applied, *differing(taught(teachers), want)))
        found.append(calls)
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2])
def test_a_teacher_moves_exactly_once_per_step_that_changed_weights(world: int, ranks: Any, recipe: Any) -> None:
    recipes = [recipe(zero={"stage": stage, "options": options}) for stage, options in STAGES]
    for found in ranks(moves, world, recipes):
        for (stage, options), calls in zip(STAGES, found, strict=True):
            applied = [False, True, False, True, False, False, False, True]  # the third step is the NaN
            assert [was for was, _, _ in calls] == applied, (stage, options)
            worst, where = max(each[1:] for each in calls)
            assert worst <= 2e-7, (stage, options, where)


# --- byol, whole state ---


def byol(recipe: Any, out: Path, stage: int, options: dict[str, Any], precision: str = "fp32", **changes: Any) -> Any:
    """eps: of Adam, so that a gradient of the size of rounding errors is no step of full length."""
    optim = {"lr": 0.01, "warmup": 2, "eps": 1e-4}
    zero_stage = {"stage": stage, "options": options}
    return recipe(out, objective=BYOL, zero=zero_stage, precision=precision, optim=optim, **changes)


def plain(recipe: Recipe) -> State:
    """The reference: one process, plain PyTorch, the teacher by its formula in fp32."""
    whole = recipe.zero.model_copy(update={"stage": 0, "options": {}})
    plan = preflight.plan(recipe.model_copy(update={"zero": whole}), 1)
    task = plan.objective
    optimizer = build_optimizer(task, recipe.optim)
    loader = make_loader(plan.streams, plan.sizes, task.prepare, task.assemble, seed=recipe.seed, rank=0, world=1,
                         accum=plan.accum, workers=0, start_step=0, stop_step=recipe.steps, device_pin=False,
                         warn_after=0, abort_after=0)  # fmt: skip
    batches = iter(loader)
    for step in range(recipe.steps):
        set_learning_rate(optimizer.param_groups, schedule(recipe.optim, step, recipe.steps))
        optimizer.zero_grad()
        for batch in itertools.islice(batches, plan.accum):
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
                loss = task(batch.data, Progress(step, recipe.steps)).total
            (loss / plan.accum).backward()
        nn.utils.clip_grad_norm_(task.parameters(), recipe.optim.clip)
        optimizer.step()
        m = 1 - 0.3 * (math.cos(math.pi * step / recipe.steps) + 1) / 2
        (ema,) = task.teachers().values()
        online = dict(task.online.named_parameters())
        with torch.no_grad():
            for name, value in ema.module.named_parameters():
                value.copy_(m * value + (1 - m) * online[name])
    return dict(task.state_dict()) | taught(task.teachers())


def whole_state(recipe: Recipe) -> State:
    """After training as train.py does; on rank 0."""
    plan = preflight.plan(recipe, preflight.announced_world())
    loop.train(recipe, plan, zero.start(), None)
    state = zero.full_state(plan.objective)
    return state | taught(plan.objective.teachers()) if state else {}


def many(recipes: list[Recipe]) -> list[State]:
    return [whole_state(recipe) for recipe in recipes]


@pytest.mark.distributed
def test_two_passes_a_step_move_the_teacher_once(tmp_path: Path, ranks: Any, recipe: Any) -> None:
    used = [byol(recipe, tmp_path / name, 3, ALL, batch={"size": 8, "accum": 2}) for name in ("plain", "run")]
    worst, where = differing(ranks(whole_state, 1, used[1])[0], ranks(plain, 1, used[0])[0])
    assert worst <= 5e-5, (where, worst)  # running statistics, whose sums are made in another order


@pytest.mark.distributed
def test_a_teacher_goes_on_at_another_stage_and_number_of_ranks(tmp_path: Path, ranks: Any, recipe: Any) -> None:
    """1 rank at stage 3, 2 at stage 0, 1 at stage 2: the whole state of a run that never stopped. The same ranks and
    stage again: to the bit."""

    def part(out: str, world: int, stage: int, options: dict[str, Any]) -> State:
        used = byol(recipe, tmp_path / out, stage, options, checkpoint={"every": 2, "keep": 9})
        return ranks(whole_state, world, used)[0]  # type: ignore[no-any-return]

    def back_to(step: int) -> None:
        for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)

    whole = part("whole", 1, 3, ALL)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    back_to(2)
    again = part("run", 1, 3, ALL)
    assert all(torch.equal(again[key], value) for key, value in whole.items())
    back_to(2)
    part("run", 2, 0, {})
    back_to(4)
    worst, where = differing(part("run", 1, 2, {}), whole)
    assert worst <= 5e-6, (where, worst)


# --- in checkpoints ---


class Nothing:
    """In place of an engine."""

    def save(self, folder: Path) -> None:
        (folder / "layout.json").write_text("{}")

    def load(self, folder: Path) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Any:
    def make(**teachers: nn.Module) -> CheckpointStore:
        emas = {name: Ema(module, 0.5) for name, module in teachers.items()}
        return CheckpointStore(tmp_path, CheckpointConfig(keep=9), {"world": 1}, print, emas)

    return make


@pytest.mark.parametrize(
    ("saved", "mine", "words"),
    [
        ({}, {"slow": nn.Linear(2, 3)}, "teachers none in the checkpoint, slow in this run"),
        ({"slow": nn.Linear(2, 3)}, {}, "teachers slow in the checkpoint, none in this run"),
        ({"slow": nn.Linear(2, 3)}, {"views/slow": nn.Linear(2, 3)}, "teachers slow in .*, views/slow in this run"),
        ({"slow": nn.Linear(2, 3)}, {"slow": nn.Linear(2, 4)}, "2 tensors of teacher slow differ, the first bias: "),
        ({"slow": nn.Linear(2, 3)}, {"slow": nn.Linear(2, 3, bias=False)}, "1 tensors of teacher slow differ, .*bias"),
    ],
)
def test_a_checkpoint_of_other_teachers_is_refused_in_one_sentence(
    saved: dict[str, nn.Module], mine: dict[str, nn.Module], words: str, store: Any
) -> None:
    engine: Any = Nothing()
    store(**saved).save(engine, 2)
    with pytest.raises(CheckpointError, match=f"^step-00000002 is of other networks: {words}.*another `out` folder$"):
        store(**mine).resume(engine)


def test_a_damaged_teacher_is_seen_and_the_checkpoint_before_is_taken(tmp_path: Path, store: Any, capsys: Any) -> None:
    engine: Any = Nothing()
    first, second = store(slow=nn.Linear(2, 3)), store(slow=nn.Linear(2, 3))
    first.save(engine, 2)
    second.save(engine, 4)
    file = tmp_path / "step-00000004" / FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    resumed = store(slow=nn.Linear(2, 3))
    assert resumed.resume(engine) == 2 and f"{FILE} does not match its sha256" in capsys.readouterr().out
    got, want = taught(resumed._teachers), taught(first._teachers)
    assert differing(got, want)[0] == 0 and differing(taught(second._teachers), want)[0] > 0


# --- on paper, in words, and afterwards ---


def test_a_teacher_of_a_frozen_backbone_is_refused(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frozen(config: Any, towers: Any) -> Any:
        towers["image"].requires_grad_(False)
        return build(config, towers)

    monkeypatch.setattr(preflight, "build", frozen)
    used = byol(recipe, tmp_path / "run", 0, {})
    with pytest.raises(ConfigError, match=r"^backbones\.image: all of it is frozen, but teacher 'target'") as caught:
        preflight.plan(used, 1)
    assert draft(used, 1, per_node=1, device_bytes=None).failures == [str(caught.value)]


def test_a_backbone_of_the_name_of_a_teacher_is_refused(recipe: Any, joint: Any, tmp_path: Path) -> None:
    parts = {"slow": BYOL, "other": {"name": "simclr", "source": "emoji", "backbone": "image_teacher"}}
    image = recipe().backbones["image"].model_dump()
    used = recipe(tmp_path / "run", objective={"name": "joint", "parts": parts},
                  backbones={"image": image, "image_teacher": image})  # fmt: skip
    with pytest.raises(ConfigError, match=r"backbones\.image_teacher: the objective exports a network of this name"):
        preflight.plan(used, 1)


def test_the_plan_knows_what_a_teacher_takes(recipe: Any, tmp_path: Path) -> None:
    """Whole at every stage, at the start and in a checkpoint; and its forward pass is no reason not to count."""
    used = byol(recipe, tmp_path / "run", 3, ALL)
    task = preflight.plan(used, 1).objective
    module = task.teachers()["target"].module
    size = sum(t.nbytes for t in [*module.parameters(), *module.buffers()])
    assert size > 0
    for stage in (0, 1, 2, 3):
        assert memory(task, used, stage=stage, world=8, accum=1, bf16=False).device["teachers"] == size
    online = sum(t.nbytes for t in [*task.parameters(), *task.buffers()])
    paper = draft(used, 1, per_node=1, device_bytes=None)
    assert paper.failures == [] and paper.memory[0].construction == online + size
    assert paper.activations is not None and not paper.activations.unknown and not paper.activations.partly
    assert paper.activations.bytes > 0 and paper.disk["checkpoint"] > size


def watched(recipe: Recipe, spreads: list[float]) -> None:
    """Train with these spreads, one a step."""
    values = iter([spread for spread in spreads for _ in range(2)])  # once for the task, once for its health
    train = loop.train

    def watching(*arguments: Any) -> loop.Outcome:
        distributed.spread = lambda z: torch.tensor(next(values))  # type: ignore[assignment]
        return train(*arguments)

    loop.train = watching  # the look at the data comes before it
    whole_state(recipe)


@pytest.mark.distributed
def test_a_collapse_is_said_while_it_happens_and_shown_in_the_report(
    tmp_path: Path, ranks: Any, recipe: Any, capfd: Any
) -> None:
    ranks(watched, 1, byol(recipe, tmp_path / "run", 0, {}), [0.8, 0.05, 0.04, 0.3, 0.7, 0.01])
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("projections: ")]
    assert len(said) == 6 - 1  # three while it happens, two of them again at the end
    assert said[0].startswith("projections: collapsed since step 2:")
    assert said[1] == said[3] == "projections: collapsed at step 2, no longer at step 4"
    assert said[2] == said[4] and "since step 6" in said[2]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["spread/projections"] for row in rows] == pytest.approx([0.8, 0.05, 0.04, 0.3, 0.7, 0.01])
    page = driver.write_report(tmp_path / "run").read_text()
    assert "collapsed since step 6" in page and "spread (0 = collapsed" in page


def run_and_export(recipe: Recipe) -> State:
    """As train.py, with the probe; what the teacher is."""
    plan = preflight.plan(recipe, preflight.announced_world())
    device = zero.start()
    loop.train(recipe, plan, device, driver.live_probe(recipe, plan, device, driver.Team()))
    driver._export(recipe, plan)
    zero.stop()
    return dict(plan.objective.teachers()["target"].module.get_submodule("tower.model").state_dict())


@pytest.mark.distributed
def test_a_teacher_is_probed_and_exported_as_a_network_of_its_own(tmp_path: Path, ranks: Any, recipe: Any) -> None:
    near = {"task": "knn", "bank": VAL, "queries": VAL, "bank_limit": 64, "query_limit": 30, "batch": 16,
            "label": "category"}  # fmt: skip
    used = byol(recipe, tmp_path / "run", 3, ALL, probe={"every": 3, "near": {**near, "backbone": "image_teacher"}})
    teacher = ranks(run_and_export, 2, used)[0]
    folder = tmp_path / "run" / "export"
    assert AutoImageProcessor.from_pretrained(folder / "image_teacher").crop_size["height"] == 16
    loaded, student = (AutoModel.from_pretrained(folder / name).state_dict() for name in ("image_teacher", "image"))
    assert all(torch.equal(loaded[key], value) for key, value in teacher.items() if key in loaded)
    assert len(loaded) == len(teacher) and any(not torch.equal(student[key], value) for key, value in loaded.items())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "probe/near" in row] == [3, 6]
    wrong = {"every": 3, "near": {**near, "backbone": "image_teecher"}}
    with pytest.raises(ConfigError, match=r"probe\.near\.backbone: .*image_teecher.*; nearest: image_teacher"):
        preflight.plan(byol(recipe, tmp_path / "x", 0, {}, probe=wrong), 1)
