"""Losses and their gradients are those of another implementation, lightly's (the extra `lightly`), on one rank.

On several, lightly's are no oracle: by default (`gather_distributed=False`) each rank compares its own samples alone,
and BarlowTwinsLoss standardises by the statistics of each rank even where it gathers (release 1.6). What ours are
there, the contract says: the same as on one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.nets.progress import Progress
from bigssl.objectives import vicreg
from bigssl.objectives.base import discover

try:
    from lightly import loss as lightly
except (ImportError, RuntimeError) as error:  # RuntimeError: its torchvision is of another torch
    pytest.skip(f"needs the extra lightly: {error}", allow_module_level=True)

AT = Progress(4, 10)


class Case(NamedTuple):
    """A task with `fields`; the modules whose outputs its loss is of, by attribute; what lightly makes of these."""

    name: str
    fields: dict[str, Any]
    outputs: Callable[[Any], list[nn.Module]]
    theirs: Callable[[Any], Callable[..., Tensor]]


def contrast(task: Any) -> Callable[..., Tensor]:
    loss = lightly.NTXentLoss(temperature=task.config.temperature)
    return lambda z: loss(*z.chunk(2))


def twins(task: Any) -> Callable[..., Tensor]:
    loss = lightly.BarlowTwinsLoss(lambda_param=task.config.redundancy)
    return lambda z: task.config.scale * loss(*z.chunk(2))


def variances(task: Any) -> Callable[..., Tensor]:
    config = task.config
    loss = lightly.VICRegLoss(config.invariance, config.variance, config.covariance, eps=vicreg.EPSILON)
    return lambda z: loss(*z.chunk(2))


def cosines(scale: float, targets: Callable[..., Tensor]) -> Callable[[Any], Callable[..., Tensor]]:
    """scale · Σ (1 − cos) over both directions, of predictions and targets, views one after the other."""
    similarity = lightly.NegativeCosineSimilarity()

    def theirs(*outputs: Tensor) -> Tensor:
        (first, second), (one, other) = outputs[0].chunk(2), targets(*outputs).detach().chunk(2)
        return scale * (2 + similarity(first, other) + similarity(second, one))

    return lambda task: theirs


def distilled(task: Any) -> Callable[..., Tensor]:
    config = task.config
    loss = lightly.DINOLoss(config.prototypes, student_temp=config.temperature, center_momentum=config.centre_momentum)

    def theirs(student: Tensor, teacher: Tensor) -> Tensor:
        count = len(teacher) // 2
        temperature = float(task.sharpness(AT))
        return loss(list(teacher.detach().split(count)), list(student.split(count)), teacher_temp=temperature)

    return theirs


def shared_out(task: Any) -> Callable[..., Tensor]:
    config, count = task.config, 12
    loss = lightly.SwaVLoss(config.temperature, config.iterations, config.epsilon)

    def theirs(found: Tensor) -> Tensor:
        views = list(found.split(count))
        return loss(views[:2], views[2:])

    return theirs


CASES = [
    Case("simclr", {}, lambda task: [task.head], contrast),
    Case("barlow_twins", {}, lambda task: [task.projector], twins),
    Case("vicreg", {}, lambda task: [task.expander], variances),
    Case("simsiam", {}, lambda task: [task.predictor, task.projector], cosines(0.5, lambda p, z: z)),
    Case("byol", {}, lambda task: [task.predictor, task.target.module], cosines(2.0, lambda p, t: t)),
    Case("dino", {}, lambda task: [task.student, task.teacher.module], distilled),
    Case("swav", {"queue": 0, "queue_from": 0.15}, lambda task: [task.prototypes], shared_out),
]


def caught(modules: list[nn.Module]) -> list[list[Tensor]]:
    """What each module gives, pass by pass; of a head with prototypes, the cosines."""
    found: list[list[Tensor]] = [[] for _ in modules]

    def note(into: list[Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            values = output if isinstance(output, Tensor) else output.cosines
            if values.requires_grad:
                values.retain_grad()
            into.append(values)

        return hook

    for module, into in zip(modules, found, strict=True):
        module.register_forward_hook(note(into))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loss_and_its_gradient_are_lightlys(case: Case, objective: Any, batch: Any) -> None:
    """Over three passes, as DINO's centre moves."""
    task = objective(discover()[case.name], case.name, **case.fields)
    found, theirs = caught(case.outputs(task)), case.theirs(task)
    for step in range(3):
        ours = task(batch(task, step=step), AT).total
        outputs = [each[step] for each in found]
        copies = [each.detach().clone().requires_grad_() for each in outputs]
        expected = theirs(*copies)
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
        ours.backward()
        expected.backward()
        assert outputs[0].grad is not None and copies[0].grad is not None
        assert F.cosine_similarity(outputs[0].grad.flatten(), copies[0].grad.flatten(), dim=0) > 1 - 1e-5
        torch.testing.assert_close(outputs[0].grad.norm(), copies[0].grad.norm(), rtol=1e-4, atol=0)
