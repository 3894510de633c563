"""Networks out of a folder in transformers' format: whole, or refused."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.nets.modality.kinds import unused_parameters

SHOWN = 3


def read_network(folder: str, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """The bare network in `folder`, in float32. transformers would make anew what it does not find there.

    Args:
        folder: or a name of the hub.
        options: of AutoModel.from_pretrained.
    Raises:
        ConfigError: tensors that features pass through are not in it, or have other shapes.
    """
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True, **options}
    model, found = AutoModel.from_pretrained(folder, config=config, **options)
    expected, unused = model.state_dict().keys(), unused_parameters(model)
    other = {name: f"{list(there)} in place of {list(here)}" for name, there, here in found["mismatched_keys"]}
    lacking = [name for name in expected if name in found["missing_keys"] and name not in unused]
    if other or lacking:
        of = f"of {len(expected)} tensors of {type(model).__name__}"
        strange = f"; it holds {_some(found['unexpected_keys'])} instead" if found["unexpected_keys"] else ""
        shapes = [f"{len(other)} {of} have other shapes ({_some(f'{n}: {shape}' for n, shape in other.items())})"]
        absent = [f"{len(lacking)} {of} are not in it ({_some(lacking)}){strange}"]
        raise ConfigError(" and ".join(shapes * bool(other) + absent * bool(lacking)))
    network: PreTrainedModel = model
    return network


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
