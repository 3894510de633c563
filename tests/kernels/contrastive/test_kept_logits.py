"""Logits that the forward on a CPU keeps for the backward."""

import functools

import pytest
import torch

from bigssl_kernels import clip_loss, info_nce, nt_xent, sup_con
from bigssl_kernels.contrastive import similarity_torch

NAMES = {
    nt_xent: ("view1", "view2", "temperature"),
    clip_loss: ("image", "text", "logit_scale"),
    info_nce: ("query", "positive", "negatives", "temperature"),
    sup_con: ("embeddings", "temperature"),
}


def inputs_of(random, loss, scale):
    *matrices, number = NAMES[loss]
    value = torch.tensor(scale if loss is clip_loss else 1 / scale).double()
    return {name: random(70, 9) for name in matrices} | {number: value}


@pytest.mark.parametrize("loss", [nt_xent, clip_loss, info_nce, sup_con])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [5.0, 100.0])  # without and with the maximum taken out
def test_kept_logits_change_no_bit(run, random, monkeypatch, loss, dtype, scale):
    """Logits of all tiles, of some and of none: the same gradients."""
    monkeypatch.setattr(similarity_torch, "CPU_TILE", (16, 24))
    inputs = {name: value.to(dtype) for name, value in inputs_of(random, loss, scale).items()}
    fixed = {"ids": torch.arange(70) // 3} if loss is sup_con else {}
    results = []
    for size in (1 << 30, 3000, 0):
        monkeypatch.setattr(similarity_torch, "KEPT_BYTES", size)
        results.append(run(functools.partial(loss, impl="torch", **fixed), inputs))
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


@pytest.mark.parametrize("count", [5, 16, 33])
@pytest.mark.parametrize("cols", [0, 40])
def test_room_is_what_the_tiles_take(monkeypatch, count, cols):
    monkeypatch.setattr(similarity_torch, "CPU_TILE", (16, 24))
    rows, others = torch.zeros(count, 2), torch.zeros(cols, 2) if cols else None
    room = similarity_torch.room(rows, others)
    homes = [home for *_, home in similarity_torch.tiles_to_keep(rows, others, torch.zeros(room))]
    assert sum(home.numel() for home in homes) == room
    *_, last = similarity_torch.tiles_to_keep(rows, others, torch.zeros(room - 1))
    assert last[2] is None
