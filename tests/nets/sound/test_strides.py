"""Strided convolutions of sounds get whole strides: the same result, and no gradient from memory that nobody wrote."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bigssl.config.recipe import BackboneConfig
from bigssl.nets.sound.strides import without_rests
from bigssl.nets.towers import Tower
from bigssl.objectives.hearing import TINY_SOUND

# What is allocated is NaN, whatever the size, until somebody writes to it.
ALLOCATE = """
#include <stdlib.h>
#include <string.h>
extern void *__libc_memalign(size_t, size_t);
int posix_memalign(void **out, size_t alignment, size_t size) {
  if (!(*out = __libc_memalign(alignment, size))) return 12;
  memset(*out, 0xff, size);
  return 0;
}
"""
GRADIENT = """
import torch
from torch import nn
from bigssl.nets.sound.strides import without_rests
torch.set_num_threads(1)
layer = nn.Sequential(nn.Conv1d(64, 64, 8, 4, bias=False))
without_rests(layer)
with torch.autocast("cpu", dtype=torch.bfloat16):
    layer(torch.randn(2, 64, 3199)).float().square().mean().backward()
print(bool(layer[0].weight.grad.isfinite().all()))
"""


def rests_of(model: nn.Module) -> list[int]:
    """What each strided convolution is given beyond whole strides, as passes are made."""
    rests: list[int] = []

    def note(layer: nn.Conv1d, given: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        rests.append((given[0].shape[-1] - layer.kernel_size[0]) % layer.stride[0])

    for layer in model.modules():
        if isinstance(layer, nn.Conv1d) and layer.stride[0] > 1:
            layer.register_forward_hook(note)
    return rests


@pytest.mark.parametrize("length", range(11, 31))
def test_a_rest_that_is_left_out_changes_nothing(length: int) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv1d(2, 3, 8, 4), nn.ReLU(), nn.Conv1d(3, 3, 1, 2), nn.Conv1d(3, 2, 1, 1, padding=2))
    cut = copy.deepcopy(plain)
    without_rests(cut)
    given = rests_of(cut)
    sounds = torch.randn(4, 2, length)
    results = []
    for net in (plain, cut):
        values = sounds.clone().requires_grad_()
        found = net(values)
        found.square().sum().backward()
        results.append([found, values.grad, *(each.grad for each in net.parameters())])
    assert given == [0, 0]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_backbone_that_hears_gives_whole_strides() -> None:
    """Of 8,003 samples, at each of its convolutions."""
    tower = Tower("x", BackboneConfig(**TINY_SOUND | {"length": 8003}), None)
    rests = rests_of(tower.model)
    tower.features({"audio": torch.randn(2, 8003), "audio_mask": torch.ones(2, 8003, dtype=torch.int64)})
    assert rests == [0, 0, 0]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to have memory allocated as NaN")
def test_no_gradient_is_made_of_memory_that_nobody_wrote(tmp_path: Path) -> None:
    (tmp_path / "allocate.c").write_text(ALLOCATE)
    library = str(tmp_path / "allocate.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(tmp_path / "allocate.c")], check=True)
    done = subprocess.run([sys.executable, "-c", GRADIENT], capture_output=True, text=True,
                          env={**os.environ, "LD_PRELOAD": library, "OMP_NUM_THREADS": "1"}, check=True)  # fmt: skip
    assert done.stdout.strip() == "True"
