"""Adapters of low rank (LoRA, Hu et al. 2021) through peft."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from bigssl.data.errors import DataError


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that adapters are for. Raises DataError: there are none, or peft is not there."""
    try:
        import peft  # noqa: F401 - not everybody has it
    except ImportError:
        raise DataError("adapters need peft; run: pip install 'bigssl[lora]'") from None
    from transformers.pytorch_utils import Conv1D

    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    if not found:
        raise DataError(f"a {model.config.model_type} has no linear layers; allowed: top in its place")
    return found


def adapt(model: PreTrainedModel, rank: int, seed: int) -> None:
    """Puts adapters into all linear layers, in place; they alone are trained, all other weights stay as they are. At
    first they change nothing. Fresh weights by the seed. DataError as `linear_layers`."""
    names = linear_layers(model)
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
