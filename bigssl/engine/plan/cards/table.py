"""What is published about cards: memory, number formats, peak rates without sparsity, bandwidth, and whether NVLink
joins those of a machine."""

from __future__ import annotations

from dataclasses import dataclass

from bigssl.config.errors import ConfigError, nearest


@dataclass(frozen=True)
class Card:
    """gigabytes: of memory, 10^9 bytes. bf16, fp32: peak TFLOP/s of dense matrix products (bf16 in tensor cores, None
    without; fp32 outside of them). bandwidth: of memory, GB/s. source: which figures these are."""

    name: str
    gigabytes: float
    bf16: float | None
    fp32: float
    bandwidth: int
    nvlink: bool
    source: str

    @property
    def usable(self) -> int:
        """Bytes that a run may plan with: cards report somewhat more than the published 10^9 bytes a GB, or, with
        error correction in GDDR memory, somewhat less; the CUDA context and NCCL take about 1 GB of them."""
        return round((self.gigabytes - CONTEXT) * 1e9)


CONTEXT = 1  # GB
CARDS = {
    card.name: card
    for card in (
        Card("t4-16", 16, None, 8.1, 320, False, "NVIDIA T4 data sheet"),
        Card("v100-16", 16, None, 15.7, 900, True, "NVIDIA V100 data sheet, SXM2"),
        Card("v100-32", 32, None, 15.7, 900, True, "NVIDIA V100 data sheet, SXM2"),
        Card("a10-24", 24, 125, 31.2, 600, False, "NVIDIA A10 data sheet"),
        Card("l4-24", 24, 121, 30.3, 300, False, "NVIDIA L4 data sheet"),
        Card("rtx3090-24", 24, 71, 35.6, 936, False, "NVIDIA GA102 architecture paper, without a bridge"),
        Card("rtx4090-24", 24, 165.2, 82.6, 1008, False, "NVIDIA Ada architecture paper"),
        Card("a100-40", 40, 312, 19.5, 1555, True, "NVIDIA A100 data sheet, SXM4"),
        Card("l40s-48", 48, 362, 91.6, 864, False, "NVIDIA L40S data sheet"),
        Card("a100-80", 80, 312, 19.5, 2039, True, "NVIDIA A100 data sheet, SXM4"),
        Card("h100-80", 80, 989, 67, 3350, True, "NVIDIA H100 data sheet, SXM5"),
        Card("h200-141", 141, 989, 67, 4800, True, "NVIDIA H200 data sheet, SXM5"),
        Card("b200-192", 180, 2250, 75, 7700, True, "NVIDIA HGX B200: 180 of the 192 GB that are built in"),
    )
}


def card_named(name: str) -> Card:
    """Raises ConfigError, with those that are known."""
    if name not in CARDS:
        known = list(CARDS)
        raise ConfigError(f"--gpu: value {name!r}; allowed: {', '.join(known)}{nearest(name, known)}; of another card, "
                          "its memory in GiB with --memory")  # fmt: skip
    return CARDS[name]
