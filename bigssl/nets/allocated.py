"""Memory for parameters that were only described, or that lie as a file has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)


def allocate(parameter: nn.Parameter) -> None:
    """A parameter on `meta` gets memory, one in half precision the same numbers in float32. It stays the same object:
    others may be tied to it."""
    if parameter.is_meta:
        _replace(parameter, torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu"))
    elif parameter.dtype in _HALF:
        _replace(parameter, parameter.detach().float())


def _replace(parameter: nn.Parameter, value: Tensor) -> None:
    attributes = dict(vars(parameter))
    torch.utils.swap_tensors(parameter, nn.Parameter(value, parameter.requires_grad))
    vars(parameter).update(attributes)
