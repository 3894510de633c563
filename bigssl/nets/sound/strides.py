"""A convolution gets no more of a sound than it uses.

A strided convolution leaves out up to stride - 1 values at the end. oneDNN (of torch 2.13, bfloat16 with AMX) computes
the gradient of the weight from memory behind what it was given where there is such a rest: [64, 64, 8] by 4 over 3,199
values takes in 64 numbers that nobody wrote, and is NaN where they are. Without the rest the result is the same, and
the gradient right.
"""

from __future__ import annotations

from torch import Tensor, nn


def without_rests(model: nn.Module) -> None:
    """Have every strided 1-d convolution of a network, without padding, be given whole strides."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d) and module.stride[0] > 1 and module.padding == (0,):
            module.register_forward_pre_hook(_cut)


def _cut(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    assert isinstance(module, nn.Conv1d)
    values, *more = given
    extent = module.dilation[0] * (module.kernel_size[0] - 1) + 1
    rest = (values.shape[-1] - extent) % module.stride[0]
    if values.device.type != "cpu" or values.shape[-1] < extent or not rest:
        return given
    return values[..., :-rest].contiguous(), *more
