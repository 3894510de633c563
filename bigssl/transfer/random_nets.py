"""More random networks than one, where none of them learns: a single one may do well or ill by chance."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.transfer.bench import Bench
from bigssl.transfer.subjects import Subject

AGAIN = "random_net/"  # begins the names of those beside the first one


def more_random(bench: Bench, subject: Subject, seeds: int) -> dict[str, PreTrainedModel]:
    """Random networks by the names of contenders: `seeds` with that of the subject; none while it is trained. A
    collective."""
    numbers = range(1, seeds) if "random_net" in subject.models else range(0)
    return {f"{AGAIN}{seed}": bench.team.each(partial(bench.network, subject, "random_net", seed)) for seed in numbers}


def random_mean(values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """(values [N] by contender with the mean over the random networks as "random_net"; what each of these reaches)."""
    found = {name: value.double() for name, value in values.items() if not name.startswith(AGAIN)}
    if "random_net" not in found:
        return found, {}
    each = torch.stack([value.double() for name, value in values.items() if name.startswith("random_net")])
    return found | {"random_net": each.mean(0)}, {"random_net": each.mean(1).tolist()}
