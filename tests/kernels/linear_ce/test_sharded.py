"""A vocabulary spread over gloo ranks gives the loss and the gradients of one process."""

import pytest
import torch
import torch.distributed as dist

from bigssl_kernels import linear_cross_entropy, sharded_linear_cross_entropy
from bigssl_kernels.linear_ce.sharded import shard

TOKENS, WIDTH, CLASSES = 23, 8, 37
CASES = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "z_loss": 1e-2},
    {"label_smoothing": 0.2, "z_loss": 1e-3, "softcap": 3.0, "token_weights": torch.arange(TOKENS).double()},
]


def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((TOKENS, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    )
    labels = torch.randint(CLASSES, (TOKENS,), generator=generator)
    labels[::3], labels[1], labels[2] = -100, 0, CLASSES - 1
    return hidden, weight, bias, labels


def on_one_rank():
    dist.init_process_group("gloo")
    return shares(dist.group.WORLD)


def shares(group):
    """Loss and gradients of each case, with this rank's shard of weight and bias."""
    first, stop = shard(CLASSES, group.size() if group else 1, group.rank() if group else 0)
    results = []
    for options in CASES:
        hidden, weight, bias, labels = inputs()
        mine = [value.requires_grad_() for value in (hidden, weight[first:stop].clone(), bias[first:stop].clone())]
        loss = sharded_linear_cross_entropy(*mine[:2], labels, mine[2], classes=CLASSES, group=group, **options)
        loss.backward(torch.arange(1, TOKENS + 1.0).double() if loss.dim() else None)
        results.append((loss.detach(), *(value.grad for value in mine)))
    return results


def truths():
    results = []
    for options in CASES:
        hidden, weight, bias, labels = (v.requires_grad_(v.is_floating_point()) for v in inputs())
        loss = linear_cross_entropy(hidden, weight, labels, bias, impl="reference", **options)
        loss.backward(torch.arange(1, TOKENS + 1.0).double() if loss.dim() else None)
        results.append((loss.detach(), hidden.grad, weight.grad, bias.grad))
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(ranks, world):
    results = ranks(on_one_rank, world)
    for case, truth in enumerate(truths()):
        mine = [rank[case] for rank in results]
        for part in (0, 1):  # loss and gradient of hidden: complete and the same bits on every rank
            torch.testing.assert_close(mine[0][part], truth[part])
            assert all(torch.equal(mine[0][part], other[part]) for other in mine)
        for part in (2, 3):
            torch.testing.assert_close(torch.cat([rank[part] for rank in mine]), truth[part])


def test_a_single_process_needs_no_group():
    for mine, truth in zip(shares(None), truths(), strict=True):
        torch.testing.assert_close(mine, truth)


def test_a_wrong_shard_is_named():
    hidden, weight, _, labels = inputs()
    with pytest.raises(ValueError, match=r"weight has 37 rows; rank 0 of 1 holds 40 of 40 classes \(0 to 39\)"):
        sharded_linear_cross_entropy(hidden, weight, labels, classes=40, group=None)
    labels[4] = 37
    with pytest.raises(ValueError, match=r"labels\[4\] is 37; allowed are 0 to 36"):
        sharded_linear_cross_entropy(hidden, weight, labels, classes=37, group=None)
