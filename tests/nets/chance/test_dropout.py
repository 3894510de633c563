"""Dropout by sample: the right share, independent masks, the same for any grouping of the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, ConvNextConfig, PreTrainedModel, SwinConfig

from bigssl.config.errors import ConfigError
from bigssl.data.order import rng
from bigssl.nets import towers
from bigssl.nets.chance import dropout
from bigssl.nets.chance.attention import _attend, _written_out, attention_by_sample

SEEDS = torch.from_numpy(rng.seeds(np.arange(64), 0, "images"))
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 101}


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_share_is_right_and_masks_are_independent(p: float) -> None:
    module, ones, n = dropout.SampleDropout(p), torch.ones(64, 8, 500), 4000
    with dropout.seeded(SEEDS):
        calls = [module(ones), module(ones)]
    with dropout.seeded(torch.from_numpy(rng.seeds(np.arange(64, 128), 0, "images"))):  # the next step
        calls.append(module(ones))
    for values in calls:
        assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / (1 - round(p * 2**16) / 2**16)).item()}
    dropped = torch.stack([values == 0 for values in calls]).flatten(2).flatten(0, 1).float()  # [3 · 64, n]
    assert abs(dropped.mean().item() - p) < 4 * (p * (1 - p) / dropped.numel()) ** 0.5
    assert dropped.mean(1).std().item() == pytest.approx((p * (1 - p) / n) ** 0.5, rel=0.2)
    between = torch.corrcoef(dropped).fill_diagonal_(0)
    assert between.abs().max() < 5.5 / n**0.5  # of samples, calls and steps: 18,000 pairs of independent rows
    columns = torch.corrcoef(dropped[:, :300].T).fill_diagonal_(0)
    assert columns.abs().max() < 5.5 / len(dropped) ** 0.5


def test_it_is_off_in_evaluation_and_refuses_to_guess() -> None:
    module, values = dropout.SampleDropout(0.5), torch.ones(4, 3)
    assert module.eval()(values) is values
    with pytest.raises(RuntimeError, match="without the seeds of samples"):
        module.train()(values)
    with dropout.seeded(SEEDS[:3]), pytest.raises(RuntimeError, match="4 rows from a batch of 3 samples"):
        module(values)
    with dropout.seeded(SEEDS[:2]):
        assert (dropout.SampleDropout(1.0)(values) == 0).all() and dropout.SampleDropout(0.0)(values) is values


def network(config: Any, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config, attn_implementation=attention)
    attention_by_sample(model, "backbones.x")
    dropout.by_sample(nn.ModuleList([model]))
    return model.train()


def of_rows(model: PreTrainedModel, inputs: dict[str, Tensor], rows: Tensor, seeds: Tensor = SEEDS) -> Tensor:
    with dropout.seeded(seeds[rows]):
        hidden: Tensor = model(**{name: value[rows] for name, value in inputs.items()}).last_hidden_state
    return hidden


def pictures() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def texts() -> dict[str, Tensor]:
    ids = torch.randint(0, 101, (6, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([12, 5, 9, 12, 2, 7])[:, None]).long()}


NETWORKS = {
    "bert": (BertConfig(**BERT), texts),
    "convnext": (ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[2, 2], drop_path_rate=0.5,
                               layer_scale_init_value=0.5), pictures),
    "swin": (SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4,
                        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, drop_path_rate=0.5), pictures),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "attention"), [("bert", "sdpa"), ("bert", "eager"), ("swin", "sdpa"), ("convnext", "eager")]
)
def test_a_sample_is_dropped_alike_in_any_company(kind: str, attention: str) -> None:
    config, inputs = NETWORKS[kind][0], NETWORKS[kind][1]()
    model, state = network(config, attention), torch.get_rng_state()
    together = of_rows(model, inputs, torch.arange(6))
    apart = torch.cat([of_rows(model, inputs, torch.tensor(rows)) for rows in ([0], [1, 2, 3], [4, 5])])
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)
    assert torch.equal(state, torch.get_rng_state())  # nothing was drawn by torch
    other = of_rows(model, inputs, torch.arange(6), SEEDS[10:])
    assert not torch.allclose(other, together) and not torch.allclose(model.eval()(**inputs)[0], together)


def test_attention_weights_are_dropped_too() -> None:
    """With attention dropout alone, each query loses the right share of its values."""
    model = network(BertConfig(**BERT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.375}))
    ones, seen = torch.ones(64, 4, 12, 8), []
    with dropout.seeded(SEEDS):
        kept = _attend(model, torch.zeros_like(ones), ones, ones, None, dropout=0.375, is_causal=False)[0]
        seen.append(kept * 0.625 * 12)  # [B, T, heads, d]: how many of the 12 values each query kept
    assert seen[0].round().sub(seen[0]).abs().max() < 1e-4
    assert seen[0].mean().item() / 12 == pytest.approx(0.625, abs=0.02)


def test_packed_attention_is_dropped_by_pairs_of_tokens_for_any_number_of_heads() -> None:
    """As many heads as tokens: [R, heads, T, T] looks like the tokens' own values, [R, T, ...]."""
    seen = []
    for heads in (5, 6, 7):
        with dropout.seeded(SEEDS[:30].view(5, 6)):
            seen.append(dropout.drop(torch.ones(5, heads, 6, 6), 0.4))
    assert torch.equal(seen[0], seen[1][:, :5]) and torch.equal(seen[1], seen[2][:, :6])
    with dropout.seeded(SEEDS[:30].view(5, 6)), pytest.raises(RuntimeError, match="but rows and tokens"):
        dropout.drop(torch.ones(5, 6, 4, 8), 0.4)


@pytest.mark.parametrize("mask", ["none", "boolean", "additive", "causal", "grouped"])
def test_attention_written_out_is_attention(mask: str) -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(2, 4, 5, 8), *(torch.randn(2, 2 if mask == "grouped" else 4, 5, 8),) * 2
    allowed = torch.rand(2, 1, 5, 5) > 0.3
    allowed[..., 0] = True
    options: dict[str, Any] = {
        "boolean": {"attn_mask": allowed}, "additive": {"attn_mask": torch.randn(2, 1, 5, 5), "scale": 0.3},
        "causal": {"is_causal": True}, "grouped": {"enable_gqa": True},
    }.get(mask, {})  # fmt: skip
    want = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(_written_out(query, key, value, **options), want)


def test_recomputed_layers_drop_what_they_dropped() -> None:
    """Two applications in one pass, as in a joint loss: a counter that starts again would mix their masks."""
    ids = texts()["input_ids"]
    grads = []
    for recompute in (False, True):
        model = network(BertConfig(**BERT))
        if recompute:
            towers._recompute(model)
        with dropout.seeded(SEEDS[:6]):
            first, second = (model(input_ids=ids).last_hidden_state for _ in range(2))
        assert not torch.equal(first, second)
        loss = first.square().sum() + second.pow(3).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_views_of_a_sample_are_dropped_differently() -> None:
    model, inputs = network(BertConfig(**BERT)), texts()
    twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
    with dropout.seeded(SEEDS[:6]):
        first, second = model(**twice).last_hidden_state.chunk(2)
    assert not torch.allclose(first, second)
    with dropout.seeded(SEEDS[:3]):  # another number of samples on this rank
        again = model(**{name: torch.cat([value[:3]] * 2) for name, value in inputs.items()}).last_hidden_state
    torch.testing.assert_close(again, torch.cat([first[:3], second[:3]]), rtol=1e-4, atol=1e-5)


def test_the_export_is_a_plain_network(tmp_path: Path) -> None:
    model, plain = network(BertConfig(**BERT)), AutoModel.from_config(BertConfig(**BERT))
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    saved = {"dtype": "float32", "architectures": ["BertModel"]}
    assert loaded.config.to_diff_dict() | saved == plain.config.to_diff_dict() | saved
    assert {type(m) for m in loaded.modules() if isinstance(m, nn.Dropout)} == {nn.Dropout}
    assert torch.equal(loaded.eval()(**texts())[0], model.eval()(**texts())[0])


def test_a_network_that_is_not_an_objectives_drops_as_torch_does() -> None:
    """An export that is fine-tuned behind a training, in the same process."""
    model = AutoModel.from_config(BertConfig(**BERT | {"attention_probs_dropout_prob": 0.4})).train()
    ids = {"input_ids": torch.arange(12).view(2, 6)}
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(**ids).last_hidden_state)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_kernel_that_drops_by_itself_is_refused() -> None:
    model = AutoModel.from_config(BertConfig(**BERT))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"backbones.x.attention: value flash_attention_2 with attention_probs_drop"):
        attention_by_sample(model, "backbones.x")
    model.config.attention_probs_dropout_prob = 0.0
    attention_by_sample(model, "backbones.x")
