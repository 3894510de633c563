"""Networks with heads beside those that were trained: more random ones than one, where none of them learns, as a single
one may do well or ill by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.transfer.bench import Bench
from bigssl.transfer.subjects import Subject

Made = TypeVar("Made", bound=nn.Module)
AGAIN = "random_net/"  # begins the names of those beside the first one


def more_random(bench: Bench, subject: Subject, seeds: int) -> dict[str, PreTrainedModel]:
    """Random networks by the names of contenders: `seeds` with that of the subject; none while it is trained. A
    collective."""
    numbers = range(1, seeds) if "random_net" in subject.models else range(0)
    return {f"{AGAIN}{seed}": bench.team.each(partial(bench.network, subject, "random_net", seed)) for seed in numbers}


def random_mean(
    values: Mapping[str, Tensor], weights: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """(values [N] by contender with the mean over the random networks as "random_net"; what each of these reaches).

    weights: [N], of sums over as many parts, as `Score` has them.
    """
    found = {name: value.double() for name, value in values.items() if not name.startswith(AGAIN)}
    if "random_net" not in found:
        return found, {}
    each = torch.stack([value.double() for name, value in values.items() if name.startswith("random_net")])
    parts = each.shape[1] if weights is None else weights.double().sum()
    return found | {"random_net": each.mean(0)}, {"random_net": (each.sum(1) / parts).tolist()}


def with_heads(
    bench: Bench, subject: Subject, seeds: int, make: Callable[[PreTrainedModel], Made], tensors: Mapping[str, Tensor],
) -> dict[str, tuple[PreTrainedModel, Made]]:
    """By contender: the trained network with the head of `tensors`, and `seeds` random ones with random heads. A
    collective."""
    found = {}
    for number, (name, model) in enumerate((subject.models | more_random(bench, subject, seeds)).items()):
        with torch.random.fork_rng():
            torch.manual_seed(bench.seed + number)
            head = make(model)
        if name == "trained":
            bench.team.each(partial(_fill, f"{bench.where}.head", head, tensors))
        found[name] = model, head.to(bench.device)
    return found


def _fill(where: str, head: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wanted, there = ({name: list(value.shape) for name, value in each.items()} for each in (head.state_dict(), tensors))
    if wanted != there:
        raise DataError(f"{where}: of another backbone or kind: it has {there}; allowed: {wanted}")
    head.load_state_dict(dict(tensors))
