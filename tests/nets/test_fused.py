"""Activations in one kernel compute what transformers writes out, values and gradients."""

import pytest
import torch
from transformers import GPT2Model
from transformers.activations import ACT2FN

from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds.text import load_tokenizer
from bigssl.nets.fused import TanhGelu, fuse_activations
from bigssl.nets.towers import Tower


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_accurate"])
def test_the_same_function_and_slope(name: str) -> None:
    values = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e4, -1e4])]).double()
    here, there = (values.clone().requires_grad_() for _ in range(2))
    body = torch.nn.Sequential(ACT2FN[name])
    assert fuse_activations(body) == 1 and isinstance(body[0], TanhGelu)
    found, wanted = body(here), ACT2FN[name](there)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)
    found.sum().backward(), wanted[:4001].sum().backward()
    assert torch.allclose(here.grad[:4001], there.grad[:4001], rtol=1e-8, atol=1e-8)


def test_other_activations_stay() -> None:
    body = torch.nn.Sequential(ACT2FN["gelu"], ACT2FN["silu"], ACT2FN["quick_gelu"])
    before = list(body)
    assert fuse_activations(body) == 0 and list(body) == before


def test_a_backbone_of_a_run_computes_what_transformers_does_from_its_weights() -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    config = BackboneConfig(type="gpt2", tokenizer="bigssl/demo/tokenizer.json", length=16, config=sizes)
    model = Tower("text", config, load_tokenizer("bigssl/demo/tokenizer.json")).model.eval()
    theirs = GPT2Model(model.config).eval()
    theirs.load_state_dict(model.state_dict())
    assert any(isinstance(module, TanhGelu) for module in model.modules())
    ids = torch.arange(32).view(2, 16)
    assert torch.allclose(model(ids).last_hidden_state, theirs(ids).last_hidden_state, atol=1e-5)
