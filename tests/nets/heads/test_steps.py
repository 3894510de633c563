"""Windows of series filled in by a network: against loops, with values missing, and by nothing that is hidden."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PatchTSTConfig, PatchTSTModel

from bigssl.nets.heads.steps import errors_when_hidden, rebuilt, window_deviation

STEPS, CHANNELS, SIZE = 14, 2, 4  # two steps in front fill no patch


@pytest.fixture
def model() -> PatchTSTModel:
    torch.manual_seed(0)
    config = PatchTSTConfig(
        context_length=STEPS, num_input_channels=CHANNELS, patch_length=SIZE, patch_stride=SIZE, d_model=8,
        num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, norm_type="layernorm", do_mask_input=False,
    )  # fmt: skip
    return PatchTSTModel(config).eval()


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(8, SIZE)


def windows(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(count, STEPS, CHANNELS, generator=generator) * torch.tensor([1.0, 20.0]) + 50
    return values, torch.rand(values.shape, generator=generator) > 0.1


@torch.no_grad()
def test_what_is_rebuilt_is_what_loops_say(model: PatchTSTModel, head: nn.Linear) -> None:
    values, seen = windows()
    got = rebuilt(model, head, values, seen)
    for row in range(len(values)):
        means, scales = torch.zeros(CHANNELS), torch.zeros(CHANNELS)
        given = torch.zeros(STEPS, CHANNELS)
        for channel in range(CHANNELS):
            known = values[row, seen[row, :, channel], channel].double()
            means[channel], scales[channel] = known.mean(), (known.var(correction=0) + 1e-5).sqrt()
            given[:, channel] = torch.where(seen[row, :, channel], values[row, :, channel], means[channel])
        hidden = model(past_values=given[None], past_observed_mask=seen[row, None].float()).last_hidden_state[0]
        for channel in range(CHANNELS):
            made = head(hidden[channel]).flatten() * scales[channel] + means[channel]
            torch.testing.assert_close(got[row, 2:, channel], made, rtol=1e-4, atol=1e-4)
            assert got[row, :2, channel].sub(means[channel]).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("ratio", "rounds"), [(0.4, 3), (0.5, 2), (0.34, 3)])
def test_no_step_is_judged_by_a_pass_that_saw_it(
    model: PatchTSTModel, head: nn.Linear, ratio: float, rounds: int
) -> None:
    """Another value there: another error there, by the same value that is filled in; and others are elsewhere."""
    values, observed = windows()
    observed[:] = True
    calls: list[torch.Tensor] = []
    model.register_forward_hook(lambda *_: calls.append(torch.empty(0)))
    before = errors_when_hidden(model, head, values, observed, ratio)
    assert len(calls) == rounds
    assert before[:, :2].isnan().all() and before[:, 2:].isfinite().all()
    changed = values.clone()
    changed[0, 7, 1] += 30
    after = errors_when_hidden(model, head, changed, observed, ratio)
    root = {sign: values[0, 7, 1] + sign * before[0, 7, 1].sqrt() for sign in (1, -1)}  # what is filled in: one of both
    assert any(abs((made - changed[0, 7, 1]) ** 2 - after[0, 7, 1]) < 1e-2 for made in root.values())
    together = slice(6, 10)  # the patch of that step
    same = after[0, together, 1] == before[0, together, 1]
    assert same.tolist() == [True, False, True, True]
    assert torch.equal(after[1:, 2:], before[1:, 2:]) and not torch.equal(after[0, 10:, 1], before[0, 10:, 1])


def test_unobserved_values_have_no_error(model: PatchTSTModel, head: nn.Linear) -> None:
    values, observed = windows()
    with torch.no_grad():
        found = errors_when_hidden(model, head, values.masked_fill(~observed, 1e6), observed, 0.4)[:, 2:]
        same = errors_when_hidden(model, head, values.masked_fill(~observed, 0.0), observed, 0.4)[:, 2:]
    assert not found[~observed[:, 2:]].any() and torch.equal(found, same)


def test_a_deviation_is_the_same_in_numpy_and_torch() -> None:
    values, seen = windows()
    centred = values - 50
    other = torch.from_numpy(window_deviation(centred.numpy(), seen.numpy()))
    torch.testing.assert_close(window_deviation(centred, seen), other.float())
