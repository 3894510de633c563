"""Where an optimizer finds its step count again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bigssl.engine.restore import where_counted


@pytest.mark.parametrize("asked", [{"fused": True}, {"capturable": True}, {"foreach": True}, {}], ids=str)
def test_a_step_count_lies_where_torch_puts_it(asked: dict[str, bool]) -> None:
    """On any device but the CPU, a fused step refuses counts that were read from a checkpoint and left there."""
    weights = nn.Parameter(torch.empty(3, device="meta"))
    optimizer = torch.optim.AdamW([weights], **asked)
    count = torch.tensor(5.0)
    moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.zeros(3))
    saved = {"state": {0: {"step": count, **moments}}, "param_groups": optimizer.state_dict()["param_groups"]}
    optimizer.load_state_dict(saved)
    want = optimizer.state[weights]["step"].device
    assert where_counted(count, weights, optimizer.param_groups[0]).device == want
    assert where_counted(5, weights, optimizer.param_groups[0]) == 5
