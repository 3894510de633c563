"""What linear cross-entropy may be called with, checked before any implementation is chosen."""

import math
import os

import torch
from torch import Tensor

from bigssl_kernels.checks import FLOATS, check_alike, check_indices, check_matrix, check_reduction, compute_dtype

DEBUG = "BIGSSL_KERNELS_DEBUG"


def check_tensors(
    fn: str, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, token_weights: Tensor | None
) -> None:
    """Shapes, dtypes and devices fit. Outside autocast all floating inputs have one dtype, as F.linear wants them."""
    check_matrix(fn, "hidden", hidden)
    check_matrix(fn, "weight", weight)
    check_alike(fn, "weight", weight, "hidden", hidden)
    if not weight.numel():
        raise ValueError(
            f"{fn}: weight has shape {tuple(weight.shape)}; at least one class is needed, and at least one feature"
        )
    check_indices(fn, "labels", labels, hidden.shape[0], "hidden", hidden.device)
    if bias is not None:
        _check_bias(fn, bias, weight)
    if token_weights is not None:
        _check_token_weights(fn, token_weights, labels)


def _check_bias(fn: str, bias: Tensor, weight: Tensor) -> None:
    if not isinstance(bias, Tensor) or bias.dtype not in FLOATS:
        kind = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise ValueError(f"{fn}: bias has dtype {kind}; it must be a floating tensor")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"{fn}: bias has shape {tuple(bias.shape)}; weight {tuple(weight.shape)} needs one of [V]")
    if compute_dtype(bias) != compute_dtype(weight) or bias.device != weight.device:
        raise ValueError(
            f"{fn}: bias is {bias.dtype} on {bias.device} and weight {weight.dtype} on {weight.device}; "
            "both must be the same"
        )


def _check_token_weights(fn: str, token_weights: Tensor, labels: Tensor) -> None:
    if not isinstance(token_weights, Tensor):
        raise ValueError(f"{fn}: token_weights is a {type(token_weights).__name__}; it must be a torch.Tensor")
    if token_weights.shape != labels.shape or not token_weights.is_floating_point():
        raise ValueError(
            f"{fn}: token_weights has shape {tuple(token_weights.shape)} and dtype {token_weights.dtype}; labels "
            f"{tuple(labels.shape)} need one floating factor each"
        )
    if token_weights.device != labels.device:
        raise ValueError(f"{fn}: token_weights is on {token_weights.device} and labels on {labels.device}; move one")
    if token_weights.requires_grad:
        raise ValueError(f"{fn}: token_weights requires a gradient; only constants are allowed (detach them)")


def check_options(fn: str, reduction: str, label_smoothing: float, z_loss: float, softcap: float | None) -> None:
    """Numbers lie where the loss is defined."""
    check_reduction(fn, reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{fn}: label_smoothing is {label_smoothing}; allowed are 0 to 1")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"{fn}: z_loss is {z_loss}; it must be a finite number, zero or above")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"{fn}: softcap is {softcap}; it must be a finite number above zero, or None for no cap")


def checked_labels(fn: str, labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Labels as int64; one outside the vocabulary raises: on the CPU always, elsewhere (a device sync) where asked for.

    An operator looks at them, so that the same happens where a compiled graph runs.
    """
    if labels.device.type == "cpu" or os.environ.get(DEBUG) == "1":
        return linear_ce_labels(labels, classes, ignore_index, fn)
    return labels.long()


@torch.library.custom_op("bigssl_kernels::linear_ce_labels", mutates_args=())
def linear_ce_labels(labels: Tensor, classes: int, ignore_index: int, fn: str) -> Tensor:
    """int64 copy of the labels [T]; ValueError where one is neither in 0 .. classes-1 nor `ignore_index`."""
    wide = labels.to(torch.int64, copy=True)
    wrong = (wide != ignore_index) & ((wide < 0) | (wide >= classes))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{fn}: labels[{row}] is {int(wide[row])}; allowed are 0 to {classes - 1} (the rows of weight) and "
            f"ignore_index ({ignore_index})"
        )
    return wide


@linear_ce_labels.register_fake
def _(labels: Tensor, classes: int, ignore_index: int, fn: str) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.int64)
