"""How an evaluation trains a network on a labelled task: AdamW with a learning rate that falls from layer to layer."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.config.section import Fraction, PositiveInt, Section
from bigssl.data.errors import DataError
from bigssl.nets.depth import depths

CLIP = 1.0  # norm of the gradient at most
Positive = Annotated[float, Field(gt=0)]
Groups = list[dict[str, Any]]
T = TypeVar("T")


class Fit(Section):
    """Settings of a training on labels, to be mixed into a section."""

    epochs: PositiveInt = Field(20, description="times that each sample is seen")
    least_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="training steps at least: of few samples there are more epochs"
    )
    lr: Positive = Field(1e-3, description="greatest learning rate, of the new layers")
    fit_batch: PositiveInt = Field(32, description="samples of a training step at most")
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.75, description="learning rate of a layer relative to the one above it"
    )
    warmup: Fraction = Field(0.1, description="share of the steps in which the learning rate rises")


class FitBelow(Fit):
    """The same where a backbone, as a rule pretrained, has to move less than what is new above it."""

    backbone_lr: Positive = Field(
        5e-5, description="greatest learning rate of the backbone where its weights are trained, of its last layer"
    )

    @property
    def below(self) -> float:
        """The rate of the backbone relative to that of the new layers."""
        return self.backbone_lr / self.lr


def fit(
    module: nn.Module, groups: Groups, count: int, loss: Callable[[Tensor], Tensor], settings: Fit, seed: int,
    soon: Callable[[Tensor], None] = lambda rows: None,
) -> nn.Module:  # fmt: skip
    """Trains in place, in train mode, and returns the module in eval mode.

    AdamW (Loshchilov and Hutter 2019), linear warm-up and cosine, gradients clipped at norm 1. The order of the samples
    and whatever is drawn inside (dropout) come from the seed; the global generators are left as they were. bf16
    autocast on CUDA, float32 elsewhere. Each epoch is cut into batches of nearly equal size: none is a lone sample.

    Args:
        groups: parameters with an optional "scale" of the learning rate and "weight_decay", see `layer_groups`.
        count: samples.
        loss: of the samples int64 [b], numbers below `count`: a scalar.
        soon: is told, one step ahead, of which samples the loss will be asked for.
    Raises:
        DataError: the loss is not finite, or what the last step made of the weights.
    """
    device = next(module.parameters()).device
    tuned = [{**group, "lr": settings.lr * group.get("scale", 1.0)} for group in groups]
    optimizer = torch.optim.AdamW(tuned, lr=settings.lr, weight_decay=settings.weight_decay)
    parameters = [parameter for group in groups for parameter in group["params"]]
    steps = _epochs(count, settings) * math.ceil(count / settings.fit_batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _height(step, steps, settings.warmup))
    module.train()
    with _seeded(seed, device):
        for step, rows in enumerate(announced(_batches(count, settings, seed), soon)):
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                value = loss(rows)
            if not math.isfinite(value.item()):
                raise DataError(f"loss {value.item()} at step {step} of {steps}; lower lr (value {settings.lr})")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            schedule.step()
    if odd := next((name for name, each in module.named_parameters() if not each.isfinite().all()), None):
        raise DataError(f"weights {odd} are not finite after {steps} steps; lower lr (value {settings.lr})")
    return module.eval()


def _height(step: int, steps: int, warmup: float) -> float:
    """Of the learning rate, 0 to 1: up to 1 in the first `warmup` of the steps, then down along a cosine."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _epochs(count: int, settings: Fit) -> int:
    return max(settings.epochs, math.ceil(settings.least_steps / math.ceil(count / settings.fit_batch)))


def _batches(count: int, settings: Fit, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_epochs(count, settings)):
        yield from torch.randperm(count, generator=generator).tensor_split(math.ceil(count / settings.fit_batch))


def announced(parts: Iterable[T], soon: Callable[[T], None]) -> Iterator[T]:
    """The parts in order; before each is given, `soon` is told of the one behind it."""
    waiting: list[T] = []
    for part in parts:
        soon(part)
        yield from waiting
        waiting = [part]
    yield from waiting


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """What is drawn inside depends on the seed; the generators are left as they were: those of numpy and Python, too,
    by which some networks mask while they are trained (SpecAugment of Wav2Vec2) or skip layers."""
    others = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(others[0])
            random.setstate(others[1])


def layer_groups(
    model: PreTrainedModel, decay: float, above: Sequence[nn.Parameter] = (), below: float = 1.0
) -> Groups:  # fmt: skip
    """Groups for `fit` of the parameters that are trained: the scale is 1 for those `above` (a head), `below` for the
    last norm, times `decay` in the last block, `decay` of that in the one before it (Clark et al. 2020; BEiT, Bao et
    al. 2022). Vectors (biases, norms) are not decayed. Decay 1 suits every network; DataError with another one where
    the layers have no order (`bigssl.nets.depth`)."""
    try:
        depth, deepest = depths(model) if decay != 1 else (dict.fromkeys(dict(model.named_parameters()), 0), 0)
    except ValueError as error:
        raise DataError(f"{error}; allowed: layer_decay=1") from None
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((below * decay ** (deepest - depth[name]), parameter.ndim > 1), []).append(parameter)
    for parameter in above:
        found.setdefault((1.0, parameter.ndim > 1), []).append(parameter)
    return [{"params": parameters, "scale": scale} | ({} if matrices else {"weight_decay": 0.0})
            for (scale, matrices), parameters in sorted(found.items(), key=lambda item: (-item[0][0], item[0][1]))]
