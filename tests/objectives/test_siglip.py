"""SigLIP against a loop over pairs and values known without one (Zhai et al. 2023, arXiv 2303.15343)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover
from bigssl.objectives.siglip import best_base_rate

AT = Progress(0, 100)
SIGLIP = discover()["siglip"]


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def test_it_is_a_loop_over_all_pairs(objective: Any, batch: Any) -> None:
    """Algorithm 1: the sum over pairs of −log σ(±(t x·y + b)), divided by the number of images."""
    task = objective(SIGLIP, "siglip", scale=7.0, bias=-3.0)
    data = batch(task, size=6)
    with torch.no_grad():
        parts = task.image_projection(task.image.features(data)), task.text_projection(task.text.features(data))
        x, y = (torch.nn.functional.normalize(part.double(), dim=1) for part in parts)
    pairs = [(i, j, float(x[i] @ y[j])) for i in range(6) for j in range(6)]
    wanted = sum(softplus((-1 if i == j else 1) * (7.0 * cosine - 3.0)) for i, j, cosine in pairs) / 6
    assert task(data, AT).total.item() == pytest.approx(wanted, rel=1e-5)


def test_orthogonal_embeddings_at_the_papers_beginning(objective: Any) -> None:
    """t = 10, b = −10: of each image, its own caption costs softplus(0) = ln 2, each other one softplus(−10)."""
    task = objective(SIGLIP, "siglip", scale=10.0, bias=-10.0)
    eye = torch.eye(8)
    losses = task.compare({"image": eye, "text": eye, "scale": torch.tensor(10.0), "bias": torch.tensor(-10.0)}, AT)
    assert losses.total.item() == pytest.approx(math.log(2) + 7 * math.log1p(math.exp(-10)), rel=1e-6)
    assert task.log_scale.exp().item() == pytest.approx(10.0) and task.bias.item() == -10.0


@pytest.mark.parametrize("count", [2, 12, 512])
def test_the_blind_line_is_the_least_over_constant_logits(count: int) -> None:
    logits = [n / 1000 for n in range(-9000, 2000)]
    least = min(softplus(-logit) + (count - 1) * softplus(logit) for logit in logits)
    assert best_base_rate(count) == pytest.approx(least, rel=1e-6)
    assert best_base_rate(count) == pytest.approx(1 + math.log(count), rel=0.25)
