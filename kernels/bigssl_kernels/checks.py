"""Argument checks shared by every loss: each error names the function, the argument, its value and what is allowed."""

import math

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


def check_matrix(fn: str, name: str, value: Tensor) -> None:
    """`value` must be a floating matrix."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{fn}: {name} is a {type(value).__name__}; it must be a torch.Tensor")
    if value.dim() != 2:
        raise ValueError(f"{fn}: {name} has shape {tuple(value.shape)}; it must be a matrix (rows, features)")
    if value.dtype not in FLOATS:
        raise ValueError(f"{fn}: {name} has dtype {value.dtype}; allowed are float32, bfloat16, float16 and float64")


def check_alike(fn: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Two matrices of one loss share dtype, device and the number of features."""
    if value.dtype != other.dtype and compute_dtype(value) != compute_dtype(other):
        raise ValueError(
            f"{fn}: {name} has dtype {value.dtype} and {other_name} has {other.dtype}; both must be the same "
            "(cast one, or call under torch.autocast)"
        )
    if value.device != other.device:
        raise ValueError(f"{fn}: {name} is on {value.device} and {other_name} on {other.device}; move one of them")
    if value.shape[1] != other.shape[1]:
        raise ValueError(
            f"{fn}: {name} has shape {tuple(value.shape)} and {other_name} {tuple(other.shape)}; "
            "the number of features (second dimension) must be the same"
        )


def check_pairs(fn: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Two matrices whose rows are pairs: everything alike; at least one row and one feature."""
    check_matrix(fn, name, value)
    check_matrix(fn, other_name, other)
    check_alike(fn, name, value, other_name, other)
    if value.shape != other.shape:
        raise ValueError(
            f"{fn}: {name} has shape {tuple(value.shape)} and {other_name} {tuple(other.shape)}; "
            "row i of one is the partner of row i of the other, so both shapes must be equal"
        )
    check_not_empty(fn, name, value)


def check_not_empty(fn: str, name: str, value: Tensor) -> None:
    """A batch has at least one row and a row at least one feature."""
    if value.shape[0] == 0 or value.shape[1] == 0:
        raise ValueError(f"{fn}: {name} has shape {tuple(value.shape)}; at least one row and one feature are needed")


def check_reduction(fn: str, reduction: str) -> None:
    """`reduction` is one of the three words."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{fn}: reduction is {reduction!r}; allowed are 'mean', 'sum' and 'none'")


def check_memory(fn: str, memory: str) -> None:
    """`memory` is one of the two words."""
    if memory not in ("gather", "ring"):
        raise ValueError(f"{fn}: memory is {memory!r}; allowed are 'gather' and 'ring'")


def check_indices(fn: str, name: str, value: Tensor, rows: int, of: str, device: torch.device) -> None:
    """An integer vector with one entry for each row of the tensor called `of`."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{fn}: {name} has dtype {kind}; it must be an integer tensor")
    if value.dim() != 1 or value.shape[0] != rows:
        raise ValueError(f"{fn}: {name} has shape {tuple(value.shape)} but {of} has {rows} rows; one entry per row")
    if value.device != device:
        raise ValueError(f"{fn}: {name} is on {value.device} and {of} on {device}; move one of them")


def is_real(value: Tensor) -> bool:
    """True where something is computed now: no trace, no fake tensor, no meta device."""
    if torch.compiler.is_compiling() or value.device.type == "meta":
        return False
    return not isinstance(value, torch._subclasses.FakeTensor)


def is_concrete(value: Tensor) -> bool:
    """True where the numbers of `value` may be read without a trace, a fake tensor or a device sync in the way."""
    return value.device.type == "cpu" and is_real(value)


def as_scalar(fn: str, name: str, value: float | Tensor, like: Tensor, *, positive: bool = True) -> Tensor:
    """A 0-dim tensor on the device of `like`, float32 (float64 for float64 data), through which a gradient flows.

    The value is checked where that is free: always for Python numbers, for tensors only on the CPU (reading one
    elsewhere would stall the device; there a bad value gives NaN).
    """
    dtype = accumulator(like.dtype)
    if not isinstance(value, Tensor):
        _check_number(fn, name, float(value), positive)
        return torch.full((), float(value), dtype=dtype, device=like.device)
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{fn}: {name} has shape {tuple(value.shape)} and dtype {value.dtype}; "
            "it must be a number or a floating tensor with one element"
        )
    if value.device != like.device:
        raise ValueError(f"{fn}: {name} is on {value.device} and the embeddings on {like.device}; move one of them")
    if is_concrete(value):
        _check_number(fn, name, float(value.detach()), positive)
    return value.reshape(()).to(dtype)


def _check_number(fn: str, name: str, value: float, positive: bool) -> None:
    if not (0.0 if positive else -math.inf) < value < math.inf:  # plain comparisons: torch.compile traces them
        allowed = "a finite number above zero" if positive else "a finite number"
        raise ValueError(f"{fn}: {name} is {value}; it must be {allowed}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, losses and gradients in flight."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(value: Tensor) -> torch.dtype:
    """The dtype of matrix products: that of `value`, or autocast's where autocast is on (never for float64)."""
    kind = value.device.type
    if value.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return value.dtype
