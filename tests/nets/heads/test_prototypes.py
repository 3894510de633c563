"""Targets of prototypes, sample by sample in float64: Sinkhorn, centring, the loss, the blind line, what is left."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bigssl import distributed
from bigssl.nets.heads.prototypes import (
    CentredTargets,
    Frequencies,
    PrototypeHead,
    Prototypes,
    Shared,
    sinkhorn,
    spread_of,
    swapped,
    unit_rows,
)


def cosines(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def scaled_in_turn(scores: Tensor, epsilon: float, iterations: int, weights: list[float]) -> list[list[float]]:
    """Algorithm of SwAV's appendix in loops: prototypes, then samples, each to its share."""
    rows = [[math.exp(value / epsilon) for value in row] for row in scores.double().tolist()]
    count = len(rows[0])
    for _ in range(iterations):
        for k in range(count):
            share = sum(w * row[k] for w, row in zip(weights, rows, strict=True))
            for row in rows:
                row[k] /= share
        for row in rows:
            whole = sum(row)
            row[:] = [value / whole for value in row]
    return rows


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_that_of_the_paper_in_loops(iterations: int) -> None:
    scores, counted = cosines(9, 5), torch.tensor([1.0] * 7 + [0.0] * 2)
    for weights in (torch.ones(9), counted):
        found = sinkhorn(scores, 0.05, iterations, None if weights.all() else weights)
        want = scaled_in_turn(scores, 0.05, iterations, weights.tolist())
        np.testing.assert_allclose(found.numpy(), want, rtol=2e-4, atol=1e-7)


def test_sinkhorn_shares_samples_out_equally() -> None:
    """In the end every prototype has as much as any other; also where all samples prefer one, and at any epsilon."""
    liking = cosines(32, 4) * 0.2 + torch.tensor([0.8, 0.0, 0.0, 0.0])
    for epsilon in (0.05, 0.001):  # e^800 is no number
        found = sinkhorn(liking, epsilon, 400)
        torch.testing.assert_close(found.sum(1), torch.ones(32))
        torch.testing.assert_close(found.sum(0), torch.full((4,), 8.0), rtol=0.03, atol=0)
    torch.testing.assert_close(sinkhorn(torch.ones(6, 3), 0.05, 3), torch.full((6, 3), 1 / 3))


def shared(rows: list[int]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Tensor]:
    """What this rank makes of its rows."""
    scores = cosines(10, 4)[rows[distributed.rank()] : rows[distributed.rank() + 1]]
    centred, frequencies = CentredTargets(4, 0.9), Frequencies(4, places=2)
    for _ in range(2):
        targets = centred(scores, 0.1)
        places = (scores[:, 0] > 0).long()
        blind = frequencies(targets, torch.full((len(targets),), 0.1), places)
    return sinkhorn(scores, 0.05, 3), targets, blind, spread_of(targets), centred.centre


def shared_by_ranks(*splits: list[int]) -> list[Any]:
    dist.init_process_group("gloo")
    return [shared(rows) for rows in splits]


@pytest.mark.distributed
def test_two_ranks_with_any_rows_compute_what_one_does(ranks: Any) -> None:
    alone = shared([0, 10])
    for pair in zip(*ranks(shared_by_ranks, 2, [0, 3, 10], [0, 0, 10]), strict=True):  # unequal, and none on one
        for part in range(2):
            torch.testing.assert_close(torch.cat([each[part] for each in pair]), alone[part], rtol=1e-4, atol=1e-6)
        for each in pair:
            torch.testing.assert_close(list(each[2:]), list(alone[2:]), rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_cross_entropy_of_each_view_with_the_targets_of_the_others() -> None:
    targets, logits = cosines(2, 3, 5, seed=1).softmax(-1), 4 * cosines(4, 3, 5, seed=2)
    terms = []
    for t in range(2):
        for s in range(4):
            for b in range(3):
                row = [math.exp(value) for value in logits[s, b].double().tolist()]
                logs = [math.log(value / sum(row)) for value in row]
                if s != t:
                    terms.append(-sum(p * q for p, q in zip(targets[t, b].double().tolist(), logs, strict=True)))
    assert len(terms) == 2 * 3 * 3
    assert swapped(targets, logits).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_the_centre_follows_all_cosines_and_is_taken_off_before_it_moves() -> None:
    module, first, second = CentredTargets(3, 0.75), cosines(4, 3), cosines(2, 3, seed=1)
    torch.testing.assert_close(module(first, 0.5), (first / 0.5).softmax(-1))
    torch.testing.assert_close(module.centre, 0.25 * first.mean(0))
    torch.testing.assert_close(module(second, 0.5), ((second - 0.25 * first.mean(0)) / 0.5).softmax(-1))
    torch.testing.assert_close(module.centre, 0.75 * 0.25 * first.mean(0) + 0.25 * second.mean(0))
    kept = module.centre.clone()
    some = torch.tensor([1, 0, 1, 0])
    for kind in (module, Shared()):
        found = copy.deepcopy(kind)(first, 0.5, some)
        torch.testing.assert_close(found[some == 1], copy.deepcopy(kind)(first[some == 1], 0.5))
        assert not found[some == 0].any()
        torch.testing.assert_close(spread_of(found), spread_of(found[some == 1]))
    counted = copy.deepcopy(module)
    counted(first, 0.5, some)
    torch.testing.assert_close(counted.centre, 0.75 * kept + 0.25 * first[some == 1].mean(0))
    assert module(first[:0], 0.5).shape == (0, 3) and torch.equal(module.centre, kept)
    module.eval()(first, 0.5)
    assert torch.equal(module.centre, kept)


def test_the_blind_line_is_what_the_others_tell_of_a_sample() -> None:
    """In loops: to predict a sample's targets by the mean of all others, of this pass and of those before at .9, and by
    one sample of equal shares; never worse than ln K."""
    module, passes = Frequencies(4, places=2), [(8 * cosines(6, 4, seed=n)).softmax(-1) for n in range(2)]
    places, kept = [0, 1, 0, 0, 1, 0], [[0.0] * 4, [0.0] * 4]
    for targets in passes:
        rows, total = targets.double().tolist(), 0.0
        for i, mine in enumerate(rows):
            others = [kept[places[i]][k] + 1 / 4 for k in range(4)]
            for j, row in enumerate(rows):
                if j != i and places[j] == places[i]:
                    others = [value + each for value, each in zip(others, row, strict=True)]
            total -= sum(p * math.log(q / sum(others)) for p, q in zip(mine, others, strict=True)) / 6
        kept = [[0.9 * (kept[place][k] + sum(r[k] for r, p in zip(rows, places, strict=True) if p == place))
                 for k in range(4)] for place in range(2)]  # fmt: skip
        found = module(targets, torch.full((6,), 1 / 6), torch.tensor(places))
        assert found.item() == pytest.approx(min(total, math.log(4)), rel=1e-5)


def test_the_blind_line_gains_nothing_by_hindsight() -> None:
    """Of few samples and many prototypes, where the entropy of their mean is far too low: targets drawn evenly have
    ln K, and targets of a known distribution end at its entropy."""
    generator = torch.Generator().manual_seed(0)
    module, even = Frequencies(512), torch.randint(512, (40, 16), generator=generator)
    found = [module(torch.nn.functional.one_hot(row, 512).float(), torch.full((16,), 1 / 16)).item() for row in even]
    assert min(found) > 0.95 * math.log(512)
    law, module = torch.tensor([0.7, 0.1, 0.1, 0.1]), Frequencies(4)
    drawn = torch.multinomial(law, 60 * 32, replacement=True, generator=generator).view(60, 32)
    found = [module(torch.nn.functional.one_hot(row, 4).float(), torch.full((32,), 1 / 32)).item() for row in drawn]
    assert np.mean(found[10:]) == pytest.approx(torch.special.entr(law).sum().item(), rel=0.05)


def test_each_collapse_of_prototypes_is_told_from_health() -> None:
    one_each, one_for_all, alike = torch.eye(4).repeat(3, 1), torch.eye(4)[:1].repeat(12, 1), torch.full((12, 4), 0.25)
    for targets, prototypes, assignments in ((one_each, 1, 1), (one_for_all, 0, 0), (alike, 1, 0)):
        found = spread_of(targets)
        assert found["prototypes"].item() == pytest.approx(prototypes, abs=1e-6)
        assert found["assignments"].item() == pytest.approx(assignments, abs=1e-3)
    same = spread_of(torch.tensor([[0.5, 0.3, 0.2, 0.0]]).repeat(9, 1))  # neither of both, and yet nothing is told
    assert same["prototypes"] > 0.5 and same["assignments"] < 1e-3


def test_prototypes_have_length_one_and_no_gradient_while_frozen() -> None:
    head = PrototypeHead(6, 12, 8, 10)
    found = head(cosines(5, 6))
    torch.testing.assert_close(found.embeddings.norm(dim=1), torch.ones(5))
    lengths = head.prototypes.weight.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.cosines, found.embeddings @ (head.prototypes.weight / lengths).T)
    with torch.no_grad():
        head.prototypes.weight.mul_(3)
    torch.testing.assert_close(head(cosines(5, 6)).cosines, found.cosines)  # whatever the length of its parameters
    for module, frozen in ((head.prototypes, True), (Prototypes(8, 10), True), (Prototypes(8, 10), False)):
        unit = unit_rows(cosines(5, 8)).requires_grad_()
        module(unit, frozen).square().sum().backward()
        assert bool(module.weight.grad.any()) != frozen and unit.grad.any()
    plain = Prototypes(8, 10)
    torch.testing.assert_close(plain.weight.norm(dim=1), torch.ones(10))
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(cosines(2, 8).bfloat16()).dtype == torch.float32
