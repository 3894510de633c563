"""What the contrastive losses are compared with: dense torch, torch.compile, and the losses of other packages.

A peer computes the same number from two matrices of embeddings. lightly and open_clip need torchvision to be imported;
of open_clip the file with the loss, which does not, is loaded by itself.
"""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import bigssl_kernels

Loss = Callable[[Tensor, Tensor], Tensor]
DENSE_LIMIT = {"cpu": 16384, "cuda": 65536}  # rows beyond which a full matrix of logits is not tried
CUBIC = {"pytorch-metric-learning": 512}  # takes M^3 bytes: 550 GB at M = 8192


def dense_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    z = F.normalize(torch.cat([first, second]), dim=1)
    logits = (z @ z.T / temperature).float().fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(first)))


def dense_clip_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    logits = (F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature).float()
    target = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


DENSE = {"nt_xent": dense_nt_xent, "clip_loss": dense_clip_loss}


def ours(op: str, impl: str, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    number = temperature if op == "nt_xent" else 1 / temperature
    return getattr(bigssl_kernels, op)(first, second, number, impl=impl)


def lightly(temperature: float) -> Loss:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature)


def metric_learning(temperature: float) -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature))


def open_clip(temperature: float) -> Loss:
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'open_clip'")
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clip = module.ClipLoss()
    return lambda a, b: clip(F.normalize(a, dim=1), F.normalize(b, dim=1), 1 / temperature)


def sentence_transformers(temperature: float) -> Loss:
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    both = ("query_to_doc", "doc_to_query")
    loss = MultipleNegativesRankingLoss(None, scale=1 / temperature, directions=both, partition_mode="per_direction")
    return lambda a, b: loss.compute_loss_from_embeddings([a, b], None)


PEERS: dict[str, dict[str, Callable[[float], Loss]]] = {
    "nt_xent": {"lightly": lightly, "pytorch-metric-learning": metric_learning},
    "clip_loss": {"open_clip_torch": open_clip, "sentence-transformers": sentence_transformers},
}


@functools.cache
def peers(op: str, temperature: float) -> tuple[dict[str, Loss], dict[str, str]]:
    """Losses of the packages that can be imported here, and why the others cannot."""
    found: dict[str, Loss] = {}
    absent: dict[str, str] = {}
    for name, make in PEERS[op].items():
        try:
            found[name] = make(temperature)
        except Exception as error:  # absent, or broken in whatever way: a benchmark of the rest goes on
            absent[name] = f"not installed: {type(error).__name__}: {error}"
    return found, absent


def providers(op: str, temperature: float, device: str, rows: int, wanted: list[str] | None) -> dict[str, Loss]:
    """Name -> loss, dense torch first; without those that hold a matrix of logits where it would be too large."""
    impls = ["torch", "triton"] if device == "cuda" else ["torch", "auto"]
    table: dict[str, Loss] = {}
    if rows <= DENSE_LIMIT[device]:
        compiled = torch.compile(DENSE[op])
        table["dense"] = functools.partial(DENSE[op], temperature=temperature)
        table["compiled"] = lambda a, b: compiled(a, b, temperature)
        if not wanted or set(PEERS[op]) & set(wanted):
            table |= peers(op, temperature)[0]
    table |= {f"ours/{impl}": functools.partial(ours, op, impl, temperature=temperature) for impl in impls}
    return {
        name: loss for name, loss in table.items() if rows <= CUBIC.get(name, rows) and (not wanted or name in wanted)
    }


def versions() -> str:
    """Of everything that may have been timed."""
    names = ["torch", "triton", *(name for table in PEERS.values() for name in table)]
    found = [(name, importlib.metadata.version(name)) for name in names if _installed(name)]
    return " ".join(f"{name} {version}" for name, version in found)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
