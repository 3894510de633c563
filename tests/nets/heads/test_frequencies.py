"""The blind line of language models: each pass is scored by the tokens of the passes before it, of all ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bigssl.engine import zero
from bigssl.nets.heads.frequencies import TokenFrequencies

V, IGNORED = 7, -100


def passes(seed: int) -> list[torch.Tensor]:
    """Skewed labels [4, 9] of five passes; the third has none."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.multinomial(torch.tensor([8.0, 4, 2, 1, 1, 0, 0]), 36, True, generator=generator) for _ in range(5)]
    drop = [torch.rand(36, generator=generator) < 0.5 for _ in range(5)]
    drop[2][:] = True
    return [labels.masked_fill(gone, IGNORED).view(4, 9) for labels, gone in zip(found, drop, strict=True)]


def by_hand(all_passes: list[torch.Tensor]) -> list[float]:
    """Token by token in Python: interpolated Witten-Bell over what the passes before contained."""
    before: list[int] = []
    values = []
    for labels in all_passes:
        tokens = [token for token in labels.flatten().tolist() if token != IGNORED]
        kinds, n = len(set(before)) + 1, len(before)
        chances = [(before.count(token) + kinds / V) / (n + kinds) for token in tokens]
        values.append(-sum(map(math.log, chances)) / max(len(tokens), 1))
        before += tokens
    return values


def test_each_pass_is_scored_by_the_passes_before_it() -> None:
    blind = TokenFrequencies(V)
    found = [blind(labels) for labels in passes(0)]
    assert [value.item() for value, _ in found] == pytest.approx(by_hand(passes(0)), rel=1e-6)
    assert [count.item() for _, count in found] == [int((labels != IGNORED).sum()) for labels in passes(0)]
    assert found[0][0].item() == pytest.approx(math.log(V)) and found[2][0].item() == 0.0


def test_evaluation_counts_nothing() -> None:
    blind = TokenFrequencies(V)
    blind(passes(0)[0])
    before = blind.counts.clone()
    blind.eval()(passes(0)[1])
    assert torch.equal(blind.counts, before)


def test_counts_go_on_after_a_resume() -> None:
    whole, first, second = TokenFrequencies(V), TokenFrequencies(V), TokenFrequencies(V)
    want = [whole(labels)[0] for labels in passes(0)]
    for labels in passes(0)[:3]:
        first(labels)
    second.load_state_dict(first.state_dict())
    assert [second(labels)[0] for labels in passes(0)[3:]] == want[3:]


def test_it_comes_near_the_entropy_of_a_known_source() -> None:
    blind, entropy = TokenFrequencies(V), math.log(2) * (1 / 2 + 2 / 4 + 3 / 8 + 2 * 4 / 16)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        value, _ = blind(torch.multinomial(torch.tensor([8.0, 4, 2, 1, 1, 0, 0]), 4000, True, generator=generator))
    assert value.item() == pytest.approx(entropy, abs=0.05)


def halves() -> tuple[list[float], torch.Tensor]:
    zero.start()
    blind, mine = TokenFrequencies(V), slice(None, 1) if dist.get_rank() == 0 else slice(1, None)  # uneven shares
    return [blind(labels[mine])[0].item() for labels in passes(0)], blind.counts


@pytest.mark.distributed
def test_two_ranks_are_one_rank(ranks: Any) -> None:
    one = TokenFrequencies(V)
    want = [one(labels)[0].item() for labels in passes(0)]
    for values, counts in ranks(halves, 2):
        assert values == pytest.approx(want) and torch.equal(counts, one.counts)
