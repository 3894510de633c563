"""What passes the networks in a second, and the share of a card's peak that this takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bigssl.nets.towers import Tower

PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "V100": 125e12}
"""Dense products in 16 bits a second, by what stands in a card's name: NVIDIA's data sheets, of SXM cards."""


def shown_tokens(data: Any) -> int:
    """Tokens of text in a batch as `assemble` gave it, on the host, padding apart: those that a network is shown, once
    for each task that shows them."""
    if not isinstance(data, Mapping):
        return 0
    if "input_ids" not in data:
        return sum(shown_tokens(value) for value in data.values())
    if "groups" in data:  # packed
        return sum(int((group >= 0).sum()) for group in data["groups"])
    return int(data["attention_mask"].sum()) if "attention_mask" in data else data["input_ids"].numel()


def flops_of_token(tower: Tower) -> float:
    """Floating operations that a token of a full row costs in training, 6 for each weight and 12 for each layer, place
    and width of attention (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B), of the network alone:
    neither embeddings nor heads."""
    config = tower.model.config
    embeddings = [each for each in tower.model.modules() if isinstance(each, nn.Embedding)]
    apart = {id(p) for each in embeddings for p in each.parameters()}
    weights = sum(getattr(p, "ds_numel", p.numel()) for p in tower.model.parameters() if id(p) not in apart)
    return 6.0 * weights + 12.0 * config.num_hidden_layers * config.hidden_size * tower.length


def peak_of(device: torch.device) -> float | None:
    """Of the card, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class Throughput:
    """Counts tokens between records."""

    def __init__(self, backbones: Iterable[Tower], device: torch.device) -> None:
        towers = list(backbones)
        peak, alone = peak_of(device), len(towers) == 1 and towers[0].modality == "text"
        self._share = flops_of_token(towers[0]) / peak if alone and peak else None
        self.tokens = 0

    def add(self, data: Any) -> None:
        self.tokens += shown_tokens(data)

    def lap(self, tokens: float, seconds: float, ranks: int) -> dict[str, float]:
        """Rows of the metrics for `tokens` of all ranks; starts the next lap."""
        self.tokens = 0
        if not tokens:
            return {}
        found = {"speed/tokens_per_s": tokens / seconds}
        if self._share is not None:
            found["speed/mfu"] = self._share * tokens / seconds / ranks
        return found
