"""Which implementation runs, what explain says of it, and what bad input is answered with."""

import pytest
import torch

from bigssl_kernels import clip_loss, explain, info_nce, linear_cross_entropy, nt_xent, sigmoid_loss, sup_con

PAIR = torch.ones(4, 3), torch.ones(4, 3)


def test_the_choice_is_explained(monkeypatch):
    assert explain(nt_xent, *PAIR).startswith("nt_xent: torch (")
    assert explain(clip_loss, *PAIR, 10.0, impl="reference") == "clip_loss: reference (asked for by impl='reference')"
    monkeypatch.setenv("BIGSSL_KERNELS", "reference")
    assert explain(nt_xent, *PAIR) == "nt_xent: reference (asked for by BIGSSL_KERNELS='reference')"
    assert explain(nt_xent, *PAIR, impl="torch").startswith("nt_xent: torch")
    with pytest.raises(ValueError, match="'print' is not a loss"):
        explain(print)


def test_the_variable_is_checked(monkeypatch):
    monkeypatch.setenv("BIGSSL_KERNELS", "cuda")
    with pytest.raises(ValueError, match="impl is 'cuda' .asked for by BIGSSL_KERNELS=.; allowed are auto, triton"):
        nt_xent(*PAIR)


def test_an_explicit_choice_that_cannot_run_raises(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"cannot run on device cpu, dtype torch.float32, shape \(4, 3\): "):
        linear_cross_entropy(*PAIR, torch.zeros(4).long(), impl="triton")


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
def test_bad_input_is_named(case):
    loss, args, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        loss(*args)
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        nt_xent(*PAIR, reduction="avg")
    with pytest.raises(ValueError, match="memory is 'disk'; allowed are 'gather' and 'ring'"):
        nt_xent(*PAIR, memory="disk")
