"""The network a pretrained one has to beat: the same architecture with random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from bigssl.nets.norm import BatchNorm, has_batch_norm
from bigssl.transfer.features import embed, evaluating


def random_network(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """The architecture of `config` with fresh float32 weights that depend on `seed` alone; the global generator is
    left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)
    return model.eval()


def calibrate_batch_norm(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], device: str | torch.device
) -> int:
    """Gives BatchNorm layers the statistics of real samples, as the plain mean over batches; returns the batch count.

    An untrained network still has mean 0 and variance 1 in its running statistics, which belong to no data: judged
    with those it would lose for want of bookkeeping, not of learning. Only the statistics are set, by forward passes
    without gradient; weights stay as they are. Networks without BatchNorm are left alone.

    batches: collated views each, of two samples or more.
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    if not has_batch_norm(model):
        return 0
    model.to(device)  # type: ignore[arg-type]
    momenta = [norm.momentum for norm in norms]
    count = 0
    with evaluating(model):  # dropout stays off; the norms alone train
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean instead of an exponential one
            norm.training = True
        for batch in batches:
            embed(model, {name: value.to(device) for name, value in batch.items()})
            count += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return count
