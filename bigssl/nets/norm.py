"""BatchNorm over the global batch, on any device: plain BatchNorm makes a loss curve depend on how many ranks share a
batch. On CUDA devices torch's SyncBatchNorm computes it, which runs nowhere else. (Its forward waits for the device
once a layer, to leave out ranks without samples.)"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bigssl import distributed

BatchNorm = nn.modules.batchnorm._BatchNorm


class GlobalBatchNorm(nn.SyncBatchNorm):
    """BatchNorm (Ioffe and Szegedy 2015) with statistics over all ranks; state dict as nn.BatchNorm1d/2d.

    Input [N, C], [N, C, L] or [N, C, H, W], any float dtype; statistics are float32 at least. In a single process, and
    in eval mode, it is torch's own batch norm. Ranks may hold different N. Raises ValueError where a channel has but
    one value.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 3, 4):
            raise ValueError(
                f"GlobalBatchNorm: input has shape {tuple(input.shape)}; allowed: [N, C], [N, C, L] or [N, C, H, W]"
            )

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and distributed.active()):
            return self._alone(input)  # SyncBatchNorm refuses a lone CPU
        self._check_input_dim(input)
        if input.is_cuda:
            return super().forward(input)
        mean, variance, count = global_moments(_wide(input.detach()))
        self._track(mean, variance, count)
        normed: Tensor = _NormOverRanks.apply(input, self.weight, self.bias, mean, variance, count, self.eps)
        return normed

    def _alone(self, input: Tensor) -> Tensor:
        """As `nn.BatchNorm2d` has it, also where ZeRO has put the weights at an address that cuDNN cannot read."""
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else momentum
        weight, bias = (_aligned(each) if input.is_cuda else each for each in (self.weight, self.bias))
        own = self.training or self.running_mean is None
        if own and input.numel() == input.shape[1]:
            raise ValueError(
                "BatchNorm has one value of each channel to normalise by, as a pass holds one sample in a map of one "
                "place; allowed: 2 or more samples a pass (a larger batch, a smaller batch.accum), or larger pictures"
            )
        rows = _as_rows(input)
        found = F.batch_norm(rows, self.running_mean, self.running_var, weight, bias, own, momentum, self.eps)
        return found if rows is input else found.view(len(input), -1, input.shape[1]).transpose(1, 2)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)


def _as_rows(input: Tensor) -> Tensor:
    """[N, C, L] whose channels lie next to each other (PatchTST's) as [N · L, C], elsewhere as it is: on a CPU, torch's
    kernel takes four times as long for the same numbers in strides."""
    if input.is_cuda or input.dim() != 3 or input.is_contiguous() or not input.transpose(1, 2).is_contiguous():
        return input
    return input.transpose(1, 2).flatten(0, 1)


def _aligned(weight: Tensor | None) -> Tensor | None:
    """`weight`, or its copy at an address that 16 divides.

    ZeRO lays parameters end to end: one number among them (CLIP's logit scale) shifts all that follow it. cuDNN's batch
    norm loads four numbers at a time wherever they are, which ends the process ("misaligned address").
    """
    return weight if weight is None or weight.data_ptr() % 16 == 0 else weight.clone()


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and count [] of [N, C, ...] over ranks, N and positions.

    Each rank's own are combined (Chan et al. 1979): the plain E[x²] − E[x]² cancels. Two sums are one more than torch's
    SyncBatchNorm needs, which gathers; but what they send does not grow with the number of ranks.
    """
    count = torch.tensor([x.numel() // x.shape[1]], dtype=x.dtype, device=x.device)
    own, deviation = torch.batch_norm_update_stats(x, None, None, 0.0)
    sums = distributed.all_reduce_sum(torch.cat([own * count, count]))
    mean, everywhere = sums[:-1] / sums[-1], sums[-1]
    moment = distributed.all_reduce_sum((deviation + (own - mean).square()) * count)
    return mean, moment / everywhere, everywhere


class _NormOverRanks(torch.autograd.Function):
    """BatchNorm of a rank's samples by moments of all of them, which follow the samples: the gradient is that of the
    sum of every rank's loss, and each rank has its own share of the weights' (as in torch's SyncBatchNorm).

    torch's kernels for eval mode do what is a pass over the samples; what the moments add to the gradient is linear in
    a sample: −scale/n · (Σg + x̂ · Σg·x̂), sums over all ranks.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor,
                count: Tensor, eps: float) -> Tensor:  # fmt: skip
        ctx.save_for_backward(input, weight, mean, variance, count)
        ctx.eps = eps
        return F.batch_norm(_wide(input), mean, variance, weight, bias, False, 0.0, eps).to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, variance, count = ctx.saved_tensors
        x, ones = _wide(input), torch.ones_like(mean)
        own, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            _wide(grads[0]), x, ones if weight is None else weight, mean, variance, None, None, False, ctx.eps,
            [True, True, True],
        )  # fmt: skip
        sums = distributed.all_reduce_sum(torch.cat([of_bias, of_weight])) / count
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * sums[len(mean) :]
        rest, shape = -scale * sums[: len(mean)] - slope * mean, [1, -1] + [1] * (x.dim() - 2)
        gradient = own.addcmul_(x, slope.view(shape)).add_(rest.view(shape)).to(input.dtype)
        affine = (None, None) if weight is None else (of_weight, of_bias)
        return gradient, *affine, None, None, None, None


def with_global_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm below `module` (in place; weights and buffers are kept); returns the module."""
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, _converted(child))
        else:
            with_global_batch_norm(child)
    return module


def _converted(norm: BatchNorm) -> GlobalBatchNorm:
    new = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new._parameters, new._buffers = norm._parameters, norm._buffers  # the same tensors, which may be shapes alone
    return new


class GroupNorm(nn.GroupNorm):
    """torch's. Its kernel for 16 bits, channels last, needs up to 16 times as long on a CPU as that for channels first
    (torch 2.13, gradient of [96, 32, 32, 32]: 8.2 ms, .5 and 1.2 with the two copies): there the order is changed."""

    def forward(self, input: Tensor) -> Tensor:
        last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        if input.device.type != "cpu" or input.element_size() > 2 or not last:
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm(channels: int) -> GroupNorm:
    """By sample (Wu and He 2018): as many groups as divide the channels, 8 at most."""
    return GroupNorm(math.gcd(channels, 8), channels)


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(child, BatchNorm) for child in module.modules())
