"""Does each loss kernel compute on this device what float64 says, forward and backward, and which code is it?"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

import bigssl_kernels
from bigssl.doctor.findings import Diagnoses, first_line

Call = Callable[..., Tensor]
ROWS, WIDTH, CLASSES = 643, 72, 1031
"""No powers of two, more than what a CPU computes densely, and some hundred thousand logits."""
ERRORS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest error, relative to the truth's largest entry (.1 if that is less): what tests/kernels allow on a GPU."""
_CALLS = "its numbers cannot be trusted: BIGSSL_KERNELS=torch trains without the fused kernels; `pytest tests/kernels` "


def calls() -> dict[str, tuple[Call, dict[str, Tensor]]]:
    """By loss: a call of it with the given inputs, and float64 inputs, each of which has a gradient."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    scale, ids = torch.tensor(10.0, dtype=torch.float64), torch.arange(ROWS) * 7 % (ROWS // 3)
    labels = torch.arange(ROWS) * 13 % CLASSES
    labels[::5] = -100
    pair = {"one": normal(ROWS, WIDTH), "other": normal(ROWS, WIDTH)}
    head = {"hidden": normal(ROWS, WIDTH), "weight": normal(CLASSES, WIDTH) / WIDTH**0.5, "bias": normal(CLASSES)}
    ours = bigssl_kernels
    return {
        "nt_xent": (lambda one, other, scale, **how: ours.nt_xent(one, other, 1 / scale, **how),
                    pair | {"scale": scale}),
        "clip_loss": (lambda one, other, scale, **how: ours.clip_loss(one, other, scale, **how),
                      pair | {"scale": scale}),
        "info_nce": (lambda one, other, queue, scale, **how: ours.info_nce(one, other, queue, 1 / scale, **how),
                     pair | {"queue": normal(CLASSES, WIDTH), "scale": scale}),
        "sup_con": (lambda one, scale, **how: ours.sup_con(one, ids.to(one.device), 1 / scale, **how),
                    {"one": pair["one"], "scale": scale}),
        "sigmoid_loss": (lambda one, other, scale, bias, **how: ours.sigmoid_loss(one, other, scale, bias, **how),
                         pair | {"scale": scale, "bias": -scale}),
        "linear_cross_entropy": (lambda hidden, weight, bias, **how: ours.linear_cross_entropy(
            hidden, weight, labels.to(hidden.device), bias, **how), head),
        "sharded_linear_cross_entropy": (lambda hidden, weight, bias, **how: ours.sharded_linear_cross_entropy(
            hidden, weight, labels.to(hidden.device), bias, classes=CLASSES, group=None,
            **{key: value for key, value in how.items() if value != "reference"}), head),
    }  # fmt: skip


def examine_kernels(section: Diagnoses, device: torch.device) -> None:
    """A finding for each loss: which implementation runs on `device` and why, and how far it is from float64."""
    for name, (call, inputs) in calls().items():
        try:
            _examine(section, name, call, inputs, device)
        except Exception as error:  # a compiler that is not there, a driver that refuses, memory
            todo = "triton needs a C compiler and Python's headers to start its kernels (apt-get install gcc "\
                   "python3-dev); BIGSSL_KERNELS=torch does without triton"
            section.fail(name, f"{device}: raised {type(error).__name__}: {first_line(error)}", todo)


def _examine(section: Diagnoses, name: str, call: Call, inputs: dict[str, Tensor], device: torch.device) -> None:
    began, wrong, worst = time.perf_counter(), list[str](), dict[torch.dtype, float]()
    for dtype, allowed in ERRORS.items():
        rounded = {key: value.to(dtype if value.dim() else torch.float32) for key, value in inputs.items()}
        rounded = {key: value.to(device) for key, value in rounded.items()}
        truth = _results(functools.partial(call, impl="reference"), {k: v.double() for k, v in rounded.items()})
        for what, error in _errors(_results(call, rounded), truth).items():
            worst[dtype] = max(worst.get(dtype, 0.0), error)
            if not error <= allowed:
                wrong.append(f"{what} in {_short(dtype)} is off by {error:.2g} (allowed {allowed:.0e})")
    which = _explained(name, inputs, device)
    if wrong:
        section.fail(name, f"{device}: {which}: {'; '.join(wrong)}, of its largest entry in float64",
                     f"{_CALLS}says more")  # fmt: skip
        return
    errors = ", ".join(f"{_short(dtype)} {error:.0e}" for dtype, error in worst.items())
    section.ok(name, f"{device}: {which}; from float64: {errors}; {time.perf_counter() - began:.1f} s")


def _results(call: Call, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss, and the gradient of each input by name."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    loss = call(**leaves)
    loss.backward(torch.full_like(loss, ROWS))  # of a mean over rows, entries would be too small to tell from nothing
    grads = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    missing = {f"gradient of {name}": torch.full_like(leaf, float("nan")).detach()
               for name, leaf in leaves.items() if leaf.grad is None}  # fmt: skip
    return {"loss": loss.detach()} | grads | missing


def _errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return {
        name: ((found[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=0.1)).item()
        for name, value in truth.items()
    }


def _explained(name: str, inputs: dict[str, Tensor], device: torch.device) -> str:
    """What `bigssl_kernels.explain` says of inputs as these, without the name."""
    shapes = [value.to(device, torch.float32) for value in inputs.values() if value.dim() == 2]
    loss, ids = getattr(bigssl_kernels, name), torch.zeros(ROWS, dtype=torch.int64, device=device)
    arguments: dict[str, tuple[object, ...]] = {
        "nt_xent": (*shapes,), "clip_loss": (*shapes, 1.0), "info_nce": (*shapes,), "sup_con": (*shapes, ids),
        "sigmoid_loss": (*shapes, 1.0, 0.0), "linear_cross_entropy": (*shapes, ids),
        "sharded_linear_cross_entropy": (*shapes, ids),
    }  # fmt: skip
    how = {"classes": CLASSES, "group": None} if name.startswith("sharded") else {}
    return bigssl_kernels.explain(loss, *arguments[name], **how).partition(": ")[2]


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
