"""What a packed row gives for a text is what the text gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.packing import side_by_side
from bigssl.nets.chance import dropout
from bigssl.nets.chance.attention import NOWHERE, Packing, attention_by_sample
from bigssl.nets.packed import PACKABLE, check_packable, packed_tokens
from bigssl.nets.towers import CONFIG_MAPPING, _recompute

VOCABULARY, LENGTH = 50, 40
SIZES = [[17, 16, 7], [40], [25, 4], [1, 1, 1, 1]]  # of the texts of each row
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": LENGTH + 2, "initializer_range": 0.3,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 12},
    "gpt2": {"n_inner": 40},
    "llama": {"num_key_value_heads": 1},
    "mistral": {"num_key_value_heads": 3, "sliding_window": 5},
    "modernbert": {"local_attention": 10, "global_attn_every_n_layers": 3, "cls_token_id": 2, "sep_token_id": 3},
    "qwen2": {"num_key_value_heads": 1},
}
EARLIER = ("gpt2", "llama", "mistral", "qwen2")  # see what is before them


def network(kind: str, dropping: float = 0.0) -> PreTrainedModel:
    config = CONFIG_MAPPING[kind](**COMMON | OWN.get(kind, {}))
    for name in config.to_dict():
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, dropping)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config, attn_implementation="sdpa")
    attention_by_sample(model, "backbones.x")
    dropout.by_sample(torch.nn.ModuleList([model]))
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


def packing(segments: Tensor) -> Packing:
    return Packing(*side_by_side(segments))


def weights(size: int) -> Tensor:
    return torch.linspace(-1, 1, size * 24).view(size, 24).sin()


each_model = pytest.mark.parametrize("kind", PACKABLE)


@each_model
def test_packed_texts_are_texts_alone(kind: str) -> None:
    """Hidden states of every token, and the gradient of every weight, in float64; local layers keep their window."""
    model = network(kind).double()
    alone = [model(input_ids=item[None]).last_hidden_state[0] for row in texts() for item in row]
    sum((hidden * weights(len(hidden))).sum() for hidden in alone).backward()  # type: ignore[union-attr]
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ids, segments, positions = rows(texts())
    hidden = packed_tokens(model, ids, positions, packing(segments))
    packed = [hidden[row][segments[row] == n + 1] for row, items in enumerate(SIZES) for n in range(len(items))]
    for ours, own in zip(packed, alone, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-9, atol=1e-9)
    sum((part * weights(len(part))).sum() for part in packed).backward()  # type: ignore[union-attr]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and len(found) > 15
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-8, msg=name)


@each_model
def test_texts_do_not_see_each_other_nor_what_is_behind_them(kind: str) -> None:
    model = network(kind)
    ids, segments, positions = rows(texts())
    hidden = packed_tokens(model, ids, positions, packing(segments))
    assert hidden.isfinite().all()
    changed = torch.where((segments == 2) & (positions >= 3), 5 + (ids + 3) % 45, ids).where(segments > 0, 9)
    moved = packed_tokens(model, changed, positions, packing(segments))
    assert torch.equal(moved[segments == 1], hidden[segments == 1])
    assert torch.equal(moved[segments == 3], hidden[segments == 3])
    before = (segments == 2) & (positions < 3)
    assert torch.equal(moved[before], hidden[before]) == (kind in EARLIER)
    after = (segments == 2) & (positions >= 3)
    assert not torch.isclose(moved[after], hidden[after]).all(1).any()


@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2"])
def test_what_is_dropped_does_not_depend_on_who_shares_a_row_or_a_group(kind: str) -> None:
    """Seeds are those of tokens; the same texts in rows of their own drop the same."""
    model = network(kind, dropping=0.3)
    ids, segments, positions = rows(texts())
    seeds = torch.arange(ids.numel()).view(ids.shape) + 1000
    with dropout.seeded(seeds):
        together = packed_tokens(model, ids, positions, packing(segments))
    again, row = [], 0
    for row, items in enumerate(SIZES):
        for number in range(1, len(items) + 1):
            inside = segments[row] == number
            own = torch.zeros(3, 1, LENGTH, dtype=torch.int64)  # ids, positions, seeds of one row
            own[:, 0, : int(inside.sum())] = torch.stack([ids[row][inside], positions[row][inside], seeds[row][inside]])
            with dropout.seeded(own[2]):
                one = (torch.arange(LENGTH) < inside.sum()).long()[None]
                found = packed_tokens(model, own[0], own[1], packing(one))[0, : int(inside.sum())]
            again.append((together[row][inside], found))
    for ours, own_row in again:
        torch.testing.assert_close(ours, own_row, rtol=1e-4, atol=1e-5)


def test_a_recomputed_pass_is_packed_too() -> None:
    model, (ids, segments, positions) = network("bert", dropping=0.2), rows(texts())
    gradients = []
    for recompute in (False, True):
        if recompute:
            _recompute(model)
        model.zero_grad()
        with dropout.seeded(torch.arange(ids.numel()).view(ids.shape)):
            hidden = packed_tokens(model, ids, positions, packing(segments))
        hidden[segments > 0].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_bf16_autocast() -> None:
    model = network("bert")
    ids, segments, positions = rows(texts())
    exact = packed_tokens(model, ids, positions, packing(segments))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = packed_tokens(model, ids, positions, packing(segments))
    used = segments > 0
    assert (rough.float() - exact)[used].abs().mean() < 0.05 * exact[used].abs().mean()


def test_no_matrix_of_a_whole_row_is_made() -> None:
    """Of a row of 4,096 tokens in texts of 64, the largest tensor that attention makes."""
    model, length = network("modernbert"), 4096
    positions = torch.arange(64).repeat(length // 64)[None]
    segments = (torch.arange(length) // 64 + 1)[None]
    largest = 0

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            made = (each for each in torch.utils._pytree.tree_leaves(found) if isinstance(each, Tensor))
            largest = max(largest, *(each.numel() for each in made), 0)
            return found

    with torch.no_grad(), Watching():
        packed_tokens(model, torch.full((1, length), 7), positions % LENGTH, packing(segments))
    assert largest < length * length / 16


@pytest.mark.parametrize("seed", range(3))
def test_every_token_is_in_one_group_and_is_found_there(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    segments = torch.zeros(5, 61, dtype=torch.int64)
    for row in range(4):  # the last is empty
        begin = number = 0
        while begin < 61 - row:
            size, number = int(torch.randint(1, 30, (), generator=generator)), number + 1
            segments[row, begin : min(begin + size, 61 - row)] = number
            begin += size
    groups, found = side_by_side(segments)
    together = torch.cat([group.flatten() for group in groups])
    inside = segments.flatten() > 0
    assert torch.equal(together[found[inside]], inside.nonzero().flatten())
    assert (found[~inside] == len(together)).all() and (together != NOWHERE).sum() == inside.sum()
    for group in groups:
        for text in group.tolist():
            kept = [place for place in text if place != NOWHERE]
            assert kept == list(range(kept[0], kept[-1] + 1)) and text[: len(kept)] == kept
            assert len(set(segments.flatten()[kept].tolist())) == 1 and len(text) <= max(8, 1.5 * len(kept))


def test_what_cannot_be_packed_is_named() -> None:
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    model = AutoModel.from_config(CONFIG_MAPPING["deberta-v2"](**small))
    with pytest.raises(ConfigError, match="x.packing: value true with a backbone of type deberta-v2; allowed"):
        check_packable(model, "x.packing")
    model = network("bert")
    check_packable(model, "x.packing")
    model.config._attn_implementation = "eager"
    with pytest.raises(ConfigError, match="attention eager; allowed with: sdpa"):
        check_packable(model, "x.packing")
