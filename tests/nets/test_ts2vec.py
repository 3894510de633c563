"""TS2Vec's encoder: against convolutions written out, with values missing, and with weights as torch makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModel

import bigssl.nets.known  # noqa: F401 - AutoModel knows it from then on
from bigssl.nets.series.ts2vec import Ts2vecBlock, Ts2vecConfig, Ts2vecModel


def tiny(**changes: object) -> Ts2vecModel:
    torch.manual_seed(0)
    fields = {"num_input_channels": 2, "hidden_size": 5, "width": 3, "depth": 2} | changes
    return Ts2vecModel(Ts2vecConfig(**fields)).double().eval()  # type: ignore[arg-type]


def gelu(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))(values)
    return found


def convolved(states: np.ndarray, layer: torch.nn.Conv1d) -> np.ndarray:
    """[T, before] -> [T, after], by the definition; beyond both ends stands 0."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()  # type: ignore[union-attr]
    middle, dilation, found = weight.shape[2] // 2, layer.dilation[0], []
    for t in range(len(states)):
        value = bias.copy()
        for tap in range(weight.shape[2]):
            place = t + (tap - middle) * dilation
            if 0 <= place < len(states):
                value += weight[:, :, tap] @ states[place]
        found.append(value)
    return np.stack(found)


@torch.no_grad()
@pytest.mark.parametrize(("scaling", "kernel"), [("std", 3), (None, 5)])
def test_states_are_what_the_definition_says(scaling: str | None, kernel: int) -> None:
    model = tiny(scaling=scaling, kernel_size=kernel)
    rng = np.random.default_rng(0)
    values, observed = rng.standard_normal((11, 2)) * 5 + 7, rng.random((11, 2)) > 0.3
    observed[4] = False  # a step that is hidden
    given = np.where(observed, values, 99.0)
    got = model(torch.from_numpy(given)[None], torch.from_numpy(observed)[None].double()).last_hidden_state[0]
    known = np.zeros_like(values)
    for channel in range(2):
        seen = values[observed[:, channel], channel]
        mean, scale = (seen.mean(), math.sqrt(seen.var() + 1e-5)) if scaling else (0.0, 1.0)
        known[:, channel] = np.where(observed[:, channel], (values[:, channel] - mean) / scale, 0)
    weight, bias = model.embedder.weight.numpy(), model.embedder.bias.numpy()
    states = (known @ weight.T + bias) * observed.any(1)[:, None]
    for block in model.blocks:
        assert isinstance(block, Ts2vecBlock)
        beside = states if block.shortcut is None else convolved(states, block.shortcut)  # type: ignore[arg-type]
        states = convolved(gelu(convolved(gelu(states), block.first)), block.second) + beside
    np.testing.assert_allclose(got.numpy(), states, atol=1e-9)


def test_layers_are_those_of_the_paper() -> None:
    """Ten blocks and the widening one, of dilations 1 to 1024; weights are counted by hand."""
    model = Ts2vecModel(Ts2vecConfig(num_input_channels=7))
    assert [block.first.dilation[0] for block in model.blocks] == [2**n for n in range(11)]  # type: ignore[union-attr]
    hidden = 10 * 2 * (64 * 64 * 3 + 64)
    widening = (64 * 320 * 3 + 320) + (320 * 320 * 3 + 320) + (64 * 320 + 320)
    assert sum(p.numel() for p in model.parameters()) == 7 * 64 + 64 + hidden + widening
    states = model(torch.randn(2, 50, 7)).last_hidden_state  # any number of steps
    assert states.shape == (2, 50, 320)


def test_weights_begin_as_torch_makes_them_and_come_back_as_they_were(tmp_path: object) -> None:
    """transformers' own range, .02, would make of eleven blocks next to nothing."""
    model = Ts2vecModel(Ts2vecConfig(width=64, depth=2))
    bound = 1 / math.sqrt(64 * 3)
    largest = model.blocks[0].first.weight.abs().max().item()  # type: ignore[union-attr]
    assert 0.95 * bound < largest <= bound
    model.save_pretrained(str(tmp_path))
    again = AutoModel.from_pretrained(str(tmp_path))
    assert type(again) is Ts2vecModel
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(("fields", "said"), [({"kernel_size": 4}, "kernel_size 4; allowed: an odd number"),
                                              ({"scaling": "mean"}, "scaling 'mean'; allowed: std, or null")])
def test_odd_settings_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ts2vecConfig(**fields)  # type: ignore[arg-type]
