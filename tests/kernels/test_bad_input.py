"""What every loss refuses, in one line, whichever implementation was asked for: all is checked before one is chosen."""

import pytest
import torch

from bigssl_kernels import (
    clip_loss,
    info_nce,
    linear_cross_entropy,
    nt_xent,
    sharded_linear_cross_entropy,
    sigmoid_loss,
    sup_con,
)

IMPLS = ("reference", "torch", "triton", "auto")  # "triton" is refused on a CPU, but only where the input is sound
PAIR = torch.ones(4, 3), torch.ones(4, 3)

BAD = {
    "rows differ": (nt_xent, (torch.ones(4, 3), torch.ones(5, 3)), r"view2 has shape \(5, 3\) and view1 \(4, 3\)"),
    "features differ": (clip_loss, (torch.ones(4, 3), torch.ones(4, 2), 1.0), r"text has shape \(4, 2\) and image"),
    "empty": (nt_xent, (torch.ones(0, 3), torch.ones(0, 3)), r"\(0, 3\); at least one row"),
    "zero temperature": (nt_xent, (*PAIR, 0.0), "temperature is 0.0; it must be a finite number above zero"),
    "tensor of zero": (nt_xent, (*PAIR, torch.tensor(0.0)), "temperature is 0.0"),
    "infinite": (clip_loss, (*PAIR, float("inf")), "logit_scale is inf"),
    "nan": (nt_xent, (*PAIR, torch.tensor(float("nan"))), "temperature is nan"),
    "two temperatures": (nt_xent, (*PAIR, torch.ones(2)), r"temperature has shape \(2,\)"),
    "integer scale": (nt_xent, (*PAIR, torch.tensor(1)), "dtype torch.int64"),
    "scale elsewhere": (nt_xent, (*PAIR, torch.ones((), device="meta")), "temperature is on meta"),
    "integers": (nt_xent, (torch.ones(4, 3).int(), torch.ones(4, 3).int()), "dtype torch.int32"),
    "dtypes differ": (
        nt_xent,
        (torch.ones(4, 3), torch.ones(4, 3).half()),
        "torch.float16 and view1 has torch.float32",
    ),
    "devices differ": (
        nt_xent,
        (torch.ones(4, 3), torch.ones(4, 3, device="meta")),
        "view2 is on meta and view1 on cpu",
    ),
    "vector": (nt_xent, (torch.ones(4), torch.ones(4)), r"view2 has shape \(4,\)"),
    "few ids": (sup_con, (PAIR[0], torch.zeros(3).long()), r"ids has shape \(3,\) but embeddings has 4 rows"),
    "float ids": (sup_con, (PAIR[0], torch.zeros(4)), "ids has dtype torch.float32; it must be an integer"),
    "ids elsewhere": (sup_con, (PAIR[0], torch.zeros(4, device="meta").long()), "ids is on meta and embeddings on cpu"),
    "no rows": (sup_con, (torch.ones(0, 3), torch.zeros(0).long()), r"embeddings has shape \(0, 3\)"),
    "queue width": (info_nce, (*PAIR, torch.ones(9, 2)), r"negatives has shape \(9, 2\) and query \(4, 3\)"),
    "queue dtype": (info_nce, (*PAIR, torch.ones(9, 3).half()), "negatives has dtype torch.float16 and query has"),
    "infinite bias": (sigmoid_loss, (*PAIR, 1.0, float("-inf")), "logit_bias is -inf; it must be a finite number"),
    "negative scale": (sigmoid_loss, (*PAIR, -1.0, 0.0), "logit_scale is -1.0"),
    "list": (nt_xent, ([[1.0]], torch.ones(1, 1)), "view1 is a list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_embeddings_are_named(case):
    loss, args, message = BAD[case]
    for impl in IMPLS:
        with pytest.raises(ValueError, match=message) as caught:
            loss(*args, impl=impl)
        assert str(caught.value).startswith(f"{loss.__name__}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", [nt_xent, clip_loss, info_nce, sup_con])
def test_bad_options_are_named(loss):
    second = torch.zeros(4).long() if loss is sup_con else PAIR[1]
    args = (*PAIR, PAIR[1], 1.0) if loss is info_nce else (PAIR[0], second, 1.0)
    for impl in IMPLS:
        with pytest.raises(ValueError, match="reduction is 'avg'"):
            loss(*args, reduction="avg", impl=impl)
        if loss in (nt_xent, clip_loss):
            with pytest.raises(ValueError, match="memory is 'disk'; allowed are 'gather' and 'ring'"):
                loss(*args, memory="disk", impl=impl)


GOOD_TOKENS = {"hidden": torch.zeros(9, 4), "weight": torch.zeros(7, 4), "labels": torch.arange(9) % 7}
BAD_TOKENS = {
    "shape of weight": ({"weight": torch.zeros(7, 5)}, r"weight has shape \(7, 5\) and hidden \(9, 4\)"),
    "dtype of weight": ({"weight": torch.zeros(7, 4).half()}, "weight has dtype torch.float16 and hidden has torch.fl"),
    "narrow hidden": (
        {"hidden": torch.zeros(9, 4).bfloat16()},
        "weight has dtype torch.float32 and hidden has torch.bfloat16; both must be the same .cast one, or call under",
    ),
    "narrow bias": ({"bias": torch.zeros(7).bfloat16()}, "bias is torch.bfloat16 on cpu and weight torch.float32"),
    "integer bias": ({"bias": torch.zeros(7).long()}, "bias has dtype torch.int64; it must be a floating tensor"),
    "list for a bias": ({"bias": [0.0] * 7}, "bias has dtype list"),
    "no classes": ({"weight": torch.zeros(0, 4)}, r"weight has shape \(0, 4\); at least one class is needed"),
    "no features": ({"weight": torch.zeros(7, 0), "hidden": torch.zeros(9, 0)}, "at least one feature"),
    "integer hidden": ({"hidden": torch.zeros(9, 4).int()}, "hidden has dtype torch.int32"),
    "vector hidden": ({"hidden": torch.zeros(9)}, r"hidden has shape \(9,\)"),
    "float labels": ({"labels": torch.zeros(9)}, "labels has dtype torch.float32"),
    "too few labels": ({"labels": torch.zeros(8).long()}, r"labels has shape \(8,\) but hidden has 9 rows"),
    "label above": ({"labels": torch.arange(9)}, r"labels\[7\] is 7; allowed are 0 to 6 .* ignore_index .-100."),
    "label below": ({"labels": torch.arange(9).int() % 7 - 1}, r"labels\[0\] is -1; allowed are 0 to 6"),
    "shape of bias": ({"bias": torch.zeros(8)}, r"bias has shape \(8,\); weight \(7, 4\)"),
    "smoothing": ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    "softcap": ({"softcap": -1.0}, "softcap is -1.0"),
    "endless softcap": ({"softcap": float("inf")}, "softcap is inf; it must be a finite number above zero"),
    "z-loss": ({"z_loss": float("nan")}, "z_loss is nan; it must be a finite number, zero or above"),
    "reduction": ({"reduction": "avg"}, "reduction is 'avg'; allowed"),
    "device": ({"weight": torch.zeros(7, 4, device="meta")}, "weight is on meta and hidden on cpu"),
    "shape of factors": (
        {"token_weights": torch.ones(8)},
        r"token_weights has shape \(8,\) and dtype torch.float32; labels \(9,\)",
    ),
    "dtype of factors": ({"token_weights": torch.ones(9).long()}, "dtype torch.int64"),
    "device of factors": ({"token_weights": torch.ones(9, device="meta")}, "token_weights is on meta and labels on"),
    "factors with a gradient": ({"token_weights": torch.ones(9, requires_grad=True)}, "requires a gradient; only"),
    "list of factors": ({"token_weights": [1.0] * 9}, "token_weights is a list"),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_bad_tokens_are_named(case):
    change, message = BAD_TOKENS[case]
    sharded = {"classes": len(change.get("weight", GOOD_TOKENS["weight"])), "group": None}
    for loss, options in ((linear_cross_entropy, {}), (sharded_linear_cross_entropy, sharded)):
        for impl in IMPLS:
            with pytest.raises(ValueError, match=message) as caught:
                loss(**(GOOD_TOKENS | change), impl=impl, **options)
            assert str(caught.value).startswith(f"{loss.__name__}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_compiled_graph_looks_at_its_labels_too(impl):
    def loss(hidden, weight, labels):
        return linear_cross_entropy(hidden, weight, labels, impl=impl)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert compiled(**GOOD_TOKENS) == loss(**GOOD_TOKENS)
    with pytest.raises(ValueError, match=r"labels\[7\] is 7"):
        compiled(**(GOOD_TOKENS | {"labels": torch.arange(9)}))


def test_a_label_nobody_looked_at_gives_nan(monkeypatch):
    """As on a GPU, where looking would cost a sync. (torch's own cross-entropy would end the process there.)"""
    monkeypatch.setattr("bigssl_kernels.linear_ce.api.checked_labels", lambda fn, labels, *_: labels.long())
    for impl in ("reference", "torch"):
        _, aux = linear_cross_entropy(**(GOOD_TOKENS | {"labels": torch.arange(9)}), impl=impl, return_aux=True)
        assert aux.loss.isnan().nonzero().flatten().tolist() == [7, 8]
