"""Cross-entropy of a linear head, for masked and causal language models: the logits are never held."""

from torch import Tensor

from bigssl_kernels import _reference
from bigssl_kernels._checks import check_alike, check_indices, check_matrix, check_reduction, compute_dtype
from bigssl_kernels._dispatch import FAMILIES, choose
from bigssl_kernels._linear_ce import linear_ce_rows

NAME = "linear_cross_entropy"


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """F.cross_entropy(hidden @ weight.T + bias, labels) without its T x V logits.

    Only rows whose label is not `ignore_index` are computed. A frozen hidden, weight or bias costs nothing.

    Args:
        hidden: [T, H] states, float32, bfloat16, float16 or float64 (the Triton kernels not); any strides.
        weight: [V, H] rows of the output embedding; same dtype and device.
        labels: [T] integers in 0 .. V-1, or `ignore_index`.
        bias: [V], same dtype, or None.
        ignore_index: rows with this label give no loss and no gradient.
        reduction: "mean" over the kept rows, "sum", or "none": [T] losses, 0 where ignored, each with its own upstream
            gradient (per-token weights).
        label_smoothing: share of the target spread over all V classes, in [0, 1].
        z_loss: adds z_loss * logsumexp**2 to each kept row (Chowdhery et al. 2022).
        softcap: logits become softcap * tanh(logits / softcap).
        impl: "auto", "triton", "torch" or "reference"; the variable BIGSSL_KERNELS replaces "auto".

    Returns:
        A float32 scalar (float64 for float64 inputs) or [T] losses. Without any kept row: 0 and zero gradients.

    Raises:
        ValueError: shapes, dtypes, devices or an option do not fit, or a label lies outside (on the CPU, elsewhere with
            BIGSSL_KERNELS_DEBUG=1; without it that row's loss is NaN).
        RuntimeError: the implementation asked for cannot run here.
    """
    _check(hidden, weight, labels, bias, label_smoothing, softcap)
    check_reduction(NAME, reduction)
    chosen = choose(NAME, "linear_ce", impl, hidden)
    options = (ignore_index, label_smoothing, z_loss, softcap)
    if chosen == "reference":
        rows = _reference.linear_cross_entropy(hidden, weight, labels, bias, *options)
    else:
        rows = linear_ce_rows(hidden, weight, labels.long(), bias, *options, compute_dtype(hidden), chosen)[0]
    if reduction == "none":
        return rows
    total = rows.sum()
    return total / (labels != ignore_index).sum().clamp(min=1) if reduction == "mean" else total


def _check(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, label_smoothing: float, softcap: float | None
) -> None:
    check_matrix(NAME, "hidden", hidden)
    check_matrix(NAME, "weight", weight)
    check_alike(NAME, "weight", weight, "hidden", hidden)
    if weight.shape[0] == 0:
        raise ValueError(f"{NAME}: weight has shape {tuple(weight.shape)}; at least one class is needed")
    check_indices(NAME, "labels", labels, hidden.shape[0], "hidden", hidden.device)
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"{NAME}: bias has shape {tuple(bias.shape)}; weight {tuple(weight.shape)} needs one of [V]"
            )
        if compute_dtype(bias) != compute_dtype(weight) or bias.device != weight.device:
            raise ValueError(
                f"{NAME}: bias is {bias.dtype} on {bias.device} and weight {weight.dtype} on {weight.device}; "
                "both must be the same"
            )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{NAME}: label_smoothing is {label_smoothing}; allowed are 0 to 1")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{NAME}: softcap is {softcap}; it must be above zero, or None for no cap")


FAMILIES[NAME] = "linear_ce"
