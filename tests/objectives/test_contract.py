"""What every pretext task promises of its loss, in one process. A new file in bigssl/objectives is tested here without
an edit: all that is known of it is its `preset` and what its class says of itself."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import contract_runs as runs
import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bigssl.cli.main import main
from bigssl.config.errors import ConfigError
from bigssl.config.section import Section
from bigssl.data.loading.collate import Ragged
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import More, as_it_is
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective, discover

AT = Progress(10, 100)

TASKS = sorted(discover().items())
each_task = pytest.mark.parametrize(("name", "kind"), TASKS, ids=[name for name, _ in TASKS])
SIMPLE = [(name, kind) for name, kind in TASKS if not kind.__dict__.get("composite")]  # a joint task is its parts
each_simple_task = pytest.mark.parametrize(("name", "kind"), SIMPLE, ids=[name for name, _ in SIMPLE])


def gradients(objective: Objective, batch: Any, at: Progress = AT) -> tuple[Losses, dict[str, Tensor]]:
    objective.zero_grad()
    losses = objective(batch, at)
    losses.total.backward()
    return losses, {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


@torch.no_grad()
def value(task: Objective, batch: Any, at: Progress = AT) -> float:
    """The loss, with buffers left as they are."""
    modules = [task, *(teacher.module for teacher in task.teachers().values())]
    before = [{name: buffer.clone() for name, buffer in module.named_buffers()} for module in modules]
    total = task(batch, at).total.item()
    for module, buffers in zip(modules, before, strict=True):
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
    return total


def fields(batch: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Tensors of a batch with a row for each sample, but for the seeds."""
    for name, item in batch.items():
        if isinstance(item, dict):
            yield from fields(item, (*path, name))
        elif isinstance(item, Tensor) and item.dim() and name != SEEDS:
            yield (*path, name), item


def replaced(batch: Any, path: tuple[str, ...], tensor: Tensor) -> Any:
    head, *rest = path
    return {**batch, head: replaced(batch[head], tuple(rest), tensor) if rest else tensor}


def views_of(batch: Any) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs of fields that hold two views of the same samples: signals of one shape."""
    signals = [(path, t) for path, t in fields(batch) if t.dtype == torch.uint8 or t.is_floating_point()]
    pairs = [(a, b) for i, a in enumerate(signals) for b in signals[i + 1 :]]
    return [(p, q) for (p, a), (q, b) in pairs if a.shape == b.shape and a.dtype == b.dtype and p[:-1] == q[:-1]]


@torch.no_grad()
def moves_the_loss(task: Objective, batch: Any, tensors: list[Tensor]) -> bool:
    """Whether the loss is another where `tensors` are."""
    before, kept = value(task, batch), [tensor.clone() for tensor in tensors]
    generator = torch.Generator().manual_seed(1)
    for tensor in tensors:
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.add_(noise if tensor.is_floating_point() else noise.abs().ceil().to(tensor.dtype))
    after = value(task, batch)
    for tensor, old in zip(tensors, kept, strict=True):
        tensor.copy_(old)
    return abs(after - before) > 1e-6 * abs(before) or after != after


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold parameters themselves."""
    return ((name, m) for name, m in module.named_modules() if next(m.parameters(recurse=False), None) is not None)


@each_task
def test_the_preset_is_a_recipe_that_can_be_checked_and_planned(
    name: str, kind: type[Objective], recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(name, tmp_path / "run")))
    for command in (["config", "check", str(path)], ["plan", "--config", str(path)]):
        assert main([*command, "--world", "2"]) == 0, capsys.readouterr()


@each_simple_task
def test_a_backbone_that_is_not_what_the_task_takes_is_refused(
    name: str, kind: type[Objective], objective: Any
) -> None:
    """`takes` has a field for each backbone of the preset; there, one that takes something else is refused."""
    config = objective(kind, name).config
    assert {getattr(config, field) for field in kind.takes} == set(kind.preset["backbones"])
    for field, needs in kind.takes.items():
        beside = {"stranger": "bert" if needs.modality == "image" else "vit"}
        with pytest.raises(ConfigError, match=f"^objective.{field}: backbone 'stranger': it is not an? "):
            objective(kind, name, beside=beside, **{field: "stranger"})


@each_simple_task
def test_a_first_run_has_a_value_for_every_field(name: str, kind: type[Objective]) -> None:
    """`starts` gives those that a section of a recipe needs, all of them fields, none of them a backbone."""
    given = kind.config_type(name, {}).model_validate({"name": name, "source": "data", **kind.starts})
    assert not set(kind.starts) & {"name", "source", *kind.takes}
    same = [field for field in kind.starts if getattr(given, field) == type(given).model_fields[field].default]
    assert not same, f"starts: {same} are the defaults"


# Teachers


def hidden_networks(thing: Any, seen: set[int], depth: int = 4) -> Iterator[nn.Module]:
    """Modules that are reached through attributes of our own classes, registered or not."""
    if id(thing) in seen or depth == 0:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        inner = list(thing.children()) + [v for k, v in vars(thing).items() if not k.startswith("_")]
    elif isinstance(thing, list | tuple | dict):
        inner = list(thing.values() if isinstance(thing, dict) else thing)
    elif type(thing).__module__.startswith("bigssl"):
        inner = list(getattr(thing, "__dict__", {}).values())
    else:
        return
    for each in inner:
        yield from hidden_networks(each, seen, depth - 1 + isinstance(thing, nn.Module))


@each_task
def test_every_network_is_trained_or_a_teacher(name: str, kind: type[Objective], objective: Any) -> None:
    """A copy that nobody moves stays what it was at the start; one that is listed twice moves twice."""
    task = objective(kind, name)
    moved = [id(p) for teacher in task.teachers().values() for p in teacher.module.parameters()]
    assert len(moved) == len(set(moved)), "a teacher is moved twice"
    trained = [p for p in task.parameters() if p.requires_grad and p.numel() > 1 and p.std() > 0]
    for key, parameter in task.named_parameters():
        if not parameter.requires_grad:
            twins = [p for p in trained if p.shape == parameter.shape and torch.equal(p, parameter)]
            assert not twins, f"{key}: a frozen copy of what is trained, and no teacher's"
    known = {id(p) for p in task.parameters()} | set(moved)
    for network in hidden_networks(task, set()):
        for key, parameter in network.named_parameters():
            assert id(parameter) in known, f"{type(network).__name__}.{key}: neither trained nor a teacher's"


@each_task
def test_teachers_are_slow_copies_of_what_is_trained(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    task = objective(kind, name)
    trained = {id(p) for p in task.parameters()}
    for key, teacher in task.teachers().items():
        students = dict(teacher.student.named_parameters())
        twins = dict(teacher.module.named_parameters())
        assert students.keys() == twins.keys(), key
        assert any(p.requires_grad for p in students.values()), f"{key}: its student is frozen"
        for path, student in students.items():
            assert id(student) in trained, f"{key}: {path} of its student is no part of the task"
            assert torch.equal(twins[path], student) and twins[path].data_ptr() != student.data_ptr()
        curve = [momenta(task, Progress(step, 100))[key] for step in range(100)]
        assert all(0.5 <= momentum <= 1 for momentum in curve), f"{key}: it keeps {curve[0]} of itself a step"
        assert curve == sorted(curve) and curve[0] < 1, f"{key}: {curve[0]} to {curve[-1]}"


@each_task
def test_targets_come_from_the_teacher(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    """Every layer of it whose twin is trained counts, and no gradient passes through it."""
    task = objective(kind, name)
    data = batch(task)
    for key, teacher in task.teachers().items():
        trained = dict(layers(teacher.student))
        graphs: list[bool] = []
        handle = teacher.module.register_forward_hook(
            lambda m, a, out, graphs=graphs: graphs.extend(tensor.requires_grad for tensor in tree_leaves(out))
        )
        task(data, AT)
        handle.remove()
        assert not any(graphs), f"{key}: a graph is made through it"
        for path, layer in layers(teacher.module):
            if all(p.requires_grad for p in trained[path].parameters(recurse=False)):
                own = list(layer.parameters(recurse=False))
                assert moves_the_loss(task, data, own), f"{key}.{path}: no target depends on it"


# Gradients and state


@each_task
def test_gradients_reach_every_trainable_parameter_and_nothing_else(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    task = objective(kind, name)
    _, grads = gradients(task, batch(task))
    for parameter_name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert parameter_name in grads, f"{parameter_name} is trained, but the loss does not depend on it"
            assert grads[parameter_name].isfinite().all() and grads[parameter_name].any(), parameter_name
        else:
            assert parameter_name not in grads
    for teacher in task.teachers().values():
        assert not any(p.requires_grad or p.grad is not None for p in teacher.module.parameters())


@each_task
def test_every_layer_and_buffer_is_used(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    """In the heads; a tower may have layers that its features do not pass through, which are frozen."""
    task = objective(kind, name)
    data = batch(task)
    towers = [module for module in task.modules() if isinstance(module, Tower)]
    inside = {id(tensor) for tower in towers for tensor in [*tower.parameters(), *tower.buffers()]}
    for layer_name, layer in layers(task):
        own = [p for p in layer.parameters(recurse=False) if id(p) not in inside]
        if any(p.requires_grad for p in own):
            assert moves_the_loss(task, data, own), f"{layer_name}: the loss does not depend on it"
    before = {key: buffer.clone() for key, buffer in task.named_buffers()}
    task(data, AT)
    for key, buffer in task.named_buffers():
        if id(buffer) not in inside and torch.equal(before[key], buffer):
            assert moves_the_loss(task, data, [buffer]), f"buffer {key}: never changed, and nothing depends on it"


@each_task
def test_all_that_a_pass_leaves_behind_is_in_the_state(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    """A counter or a queue in an attribute would be lost on resume."""
    task, other = objective(kind, name), objective(kind, name)
    for step in range(3):
        task(batch(task, step=step), Progress(step, 100))
    runs.scrambled(other)
    other.load_state_dict(task.state_dict())
    for key, teacher in task.teachers().items():
        other.teachers()[key].module.load_state_dict(teacher.module.state_dict())
    data, at = batch(task, step=3), Progress(3, 100)
    assert momenta(other, at) == momenta(task, at)
    assert runs.numbers(other(data, at)) == runs.numbers(task(data, at))


def momenta(task: Objective, at: Progress) -> dict[str, float]:
    found = {name: teacher.momentum for name, teacher in task.teachers().items()}
    return {name: momentum(at) if callable(momentum) else momentum for name, momentum in found.items()}


@each_task
def test_schedules_follow_the_progress_of_the_run(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    """Where the class says that it has any, and nowhere else: loss, gradient, or the momentum of a teacher."""

    def at(step: int) -> Any:
        task = objective(kind, name)
        losses, grads = gradients(task, batch(task), Progress(step, 100))
        return losses.total.item(), momenta(task, Progress(step, 100)), content(grads)

    task, moves = objective(kind, name), at(0) != at(99)
    parts = [part for part in task.modules() if isinstance(part, Objective)]
    assert moves == any(part.scheduled for part in parts), "what `scheduled` says of the class is not so"


@each_task
def test_seed_and_position_fix_the_loss(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    first, again = objective(kind, name), objective(kind, name)
    same = first(batch(first), AT).total, again(batch(again), AT).total
    assert torch.equal(*same)
    assert not torch.equal(same[0], first(batch(first, step=1), AT).total)


@each_task
def test_nothing_draws_from_a_global_generator(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]

    task = objective(kind, name)
    data = batch(task)
    for what, action in {
        "prepare": lambda: batch(task),
        "forward": lambda: task(data, AT).total.backward(),
    }.items():
        before = states()
        action()
        for library, old, new in zip(("torch", "numpy", "random"), before, states(), strict=True):
            assert old == new, f"{what} draws from {library}'s generator, whose state no checkpoint holds"


# Configuration


def other_values(annotation: Any, value: Any) -> list[Any]:
    """Some that a field might have in place of `value`; none where its type does not tell any."""
    if get_origin(annotation) in (Union, UnionType):  # None is what it often is, and not what is of interest
        kinds = [each for each in get_args(annotation) if each is not type(None)]
        return list(itertools.chain.from_iterable(other_values(each, value) for each in kinds))
    if get_origin(annotation) is Literal:
        return [other for other in get_args(annotation) if other != value]
    if annotation is bool:
        return [not value] if value is not None else [False, True]
    if annotation is int:
        return [value + 1, 2 * value, 1, 8] if value is not None else [1, 8, 64]
    if annotation is float:
        return [value / 2, 2 * value, (1 + value) / 2] if value is not None else [0.5, 0.9]
    return [value + runs.TWIN] if annotation is str and value is not None else []


def settings(section: Section, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, type, value) of the fields of a section and of those in it, but for names of tasks."""
    for key, info in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            yield from settings(value, f"{path}{key}.")
        elif f"{path}{key}" != "name":
            yield f"{path}{key}", info.annotation, value


def set_at(fields: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return {**fields, head: set_at(fields[head], rest, value) if rest else value}


@each_simple_task
def test_every_field_of_the_config_does_something(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    """To the networks, the samples, the loss or a teacher; an option that is read by nobody is a lie. One of which
    every other value is refused is tried beside other values of each other field; then the preset has to say why."""

    def made(fields: dict[str, Any]) -> Any:
        task = objective(kind, name, twins=True, **fields)
        data = batch(task, step=AT.step)
        shapes = {key: tuple(value.shape) for key, value in task.state_dict().items()}
        trained = [key for key, value in task.named_parameters() if value.requires_grad]
        return task.sources(), shapes, trained, content(data), runs.numbers(task(data, AT)), momenta(task, AT)

    outcomes: dict[str, Any] = {}

    def outcome(fields: dict[str, Any]) -> Any:
        if repr(fields) not in outcomes:
            outcomes[repr(fields)] = made(fields)
        return outcomes[repr(fields)]

    def tried(fields: dict[str, Any], path: str) -> list[bool]:
        """Whether another value made a difference, for those that were accepted, up to the first that did."""
        found: list[bool] = []
        for other in other_values(*known[path]):
            with contextlib.suppress(ValidationError, ConfigError):
                changed = outcome(set_at(fields, path, other))
                found.append(changed != outcome(fields))
            if any(found):
                break
        return found

    config = objective(kind, name).config  # type: ignore[attr-defined]
    known = {path: rest for path, *rest in settings(config)}
    given, untried = config.model_dump(exclude={"name"}), kind.preset.get("untried", {})
    assert outcome(given) == made(given)
    for path in known:
        found = tried(given, path)
        places = [(switch, other) for switch in known for other in other_values(*known[switch]) if switch != path]
        for switch, other in places if not found else []:
            if not any(found):
                found += tried(set_at(given, switch, other), path)
        assert any(found) or not found, f"{path} does nothing"
        assert found or untried.get(path), f"{path}: no other value is accepted; preset['untried'] may say why"
    odd = [path for path in untried if path not in known or tried(given, path)]
    assert not odd, f"preset['untried'] names {odd}, which can be tried, or is no field"


def networks(task: Objective) -> dict[str, Any]:
    """By name: weights, and the plain attributes of every module below the task (sizes, heads, rates)."""
    attributes = {f"{path}.{key}": value for path, module in task.named_modules() if path
                  for key, value in vars(module).items() if isinstance(value, int | float | str)}  # fmt: skip
    return attributes | {key: content(value) for key, value in task.state_dict().items() if isinstance(value, Tensor)}


@each_simple_task
def test_what_is_adjustable_leaves_the_networks_as_they_are(name: str, kind: type[Objective], objective: Any) -> None:
    """A run that goes on with another value of such a field goes on with all of its weights."""
    config = objective(kind, name).config  # type: ignore[attr-defined]
    known, given = {path: rest for path, *rest in settings(config)}, config.model_dump(exclude={"name"})
    before = networks(objective(kind, name))
    for field in kind.adjustable:
        paths = [each for each in known if each == field or each.startswith(f"{field}.")]
        assert paths, f"adjustable names {field}, which is no field"
        for path, other in [(each, other) for each in paths for other in other_values(*known[each])]:
            with contextlib.suppress(ValidationError, ConfigError):
                changed = objective(kind, name, **set_at(given, path, other))
                assert networks(changed) == before, path


# Samples


def content(prepared: Any) -> Any:
    """Of whatever nesting of arrays, comparable."""
    if isinstance(prepared, dict):
        return {key: content(item) for key, item in prepared.items()}
    if isinstance(prepared, list):  # arrays of different shapes
        return [content(item) for item in prepared]
    array = np.asarray(prepared.values if isinstance(prepared, Ragged) else prepared)
    return array.dtype.str, array.shape, array.tobytes()


def beside(order: Stream, sample: Sample) -> More:
    """Other samples of the same stream, as the loader draws them."""
    return lambda rng, use=as_it_is: use(order.read(order.another(sample.position, rng)))


@each_task
def test_prepare_is_a_function_of_sample_and_generator(
    name: str, kind: type[Objective], objective: Any, stream: Any
) -> None:
    task, order = objective(kind, name), stream(kind)
    samples = [order.read(position) for position in range(3)]

    def prepared(number: int, seed: int, by: Objective = task) -> Any:
        kept = {key: bytes(part) for key, part in samples[number].fields.items()}
        found = content(by.prepare(samples[number], np.random.default_rng(seed), beside(order, samples[number])))
        assert samples[number].fields == kept, "prepare changes the sample"
        return found

    first = prepared(0, seed=1)
    others = [prepared(1, seed=1), prepared(2, seed=1)]
    assert first not in others, "prepare makes the same of two samples"
    assert prepared(0, seed=1) == first, "prepare depends on what was prepared before"
    assert prepared(0, seed=1, by=objective(kind, name)) == first
    differs = any(prepared(0, seed) != first for seed in range(2, 10))
    assert differs == kind.draws, "prepare draws from its generator where the class says `draws`, and only there"


@each_task
def test_every_field_of_a_batch_counts(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    """With a field of other samples in place of one's own, the loss is another."""
    task = objective(kind, name)
    data = batch(task)
    before = value(task, data)
    for path, tensor in fields(data):
        other = tensor.roll(1, 0)
        if not torch.equal(other, tensor):
            assert value(task, replaced(data, path, other)) != before, f"{'/'.join(path)} makes no difference"


@each_simple_task
def test_seeds_count_where_the_class_says_so(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    """Each sample's own: with another's, the loss is another."""
    task = objective(kind, name)
    data = batch(task)
    before = value(task, data)
    for place in range(2):
        seeds = data[SEEDS].clone()
        seeds[place] = 12345
        assert (value(task, data | {SEEDS: seeds}) != before) == kind.seeded, "does `seeded` say so?"


def with_statistics_of(task: Objective, batch: Any) -> None:
    """Eval mode, with BatchNorm as it is in a pass over `batch` (as it begins, all that it makes is nearly alike)."""
    networks = [task, *(teacher.module for teacher in task.teachers().values())]
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    task(batch, AT)
    for network in networks:
        network.eval()


@each_simple_task
def test_two_views_differ_and_are_held_against_each_other(
    name: str, kind: type[Objective], objective: Any, batch: Any, stream: Any
) -> None:
    """Symmetric where the class says so. A loss that holds each view against itself is a sum of two functions, one of
    each view, of which nothing is left in the mixed difference (in eval mode, where views do not share BatchNorm)."""
    task, order = objective(kind, name), stream(kind)
    data = batch(task)
    for one, two in views_of(data):
        first, second = (dict(fields(data))[path] for path in (one, two))
        assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "two views are the same"
        sample = order.read(0)
        drawn = [task.prepare(sample, np.random.default_rng(n), beside(order, sample)) for n in range(4)]
        for view in (one[-1], two[-1]):
            assert len({np.asarray(each[view]).tobytes() for each in drawn}) > 1, f"{view} is drawn by nothing"
        swapped = replaced(replaced(data, one, second), two, first)
        same = value(task, swapped) == pytest.approx(value(task, data), rel=1e-5)
        assert same == kind.symmetric, f"views in each other's place give {'the same' if same else 'another'} loss"
        with_statistics_of(task, data)
        rolled = [(path, view.roll(1, 0)) for path, view in ((one, first), (two, second))]
        mixed = value(task, data) + value(task, replaced(replaced(data, *rolled[0]), *rolled[1]))
        mixed -= sum(value(task, replaced(data, *each)) for each in rolled)
        assert abs(mixed) > 1e-4 * abs(value(task, data)), "the views are not held against each other"


@each_simple_task
def test_passes_add_up_where_the_class_says_so(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    off = []
    for step in range(3):
        fresh = [objective(kind, name) for _ in range(3)]  # a pass changes buffers
        losses, whole = gradients(fresh[0], batch(fresh[0], size=8, step=step))
        parts = [batch(fresh[n + 1], size=8, step=step, accum=2, micro=n) for n in range(2)]
        halves = [gradients(task, part) for task, part in zip(fresh[1:], runs.counted(fresh[1], parts), strict=True)]
        largest = max(grad.abs().max().item() for grad in whole.values())
        off.append(abs((halves[0][0].total + halves[1][0].total).item() / 2 / losses.total.item() - 1))
        for key, grad in whole.items():
            off.append(((halves[0][1][key] + halves[1][1][key]) / 2 - grad).abs().max().item() / largest)
    same = max(off) < 1e-4
    assert same == kind.accumulates, f"two passes differ from one by {max(off):.1e}; does `accumulates` say so?"


# What the number means


@each_task
def test_losses_are_reported_beside_their_blind_line(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    """No blind predictor is better than the best: an untrained network that sees nothing is one. (One that sees may be
    better already: its embeddings of two views are alike.)"""
    task = objective(kind, name)
    data = batch(task)
    losses = task(data, AT)
    Blindfold(task)
    unseeing = {path: each.total.item() for path, each in task(data, AT).named()}
    assert losses.total.shape == () and losses.total.requires_grad
    for path, each in losses.named():
        values = [*each.stats.values(), *each.spread.values()] + [each.total] * bool(path)
        values.append(torch.as_tensor(each.blind))
        assert all(v.shape == () and not v.requires_grad and v.isfinite() for v in values), path
        assert all(0 <= spread <= 1.5 for spread in each.spread.values()), path
        for view in each.views.values():  # of every sample
            assert view.dim() == 3 and view.shape[0] >= 2 and not view.requires_grad, path
            assert view.shape[1] in {len(tensor) for _, tensor in fields(data)}, path
        assert each.blind > 0 and each.unit and each.blind_name, path
        assert each.blind < 1.25 * unseeing[path], f"{path}: no better than an untrained network"


class Blindfold:
    """Hides all input from the towers of a task: the first layer of each gives zeros, in each of its passes, and so
    does another of the same weight (a decoder's token embedding)."""

    def __init__(self, task: Objective) -> None:
        self._first: dict[int, nn.Module] = {}
        towers = [module for module in task.modules() if isinstance(module, Tower)]
        for tower in towers:
            for _, layer in layers(tower):
                layer.register_forward_hook(self._hide(id(tower)))
        task.register_forward_pre_hook(lambda *_: self._first.clear())

    def _hide(self, tower: int) -> Callable[..., Any]:
        def hidden(layer: nn.Module, arguments: Any, output: Any) -> Any:
            first = self._first.setdefault(tower, layer)
            same = layer is first or getattr(layer, "weight", None) is getattr(first, "weight", first)
            return output * 0.0 if same else None

        return hidden


@each_simple_task
def test_a_network_that_sees_nothing_ends_at_the_blind_line(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    """Neither below it, or it is too high, nor far above, or it is too low. (Where the targets, too, are what the
    network makes of nothing, both are 0.)"""
    task = objective(kind, name)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=0.03, weight_decay=0.0)
    Blindfold(task)
    curve, batches = [], [batch(task, step=step) for step in range(12)]
    for step in range(60):
        losses = task(batches[step % 12], AT)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        curve.append((losses.total.item(), float(losses.blind)))
    loss, blind = np.mean(curve[-10:], 0)
    assert 0.8 * blind - 1e-3 < loss < 1.25 * blind + 1e-3


@each_simple_task
def test_the_loss_asks_for_nothing_that_the_network_is_shown(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    """Element by element of a batch: where it changes the loss while all layers give what they gave, it is a target;
    then no tower may see it. (With layers and teachers held, a contrastive loss has no targets. Of booleans there is
    nothing to ask: a mask says where the loss asks, and what is shown, at once.)"""
    task = objective(kind, name)
    data, before = batch(task, size=4), None
    held, calls, seen = list[Any](), list[Any](), dict[nn.Module, Any]()
    replay = False

    def hold(layer: nn.Module, arguments: Any, output: Any) -> Any:
        calls.append(output)
        return held[len(calls) - 1] if replay else None

    for net in (task, *(teacher.module for teacher in task.teachers().values())):
        for _, layer in layers(net):
            layer.register_forward_hook(hold)
    for tower in (module for module in task.modules() if isinstance(module, Tower)):
        for _, layer in layers(tower):
            layer.register_forward_hook(lambda m, a, output, tower=tower: seen.__setitem__(tower, output))

    def passed(data: Any, holding: bool) -> float:
        nonlocal replay
        replay = holding
        calls.clear()
        return value(task, data)

    before = passed(data, holding=False)
    held.extend(calls)
    shown = dict(seen)
    signals = [(path, tensor) for path, tensor in fields(data) if tensor.dtype != torch.bool]  # which elements count
    for path, tensor in signals:
        for place in torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))[:24].tolist():
            other = replaced(data, path, changed_at(tensor, place))
            if not (kind.causal or kind.narrow) and passed(other, holding=True) != before:
                passed(other, holding=False)
                for tower, output in seen.items():
                    assert torch.equal(output, shown[tower]), f"{'/'.join(path)}, element {place}: asked for, and shown"


def changed_at(tensor: Tensor, place: int) -> Tensor:
    """With another brightness, or another of the values that there are, at one place."""
    changed = tensor.clone()
    flat = changed.view(-1)
    others = flat[flat != flat[place]]
    flat[place] = flat[place] + 100 if tensor.dtype == torch.uint8 or not len(others) else others[0]
    return changed


@each_task
def test_one_batch_overfits(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    if not kind.preset.get("overfits", True):
        return
    task = objective(kind, name)
    first, losses = runs.on_one_batch(task, batch(task))
    assert losses.total.item() < 0.6 * min(float(first), float(losses.blind))


@each_task
def test_the_reference_kernels_give_the_same_loss(
    name: str, kind: type[Objective], objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = objective(kind, name)
    data = batch(task)
    losses, grads = gradients(task, data)
    twin = objective(kind, name)
    monkeypatch.setenv("BIGSSL_KERNELS", "reference")
    slow, slow_grads = gradients(twin, data)
    torch.testing.assert_close(losses.total, slow.total)
    for key, grad in slow_grads.items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-4, atol=1e-5, msg=key)
