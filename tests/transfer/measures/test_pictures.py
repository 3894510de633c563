"""PSNR and SSIM against loops over pixels and windows, and against what they are in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bigssl.transfer.measures.pictures import psnr, ssim

GENERATOR = torch.Generator().manual_seed(0)
TRUTH = torch.randint(0, 256, (3, 3, 16, 19), dtype=torch.uint8, generator=GENERATOR)
MADE = (TRUTH.int() + torch.randint(-60, 60, TRUTH.shape, generator=GENERATOR)).clamp(0, 255).to(torch.uint8)
JUDGED = torch.rand(3, 1, 16, 19, generator=GENERATOR) < 0.4
ALL = torch.ones_like(JUDGED)


def psnr_in_loops(made: np.ndarray, truth: np.ndarray, judged: np.ndarray) -> float:
    errors = [(float(made[c, y, x]) - float(truth[c, y, x])) ** 2
              for c in range(len(made)) for y, x in zip(*np.nonzero(judged[0]), strict=True)]  # fmt: skip
    return 10 * math.log10(255**2 / np.mean(errors))


def ssim_in_loops(made: np.ndarray, truth: np.ndarray, judged: np.ndarray) -> float:
    """Wang et al. 2004, section III-B: equations (13) to (16), one window after another."""
    bell = [[math.exp(-((y - 5) ** 2 + (x - 5) ** 2) / (2 * 1.5**2)) for x in range(11)] for y in range(11)]
    w = np.array(bell) / np.sum(bell)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    total = weight = 0.0
    for channel in range(len(made)):
        for top in range(made.shape[1] - 10):
            for left in range(made.shape[2] - 10):
                x, y = (each[channel, top : top + 11, left : left + 11].astype(float) for each in (made, truth))
                mx, my = (w * x).sum(), (w * y).sum()
                vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
                cov = (w * (x - mx) * (y - my)).sum()
                value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
                seen = (w * judged[0, top : top + 11, left : left + 11]).sum()
                total, weight = total + seen * value, weight + seen
    return total / weight


@pytest.mark.parametrize("judged", [JUDGED, ALL], ids=["some", "all"])
def test_numbers_are_those_of_loops(judged: torch.Tensor) -> None:
    for measure, loops in ((psnr, psnr_in_loops), (ssim, ssim_in_loops)):
        found = measure(MADE, TRUTH, judged)
        wanted = [loops(*each) for each in zip(MADE.numpy(), TRUTH.numpy(), judged.numpy(), strict=True)]
        assert found.tolist() == pytest.approx(wanted, rel=1e-9) and found.dtype == torch.float64


def test_closed_forms() -> None:
    assert ssim(TRUTH, TRUTH, JUDGED).tolist() == pytest.approx([1.0] * 3)
    assert psnr(TRUTH, TRUTH, JUDGED).tolist() == pytest.approx([10 * math.log10(12 * 255**2)] * 3)  # 58.9
    flat, other = (torch.full((1, 1, 11, 11), grey, dtype=torch.uint8) for grey in (100, 150))
    everywhere = torch.ones(1, 1, 11, 11, dtype=torch.bool)
    assert psnr(flat, other, everywhere).item() == pytest.approx(20 * math.log10(255 / 50))
    c1 = (0.01 * 255) ** 2
    assert ssim(flat, other, everywhere).item() == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def test_what_is_not_judged_does_not_count() -> None:
    """Far from it, no window sees it either."""
    judged = torch.zeros(3, 1, 16, 19, dtype=torch.bool)
    judged[..., :2] = True
    far, near = MADE.clone(), MADE.clone()
    far[..., 14:] = 0
    near[..., 4:] = 0
    assert torch.equal(psnr(near, TRUTH, judged), psnr(MADE, TRUTH, judged))
    assert torch.equal(ssim(far, TRUTH, judged), ssim(MADE, TRUTH, judged))
    assert not torch.equal(ssim(near, TRUTH, judged), ssim(MADE, TRUTH, judged))
