"""What the operators promise the rest of torch: opcheck, one graph under torch.compile, fake and meta tensors."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from bigssl_kernels import clip_loss, info_nce, linear_cross_entropy, nt_xent, sigmoid_loss, sup_con

A, B = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NUMBER = torch.tensor(0.4, dtype=torch.float64)
IDS = torch.arange(9) // 2
CALLS = {
    "nt_xent": lambda a, b, t: nt_xent(a, b, t),
    "clip_loss": lambda a, b, t: clip_loss(a, b, t),
    "info_nce": lambda a, b, t: info_nce(a, a, b, t),
    "sup_con": lambda a, b, t: sup_con(a + b, IDS.to(a.device), t),
    "sigmoid_loss": lambda a, b, t: sigmoid_loss(a, b, t, t - 1),
    "linear_cross_entropy": lambda a, b, t: linear_cross_entropy(a * t, b, IDS.to(a.device)),
}
OPS = torch.ops.bigssl_kernels
STATS = torch.rand(9, dtype=torch.float64)
OPERATORS = {
    "nt_xent_rows": (OPS.nt_xent_rows, (A[:8], None, NUMBER, 0, True, "", False, "torch")),
    "clip_rows": (OPS.clip_rows, (A, B, None, None, NUMBER, True, "", False, "torch")),
    "info_nce_rows": (OPS.info_nce_rows, (A, B, B[:3], NUMBER, True, "torch")),
    "sup_con_rows": (OPS.sup_con_rows, (A, None, IDS, NUMBER, 0, True, "", "torch")),
    "sigmoid_rows": (OPS.sigmoid_rows, (A, B, None, None, NUMBER, NUMBER, True, "", "torch")),
    "unit_rows": (OPS.unit_rows, (A, torch.float32)),
    "similarity_backward": (OPS.similarity_backward, (A, B, NUMBER, None, *4 * [STATS], True, True, "torch")),
    "sigmoid_backward": (OPS.sigmoid_backward, (A, B, NUMBER, NUMBER, STATS, None, True, False, "torch")),
    "sup_con_pull": (OPS.sup_con_pull, (A, IDS, STATS, NUMBER, 2, 4)),
}


@pytest.mark.parametrize(
    ("name", "grad"),
    # a gradient is not differentiated again
    [(name, grad) for name in OPERATORS for grad in (False, True) if not grad or name.endswith("rows")],
)
def test_opcheck(name, grad):
    operator, args = OPERATORS[name]
    tests = ["test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic"]
    args = tuple(
        a.detach().clone().requires_grad_(grad and i < 2)
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for i, a in enumerate(args)
    )
    torch.library.opcheck(operator, args, test_utils=tests)


@pytest.mark.parametrize("name", CALLS)
def test_compiles_in_one_graph(run, close, name):
    inputs = {"a": A, "b": B, "t": NUMBER}
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")
    close(run(compiled, inputs), run(CALLS[name], inputs), 1e-12)


def test_a_number_that_changes_does_not_break_the_graph():
    compiled = torch.compile(nt_xent, fullgraph=True, backend="aot_eager")
    for temperature in (0.2, 0.3, 0.4):
        torch.testing.assert_close(compiled(A, B, temperature), nt_xent(A, B, temperature))


def test_compiles_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = torch.compile(clip_loss, fullgraph=True, backend="aot_eager")(A.float(), B.float(), 3.0)
        torch.testing.assert_close(compiled, clip_loss(A.float(), B.float(), 3.0))


@pytest.mark.parametrize("name", CALLS)
def test_meta_and_fake_tensors(name):
    meta = CALLS[name](A.to("meta"), B.to("meta"), NUMBER.to("meta"))
    assert meta.device.type == "meta" and meta.shape == ()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(value) for value in (A, B, NUMBER)]
        assert CALLS[name](*fake).dtype == torch.float64
