"""Networks out of a folder in transformers' format: whole, or as much as is allowed, and what was found is said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.nets.modality.kinds import unused_parameters

SHOWN = 3
_FOUND = "_found"  # attribute of a network that was read
PARTIAL = "a folder that holds all of it, or --allow-partial (allow_partial: true), which makes these anew"


@dataclass(frozen=True)
class Inventory:
    """Which tensors of a network a folder holds.

    Attributes:
        kind: the class of the network.
        total: tensors that it has.
        lacking: names of those that are not in the folder and that features pass through.
        unused: names of those that are not in it and that no feature needs.
        other: {name: the two shapes, in words} of those that have another shape there.
        left: names in the folder that the network has no place for.
    """

    kind: str
    total: int
    lacking: Collection[str]
    unused: Collection[str]
    other: Mapping[str, str]
    left: Collection[str]

    def refuse_partial(self) -> None:
        """Raises ConfigError where it is not all there."""
        of = f"of {self.total} tensors of {self.kind}"
        strange = f"; it holds {_some(self.left)} instead" if self.left else ""
        shapes = [f"{len(self.other)} {of} have other shapes ({_some(f'{n}: {s}' for n, s in self.other.items())})"]
        absent = [f"{len(self.lacking)} {of} are not in it ({_some(self.lacking)}){strange}"]
        if said := shapes * bool(self.other) + absent * bool(self.lacking):
            raise ConfigError(f"{' and '.join(said)}; allowed: {PARTIAL}")

    def said(self) -> str:
        """The report, in a sentence."""
        anew = {**dict.fromkeys(self.lacking, ""), **self.other}
        matched = self.total - len(anew) - len(self.unused)
        parts = [f"{matched} of {self.total} tensors are taken"]
        parts += [f"made anew since it lacks them: {_some(self.lacking)}"] if self.lacking else []
        parts += [f"made anew since their shapes differ: {_some(self.other)}"] if self.other else []
        parts += [f"made anew, needed by no feature: {_some(self.unused)}"] if self.unused else []
        parts += [f"in it, not used here: {_some(self.left)}"] if self.left else []
        return "; ".join(parts)


def read_network(folder: str, config: PreTrainedConfig, *, partial: bool = False, **options: Any) -> PreTrainedModel:
    """The bare network in `folder`, in float32. transformers would make anew what it does not find there.

    Args:
        folder: or a name of the hub.
        partial: what is not in it may be made anew, as `found_in` tells.
        options: of AutoModel.from_pretrained.
    Raises:
        ConfigError: tensors that features pass through are not in it, or have other shapes.
    """
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True, **options}
    model, report = AutoModel.from_pretrained(folder, config=config, **options)
    network: PreTrainedModel = model
    return keep_found(network, report["missing_keys"], report["unexpected_keys"], {
        name: f"{list(there)} in place of {list(here)}" for name, there, here in report["mismatched_keys"]}, partial)


def read_as_stored(folder: str, config: PreTrainedConfig, **options: Any) -> PreTrainedModel | None:
    """`read_network` of a folder of half-precision weights, as they are stored: half the bytes, in pages of its files,
    which are not this process's own. None where the numbers would not be those of `read_network`: of float32, of
    several types, with buffers of numbers (which follow the type), or where something is lacking.
    """
    dtype = _half(folder)
    if dtype is None:
        return None
    model = read_network(folder, config, partial=True, dtype=dtype, **options)
    found = found_in(model)
    if found is None or found.lacking or found.unused or found.other:
        return None
    if any(buffer.is_floating_point() for buffer in model.buffers()):
        return None
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.dtype = torch.float32  # which it becomes
    return model


def _half(folder: str) -> torch.dtype | None:
    """The type of all weights in the safetensors of a folder, where it is bfloat16 or float16."""
    kinds = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            kinds |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  # no mapping
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(kinds.pop()) if len(kinds) == 1 else None


def keep_found(
    model: PreTrainedModel, missing: Collection[str], left: Collection[str], other: Mapping[str, str], partial: bool
) -> PreTrainedModel:
    """`model`, which knows what was found of it. Raises ConfigError where that is a part, and no part is allowed, and
    where it is no numbers."""
    read = [(name, value) for name, value in model.named_parameters() if name not in missing]
    if broken := [name for name, value in read if not value.isfinite().all()]:  # of what was not, memory holds anything
        raise ConfigError(f"{len(broken)} tensors of {type(model).__name__} hold NaN or infinity ({_some(broken)}); "
                          "allowed: finite weights, as of a run that did not diverge")  # fmt: skip
    expected, unused = list(model.state_dict()), unused_parameters(model)
    absent = [name for name in expected if name in missing]
    found = Inventory(type(model).__name__, len(expected), [name for name in absent if name not in unused],
                  [name for name in absent if name in unused], other, sorted(left))  # fmt: skip
    if not partial:
        found.refuse_partial()
    vars(model)[_FOUND] = found
    return model


def found_in(model: nn.Module) -> Inventory | None:
    """What was found of a network that this process read; None of another."""
    return vars(model).get(_FOUND)


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
