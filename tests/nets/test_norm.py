"""BatchNorm over ranks is BatchNorm over the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bigssl.engine import zero
from bigssl.nets.norm import GlobalBatchNorm, has_batch_norm, with_global_batch_norm

SPLIT = [5, 2]  # ranks may hold different numbers of samples


KINDS = [nn.BatchNorm2d, nn.BatchNorm1d]  # norms of [N, C, H, W] and of [N, C, L]


def network(kind: type) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Flatten(2), kind(4)) if kind is nn.BatchNorm1d else kind(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 6))


def images() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(sum(SPLIT), 3, 6, 6, dtype=torch.float32) * 3 + 2


def objective(output: torch.Tensor) -> torch.Tensor:
    return (output**3).sum()


def on_rank() -> Any:
    zero.start()
    return [on_share(with_global_batch_norm(network(kind))) for kind in KINDS]


def on_share(model: nn.Module) -> Any:
    share = images().split(SPLIT)[dist.get_rank()]
    for _ in range(3):
        model.zero_grad()
        output = model(share)
        objective(output).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for grad in grads.values():
        dist.all_reduce(grad)
    return output.detach(), grads, dict(model.named_buffers())


@pytest.mark.distributed
def test_two_uneven_ranks_equal_torch_on_the_whole_batch(ranks: Any) -> None:
    for kind, (first, grads, buffers), (second, _, _) in zip(KINDS, *ranks(on_rank, 2), strict=True):
        check_equal(network(kind), torch.cat([first, second]), grads, buffers)


def check_equal(model: nn.Module, found: torch.Tensor, grads: Any, buffers: Any) -> None:
    for _ in range(3):
        model.zero_grad()
        output = model(images())
        objective(output).backward()
    torch.testing.assert_close(found, output.detach(), rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
    for name, value in model.named_buffers():
        torch.testing.assert_close(buffers[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_conversion_keeps_weights_and_state_names() -> None:
    model = network(nn.BatchNorm2d)
    with torch.no_grad():
        model[1].weight.uniform_()
    before, x = model.state_dict(), images()
    expected = model.eval()(x)
    converted = with_global_batch_norm(model)
    assert has_batch_norm(converted) and isinstance(converted[1], GlobalBatchNorm)
    assert list(converted.state_dict()) == list(before)
    torch.testing.assert_close(converted.eval()(x), expected)
