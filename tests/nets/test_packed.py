"""What a packed row gives for a text is what the text gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.nets.modality.kinds import CAUSAL
from bigssl.nets.packed import PACKABLE, block_diagonal, check_causal, check_packable, packed_tokens
from bigssl.nets.towers import CONFIG_MAPPING

VOCABULARY, LENGTH = 50, 16
EXACT = (*PACKABLE, "gpt2", "opt")
SIZES = [[7, 6, 3], [16], [5, 4], [1, 1, 1, 1]]  # of the texts of each row


def network(kind: str, attention: str, **changes: Any) -> PreTrainedModel:
    fields = {
        "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
        "intermediate_size": 40, "max_position_embeddings": LENGTH, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3, "num_key_value_heads": 3, "head_dim": 8,
        "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": LENGTH, "ffn_dim": 40, "word_embed_proj_dim": 24,
        "pad_token_id": 0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "dropout": 0.0, **changes,
    }  # fmt: skip
    known = CONFIG_MAPPING[kind]().to_dict()
    config = CONFIG_MAPPING[kind](**{name: value for name, value in fields.items() if name in known})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config, attn_implementation=attention)
    return model.train()


def texts() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randint(5, VOCABULARY, (size,), generator=generator) for size in row] for row in SIZES]


def rows(found: list[list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids, segments, positions) of packed rows, written down text by text."""
    ids, segments, positions = (torch.zeros(len(found), LENGTH, dtype=torch.int64) for _ in range(3))
    for row, items in enumerate(found):
        begin = 0
        for number, item in enumerate(items, 1):
            for place, token in enumerate(item.tolist()):
                ids[row, begin], segments[row, begin], positions[row, begin] = token, number, place
                begin += 1
    return ids, segments, positions


def weights(size: int) -> Tensor:
    return torch.linspace(-1, 1, size * 24).view(size, 24).sin()


each_model = pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, attention) for kind in (*PACKABLE, "gpt2", "llama") for attention in ("eager", "sdpa")]
    + [(kind, "sdpa") for kind in CAUSAL if kind not in ("gpt2", "llama")],
)  # fmt: skip


@each_model
def test_packed_texts_are_texts_alone(kind: str, attention: str) -> None:
    """Hidden states of every token, and the gradient of every weight, in float64 (of most causal types, norms and
    rotations are computed in float32 whatever the weights are)."""
    close: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8} if kind in EXACT else {"rtol": 1e-4, "atol": 1e-4}
    model = network(kind, attention).double()
    alone = [model(input_ids=item[None]).last_hidden_state[0] for row in texts() for item in row]
    sum((hidden * weights(len(hidden))).sum() for hidden in alone).backward()  # type: ignore[union-attr]
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ids, segments, positions = rows(texts())
    hidden = packed_tokens(model, ids, segments, positions)
    packed = [hidden[row][segments[row] == n + 1] for row, items in enumerate(SIZES) for n in range(len(items))]
    for ours, own in zip(packed, alone, strict=True):
        torch.testing.assert_close(ours, own, **close)
    sum((part * weights(len(part))).sum() for part in packed).backward()  # type: ignore[union-attr]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and len(found) > 25
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name, **close)


@each_model
def test_float32_and_padding(kind: str, attention: str) -> None:
    model = network(kind, attention)
    ids, segments, positions = rows(texts())
    hidden = packed_tokens(model, ids, segments, positions)
    assert hidden.isfinite().all()
    torch.testing.assert_close(hidden[1], model(input_ids=ids[1:2]).last_hidden_state[0], rtol=1e-4, atol=1e-5)
    other = ids.where(segments > 0, 9)
    torch.testing.assert_close(packed_tokens(model, other, segments, positions)[segments > 0], hidden[segments > 0])


@each_model
def test_texts_do_not_see_each_other(kind: str, attention: str) -> None:
    model = network(kind, attention)
    ids, segments, positions = rows(texts())
    hidden = packed_tokens(model, ids, segments, positions)
    changed = torch.where(segments == 2, (ids + 7) % VOCABULARY, ids)
    moved = packed_tokens(model, changed, segments, positions)
    assert torch.equal(moved[segments == 1], hidden[segments == 1])
    assert torch.equal(moved[segments == 3], hidden[segments == 3])
    assert not torch.isclose(moved[segments == 2], hidden[segments == 2]).all(1).any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_nothing_of_the_future_leaks_in_causal_networks(kind: str, attention: str) -> None:
    """Another token changes what stands behind it in its text, and nothing before it or in other texts."""
    model = network(kind, attention)
    ids, segments, positions = rows(texts())
    hidden = packed_tokens(model, ids, segments, positions)
    for row, place in ((0, 0), (0, 3), (0, 9), (1, 8), (2, 4)):
        other = ids.clone()
        other[row, place] = (other[row, place] + 7) % VOCABULARY
        moved = ~torch.isclose(packed_tokens(model, other, segments, positions), hidden).all(2)
        expected = torch.zeros_like(moved)
        expected[row, place:] = segments[row, place:] == segments[row, place]
        assert torch.equal(moved, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bf16_autocast(attention: str) -> None:
    model = network("bert", attention)
    ids, segments, positions = rows(texts())
    exact = packed_tokens(model, ids, segments, positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = packed_tokens(model, ids, segments, positions)
    used = segments > 0
    assert (rough.float() - exact)[used].abs().mean() < 0.05 * exact[used].abs().mean()


def test_masks() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    same = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    mask = block_diagonal(segments, causal=False, additive=False)
    assert (mask.dtype, mask.shape) == (torch.bool, (1, 1, 4, 4)) and mask[0, 0].int().tolist() == same
    added = block_diagonal(segments, causal=False, additive=True)
    assert (added == 0).int()[0, 0].tolist() == same and (added[~mask] < -1e38).all()
    before = block_diagonal(segments, causal=True, additive=False)[0, 0].int().tolist()
    assert before == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_what_cannot_be_packed_is_named() -> None:
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    for kind in ("modernbert", "roberta"):
        model = AutoModel.from_config(CONFIG_MAPPING[kind](**small))
        with pytest.raises(ConfigError, match=f"x.packing: value true with a backbone of type {kind}; allowed"):
            check_packable(model, "x.packing")
    model = network("bert", "sdpa")
    check_packable(model, "x.packing")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="attention flash_attention_2; allowed with: eager, sdpa"):
        check_packable(model, "x.packing")


def test_what_causal_rows_cannot_have_is_named() -> None:
    model = network("mistral", "sdpa", sliding_window=LENGTH)
    check_causal(model, LENGTH, "backbones.text")
    with pytest.raises(ConfigError, match=r"backbones.text.config.sliding_window: value 16; allowed: >= 17, "):
        check_causal(model, LENGTH + 1, "backbones.text")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="backbones.text.attention: value flash_attention_2; allowed: eager, sdpa"):
        check_causal(model, LENGTH, "backbones.text")
