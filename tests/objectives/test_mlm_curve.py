"""Masked language modelling learns the same, whichever implementation computes its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigssl.objectives.mlm import Mlm


def curve(objective: Any, batch: Any) -> list[float]:
    """Losses of a few steps of training."""
    task = objective(Mlm, "mlm")
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for step in range(8):
        loss = task(batch(task, step=step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_curve_is_the_reference_implementations(
    objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGSSL_KERNELS", "reference")
    expected = curve(objective, batch)
    monkeypatch.setenv("BIGSSL_KERNELS", "torch")
    assert curve(objective, batch) == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]
