"""Ranks that bring different batches all learn so by the same sentence, and none is left waiting."""

import functools

import pytest
import torch
import torch.distributed as dist

from bigssl_kernels import (
    _distributed,
    clip_loss,
    nt_xent,
    sharded_linear_cross_entropy,
    sigmoid_loss,
    sup_con,
)

CALLS = {
    "nt_xent": ("view1", lambda x, **options: nt_xent(x, x + 1, 0.5, **options)),
    "clip_loss": ("image", lambda x, **options: clip_loss(x, x + 1, 2.0, **options)),
    "sup_con": ("embeddings", lambda x, **options: sup_con(x, torch.arange(len(x)) // 2, 0.5, **options)),
    "sigmoid_loss": ("image", lambda x, **options: sigmoid_loss(x, x + 1, 2.0, -1.0, **options)),
    "sharded_linear_cross_entropy": (
        "hidden",
        lambda x, **options: sharded_linear_cross_entropy(
            x, torch.ones(3, x.shape[1], dtype=x.dtype), torch.arange(len(x)) % 6, classes=6, **options
        ),
    ),
}
HOW = [
    (name, options)
    for name in CALLS
    for options in (
        {"impl": "torch"},
        *([{"impl": "reference"}] if name != "sharded_linear_cross_entropy" else []),
        *([{"impl": "torch", "memory": "ring"}] if name in ("nt_xent", "clip_loss") else []),
    )
]
TOO_FEW = [((4, 3), torch.float32), ((2, 3), torch.float32)]
NARROW = [((4, 3), torch.float32), ((4, 2), torch.float32)]
HALF = [((4, 3), torch.float32), ((4, 3), torch.bfloat16)]


def answers(group):
    """What each call says to batches that differ, and then, on the same group, the loss of batches that do not."""
    found = {}
    for name, options in HOW:
        call = functools.partial(CALLS[name][1], group=group, **options)
        for kind in (TOO_FEW, NARROW, HALF):
            shape, dtype = kind[group.rank()]
            with pytest.raises(ValueError) as caught:
                call(torch.ones(shape, dtype=dtype))
            found[(name, *options.values(), *kind)] = str(caught.value)
        call(torch.randn(4, 3, requires_grad=True)).backward()
        call(torch.randn(2, 3, requires_grad=True)).backward()  # all ranks change together
    return found


def on_one_rank():
    dist.init_process_group("gloo")
    ids = torch.arange(4, dtype=(torch.int32, torch.int64)[dist.get_rank()])
    alike = sup_con(torch.eye(4), ids, 0.5, group=dist.group.WORLD)
    return answers(dist.group.WORLD), alike


@pytest.mark.distributed
def test_every_rank_says_which_rank_brought_what(ranks):
    (first, loss), (second, other) = ranks(on_one_rank, 2)
    assert first == second and loss == other and loss > 0
    for name, options in HOW:
        key = (name, *options.values(), *TOO_FEW)
        assert first[key] == (
            f"{name}: {CALLS[name][0]} differs between the ranks: (4, 3) torch.float32 on rank 0; (2, 3) torch.float32 "
            "on rank 1; every rank of the group needs the same shape and dtype (leave out the last, smaller batch)"
        )
    assert "(4, 2) torch.float32 on rank 1" in first[("clip_loss", "torch", *NARROW)]
    assert "(4, 3) torch.bfloat16 on rank 1" in first[("sup_con", "reference", *HALF)]


class Pair:
    """Stands for a process group of two."""

    group_name = "pair"

    def size(self):
        return 2


def test_a_group_that_knows_devices_only_is_asked_once(monkeypatch):
    """Reading what came over nccl waits for the device; what came over gloo does not."""
    asked, known = [], [[4, 3, 0], [4, 3, 0]]

    def gathered(value, name):
        asked.append(value.device.type)
        return torch.tensor(known)

    monkeypatch.setattr(_distributed, "gather", gathered)
    device = torch.device("meta")
    for kind, answers in (("cuda:nccl", [known, None, None]), ("cpu:gloo,cuda:nccl", 3 * [known])):
        monkeypatch.setattr(_distributed.dist, "get_backend_config", lambda group, kind=kind: kind)
        group = Pair()
        assert [_distributed.gather_numbers([4, 3, 0], device, group) for _ in range(3)] == answers
    assert asked == ["meta", "cpu", "cpu", "cpu"]
