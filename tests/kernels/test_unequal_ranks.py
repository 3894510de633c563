"""Ranks that bring different batches all learn so by the same sentence, and none is left waiting."""

import functools

import pytest
import torch
import torch.distributed as dist

from bigssl_kernels import clip_loss, distributed, nt_xent, sharded_linear_cross_entropy, sigmoid_loss, sup_con

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


PAIRS = {"nt_xent": (nt_xent, 0.5), "clip_loss": (clip_loss, 2.0), "sigmoid_loss": (sigmoid_loss, 2.0, -1.0)}


def wrong_inputs(name, wrong):
    """Calls of one loss, each with one thing not right where `wrong`, and what is said of it."""
    x, (first, call) = torch.ones(4, 3), CALLS[name]
    if name in PAIRS:
        loss, scale, *bias = PAIRS[name]
        for bad in (torch.ones(2, 3), torch.ones(4, 3).double(), torch.ones(4, 3).int(), None):
            yield functools.partial(loss, x, bad if wrong else x, scale, *bias), f"{name}: "
        yield functools.partial(loss, None if wrong else x, x, scale, *bias), f"{name}: {first} is a NoneType"
        yield functools.partial(loss, x, x, -1.0 if wrong else scale, *bias), "is -1.0; it must be"
    elif name == "sup_con":
        for bad in (torch.ones(4), torch.ones(3).long()):
            yield functools.partial(sup_con, x, bad if wrong else torch.arange(4)), "sup_con: ids has"
    else:
        right = {"hidden": x, "weight": torch.ones(3, 3), "labels": torch.arange(4)}
        for bad in ({"labels": torch.arange(4) + 9}, {"weight": torch.ones(2, 3)}, {"bias": torch.ones(7)}):
            yield functools.partial(sharded_linear_cross_entropy, classes=6, **(right | bad if wrong else right)), *bad
    if name != "sharded_linear_cross_entropy":  # which takes no tokens, as long as no rank has any
        yield functools.partial(call, x[:0] if wrong else x), "has shape (0, 3); at least one row"
    yield functools.partial(call, x, impl="fast" if wrong else "torch"), f"{name}: impl is 'fast'"


def one_wrong():
    """Sentences of all calls that are wrong on one rank; after each, the group still gives the loss of all."""
    dist.init_process_group("gloo")
    group, found = dist.group.WORLD, []
    for rank in (0, 1):
        for name in CALLS:
            for call, said in wrong_inputs(name, dist.get_rank() == rank):
                with pytest.raises(ValueError) as caught:
                    call(group=group)
                assert said in str(caught.value) and str(caught.value).endswith(f"(on rank {rank})")
                found.append(str(caught.value))
                CALLS[name][1](torch.randn(4, 3, requires_grad=True), group=group).backward()
    with pytest.raises(RuntimeError) as caught:
        CALLS["nt_xent"][1](torch.ones(4, 3), impl="triton" if dist.get_rank() else "torch", group=group)
    both = r"temperature is 0.0; .* \(on rank 0\); nt_xent: .* \(0, 3\).* \(on rank 1\)$"
    with pytest.raises(ValueError, match=both):
        nt_xent(*2 * [torch.ones((0, 3) if dist.get_rank() else (4, 3))], 0.0, group=group)
    with pytest.raises(ValueError, match=r"\(0, 3\); at least .* \(on rank 0, 1\)$"):
        nt_xent(torch.ones(0, 3), torch.ones(0, 3), group=group)
    return found, str(caught.value)


@pytest.mark.distributed
def test_what_one_rank_finds_wrong_every_rank_raises(ranks, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    first, second = ranks(one_wrong, 2, timeout=60)
    assert first == second and len(first[0]) == 2 * (3 * 8 + 4 + 4)
    assert first[1].startswith("nt_xent: impl='triton'") and first[1].endswith("(on rank 1)")


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

    def call(group):
        return distributed.gather_numbers([4, 3, 0], value, group) if distributed.asks(group) else None

    monkeypatch.setattr(distributed, "gather", gathered)
    value = torch.empty(0, device="meta")
    for kind, answers in (("meta:nccl", [known, None, None]), ("meta:nccl,cpu:gloo", 3 * [known])):
        monkeypatch.setattr(distributed.dist, "get_backend_config", lambda group, kind=kind: kind)
        group = Pair()
        assert [call(group) for _ in range(3)] == answers
    assert asked == ["meta", "cpu", "cpu", "cpu"]
