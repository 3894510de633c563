"""Hidden states of windows, channel by channel, and the norms of a random network."""

import copy

import pytest
import torch
from transformers import AutoModel, PatchTSMixerConfig, PatchTSTConfig, PreTrainedConfig, PreTrainedModel

from bigssl.transfer.baselines import random_network
from bigssl.transfer.steps.windows import set_norms, tokens_of

SIZES = {"context_length": 20, "num_input_channels": 3, "patch_length": 5, "patch_stride": 5, "d_model": 8}
KINDS = {
    "patchtst": PatchTSTConfig(**SIZES, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16),
    "patchtsmixer": PatchTSMixerConfig(**SIZES, num_layers=1, mode="common_channel"),
}


def network(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_the_patches_of_each_channel(kind: str) -> None:
    model, windows = network(KINDS[kind]), torch.randn(4, 20, 3)
    with torch.no_grad():
        before = tokens_of(model, windows)
        assert before.shape == (4, 3, 4, 8)
        windows[1, :, 2] += torch.linspace(-3, 3, 20)
        windows[2, 7, 0] = torch.nan
        moved = (tokens_of(model, windows) - before).abs().amax((2, 3)) > 1e-6
    assert moved.tolist() == [[window == 1 and channel == 2 or window == 2 and channel == 0 for channel in range(3)]
                              for window in range(4)]  # fmt: skip


def test_norms_of_a_random_network_are_those_of_the_training_windows() -> None:
    """With them, what a norm gives has mean 0 and variance 1 over these windows; weights are as they were."""
    model, windows = random_network(KINDS["patchtst"], 0), 5 + 3 * torch.randn(64, 20, 3).cumsum(1)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    seen: list[torch.Tensor] = []
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d))
    assert norm.running_var is not None and norm.running_var.eq(1).all()
    plain = copy.deepcopy(model)
    set_norms(model, windows, batch=64, device="cpu")
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        tokens_of(model.eval(), windows)
        assert not torch.allclose(tokens_of(model, windows), tokens_of(plain.eval(), windows), atol=1e-3)
    assert seen[0].mean((0, 2)).abs().max() < 0.01 and (seen[0].var((0, 2)) - 1).abs().max() < 0.05
