"""Blocks of the linear cross-entropy kernels: shipped, and tuned on the spot."""

import json

import pytest
import torch

blocks = pytest.importorskip("bigssl_kernels.linear_ce.blocks")

from bigssl_kernels import configs  # noqa: E402
from bigssl_kernels.configs import FALLBACK, Block  # noqa: E402

DATA = torch.zeros(10, 100)


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """Blocks in the order in which a fake timer saw them; the fewest features and stages win."""
    seen = []

    def fake(launch):
        def time(block):
            seen.append(launch(block))
            return abs(block.features - 32) + block.stages + block.warps

        return time

    monkeypatch.setattr(blocks, "_seconds", fake)
    monkeypatch.setenv("BIGSSL_KERNELS_CACHE", str(tmp_path))
    return seen


def same(block):
    return block


def test_without_tuning_nothing_is_timed(timed, tmp_path):
    assert blocks.block_for("ce_panel", DATA, torch.bfloat16, same) == FALLBACK
    assert not timed and not list(tmp_path.iterdir())


def test_the_tuned_winner_is_kept(timed, tmp_path, monkeypatch):
    monkeypatch.setenv("BIGSSL_KERNELS_TUNE", "1")
    best = blocks.block_for("ce_panel", DATA, torch.float32, same)
    shipped = {block for (_, kernel, width), block in blocks.SHIPPED.items() if (kernel, width) == ("ce_panel", 4)}
    assert set(timed) == shipped | {FALLBACK} and len(timed) == len(set(timed)) > 2
    assert best.features == 32 and best.stages + best.warps == 6
    assert blocks.block_for("ce_panel", DATA, torch.float32, same) == best and len(timed) == len(set(timed))
    assert Block(**json.loads((tmp_path / "tuned.json").read_text())["cpu/ce_panel/torch.float32"]) == best
    configs._winners.cache_clear()  # a new process
    monkeypatch.delenv("BIGSSL_KERNELS_TUNE")
    assert blocks.block_for("ce_panel", DATA, torch.float32, None) == best
    assert blocks.block_for("ce_panel", DATA, torch.bfloat16, None) == FALLBACK  # another dtype has a winner of its own


def test_a_launch_that_cannot_be_repeated_is_not(timed, tmp_path, monkeypatch):
    monkeypatch.setenv("BIGSSL_KERNELS_TUNE", "1")
    assert blocks.block_for("ce_product", DATA, torch.float32, None) == FALLBACK
    assert not timed and not list(tmp_path.iterdir())
