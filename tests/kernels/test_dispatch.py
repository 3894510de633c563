"""Which implementation runs, what explain says of it, and what bad input is answered with."""

import pytest
import torch

from bigssl_kernels import clip_loss, dispatch, explain, info_nce, linear_cross_entropy, nt_xent, sup_con

PAIR = torch.ones(4, 3), torch.ones(4, 3)


def test_the_choice_is_explained(monkeypatch):
    assert explain(nt_xent, *PAIR).startswith("nt_xent: torch (")
    assert explain(clip_loss, *PAIR, 10.0, impl="reference") == "clip_loss: reference (asked for by impl='reference')"
    monkeypatch.setenv("BIGSSL_KERNELS", "reference")
    assert explain(nt_xent, *PAIR) == "nt_xent: reference (asked for by BIGSSL_KERNELS='reference')"
    assert explain(nt_xent, *PAIR, impl="torch").startswith("nt_xent: torch")
    with pytest.raises(ValueError, match="'print' is not a loss"):
        explain(print)


def test_what_runs_for_one_candidate_is_explained(monkeypatch):
    """Dense torch, although triton is asked for: its kernel is never reached."""
    monkeypatch.setattr(dispatch, "triton_obstacle", lambda family, data: None)
    monkeypatch.setattr(dispatch, "module", lambda family, impl: pytest.fail(f"{family} is computed by {impl}"))
    one, two = torch.ones(1, 3), torch.ones(2, 3)
    single = [
        (nt_xent, (one, one)),
        (clip_loss, (one, one, 10.0)),
        (info_nce, (two, two, torch.ones(0, 3))),
        (sup_con, (two, torch.zeros(2).long())),
    ]
    for loss, given in single:
        assert explain(loss, *given, impl="triton") == (
            f"{loss.__name__}: dense torch (one candidate to pick: for any impl=)"
        )
        assert loss(*given, impl="triton") == 0
    assert explain(nt_xent, two, two, impl="triton") == "nt_xent: triton (asked for by impl='triton')"
    assert explain(nt_xent, one, one, impl="reference") == "nt_xent: reference (asked for by impl='reference')"


def test_the_variable_is_checked(monkeypatch):
    monkeypatch.setenv("BIGSSL_KERNELS", "cuda")
    with pytest.raises(ValueError, match="impl is 'cuda' .asked for by BIGSSL_KERNELS=.; allowed are auto, triton"):
        nt_xent(*PAIR)


def test_an_explicit_choice_that_cannot_run_raises(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"cannot run on device cpu, dtype torch.float32, shape \(4, 3\): "):
        linear_cross_entropy(*PAIR, torch.zeros(4).long(), impl="triton")
