"""What tests of losses of two embeddings share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bigssl.objectives.base import Objective


def embeddings_of(task: Objective, head: torch.nn.Module, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """float64 [B, D] of each view, both views in one batch for every BatchNorm."""
    views = torch.cat([batch["view1"], batch["view2"]])
    with torch.no_grad():
        both = head(task.backbone.features({"image": views})).double().numpy()  # type: ignore[operator, union-attr]
    return both[: len(both) // 2], both[len(both) // 2 :]


def one_for_all(head: torch.nn.Module) -> None:
    """The last layer of the head forgets its input."""
    with torch.no_grad():
        for parameter in list(head.modules())[-1].parameters():
            parameter.zero_()
