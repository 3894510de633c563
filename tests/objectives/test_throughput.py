"""Tokens are counted as a person would, and the share of a card's peak is the paper's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigssl.engine.stepping import throughput
from bigssl.engine.stepping.throughput import Throughput, flops_of_token, shown_tokens
from bigssl.objectives.base import discover


@pytest.mark.parametrize(("name", "options"), [("mlm", {}), ("mlm", {"packing": True}), ("causal_lm", {})])
def test_tokens_are_those_that_are_not_padding(name: str, options: dict[str, Any], objective: Any, batch: Any) -> None:
    task = objective(discover()[name], name, **options)
    data = batch(task)
    pad = task.backbone.tokenizer.pad_token_id
    alone = int((data["input_ids"] != pad).sum()) if pad is not None else int(data["found"].numel())
    assert shown_tokens(data) == alone > 0
    assert shown_tokens({"one": data, "other": {"pixel_values": torch.ones(3)}, "more": data}) == 2 * alone


def test_the_share_of_the_peak_is_that_of_the_paper(
    objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = objective(discover()["causal_lm"], "causal_lm").backbone
    config, weights = tower.model.config, 0
    for name, parameter in tower.model.named_parameters():
        weights += parameter.numel() * (not name.startswith(("wte", "wpe")))
    flops = 6 * weights + 12 * config.n_layer * config.n_embd * tower.length
    assert flops_of_token(tower) == flops
    monkeypatch.setattr(throughput, "peak_of", lambda device: 1e9)
    found = Throughput([tower], torch.device("cpu")).lap(3000.0, 2.0, ranks=4)
    assert found == {"speed/tokens_per_s": 1500.0, "speed/mfu": pytest.approx(flops * 1500 / 4 / 1e9)}
    assert "speed/mfu" not in Throughput([tower, tower], torch.device("cpu")).lap(3000.0, 2.0, ranks=4)
    assert not Throughput([tower], torch.device("cpu")).lap(0.0, 2.0, ranks=4)
