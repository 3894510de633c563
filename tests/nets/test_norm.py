"""BatchNorm over ranks is BatchNorm over the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
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
    return [*both_kinds("cpu"), *both_kinds("cpu", torch.float64)]


def on_gpu(rank: int) -> Any:
    """Of two ranks; where there is one device they share it, which NCCL refuses."""
    count = torch.cuda.device_count()
    torch.cuda.set_device(rank % count)
    torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group("nccl" if count > 1 else "gloo")
    return both_kinds("cuda")


def both_kinds(device: str, dtype: torch.dtype = torch.float32) -> Any:
    return [on_share(with_global_batch_norm(network(kind)).to(device, dtype), device) for kind in KINDS]


def on_share(model: nn.Module, device: str) -> Any:
    share = images().split(SPLIT)[dist.get_rank()].to(device, model[0].weight.dtype)
    for _ in range(3):
        model.zero_grad()
        output = model(share)
        objective(output).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for grad in grads.values():
        dist.all_reduce(grad)
    buffers = {name: value.cpu() for name, value in model.named_buffers()}
    return output.detach().cpu(), {name: grad.cpu() for name, grad in grads.items()}, buffers


@pytest.mark.distributed
def test_two_uneven_ranks_equal_torch_on_the_whole_batch(ranks: Any) -> None:
    check_both(*ranks(on_rank, 2))


@pytest.mark.distributed
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_uneven_ranks_on_gpus_equal_torch_on_the_whole_batch(tmp_path: Path) -> None:
    """In processes of their own: a fork of one that has looked for devices cannot use them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        given = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    files = [tmp_path / "0.pt", tmp_path / "1.pt"]
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(file)], env=given | {"RANK": str(rank)})
        for rank, file in enumerate(files)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    check_both(*(torch.load(file) for file in files))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("training", [True, False])
def test_weights_may_lie_at_any_address(training: bool) -> None:
    """ZeRO puts them behind whatever came before them. (cuDNN reads four at a time at some shapes only.)"""
    for shape in ((8, 8, 16, 16), (8, 8, 8, 8), (8, 16, 4, 4)):
        width, x = shape[1], torch.randn(shape, device="cuda", requires_grad=True)
        flat, want, got = torch.rand(2 * width + 1), nn.BatchNorm2d(width).cuda(), GlobalBatchNorm(width).cuda()
        got.weight.data, got.bias.data = flat.cuda()[1:].chunk(2)
        want.weight.data, want.bias.data = (part.cuda() for part in flat[1:].chunk(2))
        assert got.weight.data_ptr() % 16 and want.weight.data_ptr() % 16 == 0
        results = []
        for norm in (want.train(training), got.train(training)):
            output = norm(x)
            results.append([output, *torch.autograd.grad((output**3).sum(), [x, norm.weight, norm.bias])])
        for pair in [*zip(*results, strict=True), *zip(want.buffers(), got.buffers(), strict=True)]:
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


def check_both(first: Any, second: Any) -> None:
    for kind, (output, grads, buffers), (other, _, _) in zip((KINDS * 2)[: len(first)], first, second, strict=True):
        check_equal(network(kind).to(output.dtype), torch.cat([output, other]), grads, buffers)


def check_equal(model: nn.Module, found: torch.Tensor, grads: Any, buffers: Any) -> None:
    for _ in range(3):
        model.zero_grad()
        output = model(images().to(found.dtype))
        objective(output).backward()
    fine = 1e-9 if found.dtype == torch.float64 else 1.0
    torch.testing.assert_close(found, output.detach(), rtol=1e-4 * fine, atol=1e-5 * fine)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3 * fine, atol=1e-4 * scale * fine, msg=name)
    for name, value in model.named_buffers():
        torch.testing.assert_close(buffers[name], value, rtol=1e-5 * fine, atol=1e-6 * fine, msg=name)


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


def alone() -> torch.Tensor:
    zero.start()
    return network(GlobalBatchNorm)(images()).detach()


@pytest.mark.distributed
def test_a_group_of_one_rank_is_torch_alone(ranks: Any) -> None:
    """SyncBatchNorm itself refuses a CPU as soon as there is a process group."""
    torch.testing.assert_close(ranks(alone, 1)[0], network(nn.BatchNorm2d)(images()).detach())


if __name__ == "__main__":
    torch.save(on_gpu(int(sys.argv[1])), sys.argv[2])


@pytest.mark.parametrize("training", [True, False])
def test_channels_that_lie_together_are_normalised_as_those_that_do_not(training: bool) -> None:
    """Output, gradients and running statistics of [N, L, C] seen as [N, C, L]."""
    torch.manual_seed(0)
    data = torch.randn(5, 7, 6, dtype=torch.float64)
    plain, ours = nn.BatchNorm1d(6).double(), with_global_batch_norm(nn.Sequential(nn.BatchNorm1d(6).double()))
    found = []
    for norm, together in ((plain, False), (ours, True)):
        leaf = data.clone().requires_grad_()
        seen = leaf.transpose(1, 2) if together else leaf.transpose(1, 2).contiguous()
        result = norm.train(training)(seen)
        (result * torch.arange(7.0)).square().sum().backward()
        own = norm if norm is plain else norm[0]
        found.append([result, leaf.grad, own.running_mean, own.running_var, own.weight.grad, own.bias.grad])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
