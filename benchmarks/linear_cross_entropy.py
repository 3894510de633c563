"""Speed and memory of linear cross-entropy beside full logits, gathered logits, torch's own, and what can be installed.

    python benchmarks/linear_cross_entropy.py --quick        # 5 minutes on 2 cores: the ratios of one size, a BERT step
    python benchmarks/linear_cross_entropy.py --device cuda  # every size; about an hour on a GPU
    python benchmarks/linear_cross_entropy.py --mode memory --tokens 4096 --widths 768 --classes 30522 --shares 0.15

Loss and gradients of every provider are compared with float64 before it is timed; one that is wrong is not timed.
Providers are timed in turn. Rows go to benchmarks/results/linear_cross_entropy_*.csv. Extra memory is what forward and
backward take at their peak beyond the inputs and the weight's gradient.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import RESULTS, device_name, in_turn, matmul_rate, peak_bytes, write_rows
from torch import Tensor

from bigssl_kernels import linear_cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENS = [512, 1024, 2048, 4096, 8192, 16384, 32768]
WIDTHS = [256, 512, 768, 1024, 2048, 4096]
CLASSES = [30_522, 50_257, 128_256, 256_000]
SHARES = [0.15, 0.4, 1.0]
LIMIT = {"cpu": 1 << 28, "cuda": 1 << 33}  # logits beyond which providers that hold them are not tried
BASE = "full logits"
OPTIONS = {"--tokens": "tokens", "--widths": "width", "--classes": "classes", "--shares": "share", "--dtypes": "dtype"}


def full_logits(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), labels)


def gathered(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    kept = (labels != -100).nonzero().squeeze(1)
    return F.cross_entropy(F.linear(hidden[kept], weight), labels[kept])


def torch_own(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, labels)


def torch_chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, labels, options=torch.nn.LinearCrossEntropyOptions())


def ours(impl: str, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, labels, impl=impl)


def liger() -> Loss:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight, labels: loss(weight, hidden, labels)


def cut_cross_entropy() -> Loss:
    from cut_cross_entropy import linear_cross_entropy as cut

    return lambda hidden, weight, labels: cut(hidden, weight, labels)


@functools.cache
def peers() -> dict[str, Loss]:
    """Those that can be imported here; the others are named once."""
    found: dict[str, Loss] = {}
    for make in (liger, cut_cross_entropy):
        try:
            found[make.__name__] = make()
        except Exception as error:  # absent, or broken in whatever way: a benchmark of the rest goes on
            print(f"{make.__name__} cannot be imported: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def providers(device: str, logits: int, wanted: list[str] | None) -> dict[str, Loss]:
    """Name -> loss; without those that hold all logits where these would be too many."""
    table: dict[str, Loss] = {}
    if logits <= LIMIT[device]:
        table |= {BASE: full_logits, "gathered": gathered, "compiled": torch.compile(full_logits)}
        if hasattr(F, "linear_cross_entropy"):  # torch 2.13
            table["torch"] = torch_own
    if hasattr(F, "linear_cross_entropy"):
        table["torch, chunked"] = torch_chunked
    if device == "cuda":
        table |= peers() | {"ours/triton": functools.partial(ours, "triton")}
    table["ours/torch"] = functools.partial(ours, "torch")
    return {name: loss for name, loss in table.items() if not wanted or name in wanted}


def problem(shape: dict[str, Any], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight (both with gradients) and labels, of which `share` are kept."""
    generator = torch.Generator().manual_seed(shape["tokens"] + shape["width"])
    dtype = DTYPES[shape["dtype"]]  # drawn in place: wider numbers thrown away would count as peak memory
    hidden = torch.randn(shape["tokens"], shape["width"], generator=generator, dtype=dtype)
    weight = torch.randn(shape["classes"], shape["width"], generator=generator, dtype=dtype).div_(shape["width"] ** 0.5)
    labels = torch.randint(shape["classes"], (shape["tokens"],), generator=generator)
    labels[torch.rand(shape["tokens"], generator=generator) >= shape["share"]] = -100
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), labels.to(device)


def both(loss: Loss, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward."""

    def run() -> tuple[Tensor, ...]:
        value = loss(*given)
        return value.detach(), *torch.autograd.grad(value, given[:2])

    return run


def complaint(loss: Loss, shape: dict[str, Any], device: str) -> str:
    """ "" where loss and gradients agree with float64 at 257 tokens and 1001 classes, else what differs."""
    given = problem(shape | {"tokens": 257, "classes": 1001}, device)
    wide = [value.detach().double().requires_grad_() for value in given[:2]]
    truth = both(full_logits, (wide[0], wide[1], given[2]))()
    try:
        results = both(loss, given)()
    except Exception as error:  # a peer may fail in any way; that is a result
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    allowed = 1e-4 if shape["dtype"] == "float32" else 3e-2
    for name, got, expected in zip(("loss", "d hidden", "d weight"), results, truth, strict=True):
        gap = ((got.double() - expected).abs().max() / expected.abs().max()).item()
        if not gap <= allowed:
            return f"{name} is off by {gap:.2g} of its largest entry"
    return ""


def speed(args: argparse.Namespace, shape: dict[str, Any]) -> list[dict[str, Any]]:
    """One table row for each provider that is right."""
    device = torch.device(args.device)
    chosen = providers(args.device, shape["tokens"] * shape["classes"], args.providers)
    for name in list(chosen):
        if words := complaint(chosen[name], shape, args.device):
            print(f"{name} is not timed at {shape}: {words}", file=sys.stderr)
            del chosen[name]
    given = problem(shape, args.device)
    times = in_turn({name: both(loss, given) for name, loss in chosen.items()}, device, args.rounds, args.clock)
    own = next(value[1] for name, value in times.items() if name.startswith("ours"))
    roof = matmul_rate(DTYPES[shape["dtype"]], device, 8192) if device.type == "cuda" else 0.0
    flops = 6 * shape["tokens"] * shape["share"] * shape["width"] * shape["classes"]
    return [
        shape
        | {"provider": name, "p20_ms": p20 * 1e3, "p50_ms": p50 * 1e3, "p80_ms": p80 * 1e3, "times_ours": p50 / own}
        | {"share_of_matmul": flops / p50 / roof if roof else "", "extra_mib": ""}
        for name, (p20, p50, p80) in times.items()
    ]


def memory(args: argparse.Namespace, shape: dict[str, Any]) -> list[dict[str, Any]]:
    """Extra memory of forward and backward; each provider in a process of its own, where nothing was freed before."""
    results = []
    for name in providers(args.device, shape["tokens"] * shape["classes"], args.providers).keys() - {"compiled"}:
        command = [sys.executable, __file__, "--device", args.device, "--peak", name]
        for option, name_of in OPTIONS.items():
            command += [option, str(shape[name_of])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} has no peak: {done.stderr.splitlines()[-1][:100]}", file=sys.stderr)
            continue
        blank = dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "times_ours", "share_of_matmul"), "")
        results.append(shape | {"provider": name} | blank | {"extra_mib": int(done.stdout) / 2**20})
    return results


def peak(args: argparse.Namespace, shape: dict[str, Any]) -> None:
    """In a process of its own: print the bytes one provider takes beyond the weight's gradient."""
    loss = providers(args.device, shape["tokens"] * shape["classes"], [args.peak])[args.peak]
    both(loss, problem(shape | {"tokens": 8, "classes": 64}, args.device))()  # code is loaded before the count begins
    given = problem(shape, args.device)
    print(peak_bytes(both(loss, given), torch.device(args.device)) - given[1].numel() * given[1].element_size())


def bert_step(args: argparse.Namespace, dtype: str) -> list[dict[str, Any]]:
    """Loss and all gradients of BERT-base, 8 x 128 tokens, 15 % masked: transformers' model and ours on its weights.

    bfloat16 means autocast.
    """
    from transformers import BertConfig, BertForMaskedLM

    from bigssl.nets.heads import MaskedLanguageHead

    torch.manual_seed(0)
    config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForMaskedLM(config).to(args.device)
    head = MaskedLanguageHead(model.bert.embeddings.word_embeddings.weight)
    head.dense, head.norm = model.cls.predictions.transform.dense, model.cls.predictions.transform.LayerNorm
    head.bias = model.cls.predictions.bias
    tokens = torch.randint(config.vocab_size, (8, 128), device=args.device)
    labels = tokens.masked_fill(torch.rand(8, 128, device=args.device) >= 0.15, -100)
    parameters = [value for value in model.parameters() if value.requires_grad]

    amp = functools.partial(torch.autocast, args.device, torch.bfloat16, enabled=dtype == "bfloat16")

    def theirs() -> tuple[Tensor, ...]:
        with amp():
            loss = model(input_ids=tokens, labels=labels).loss
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    def mine() -> tuple[Tensor, ...]:
        with amp():
            loss = head(model.bert(input_ids=tokens).last_hidden_state, labels) / (labels != -100).sum()
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    got, expected = (torch.cat([value.flatten() for value in run()]) for run in (mine, theirs))
    gap = ((got - expected).norm() / expected.norm()).item()
    assert gap <= (1e-4 if dtype == "float32" else 3e-2), f"loss and gradients are off by {gap:.2g} of their length"
    times = in_turn({"transformers": theirs, "ours/torch": mine}, torch.device(args.device), args.rounds, args.clock)
    shape = {"op": "BERT-base step", "tokens": 1024, "width": 768, "classes": 30522, "share": 0.15}
    return [
        shape
        | {"dtype": dtype, "provider": name, "p20_ms": p20 * 1e3, "p50_ms": p50 * 1e3, "p80_ms": p80 * 1e3}
        | {"times_ours": p50 / times["ours/torch"][1], "share_of_matmul": "", "extra_mib": ""}
        for name, (p20, p50, p80) in times.items()
    ]


def show(results: list[dict[str, Any]]) -> None:
    for row in results:
        size = f"T={row['tokens']}  H={row['width']}  V={row['classes']}  {row['share']:.0%} kept"
        numbers = {
            "ms": row["p50_ms"], "x ours": row["times_ours"], "of matmul": row["share_of_matmul"],
            "MiB extra": row["extra_mib"],
        }  # fmt: skip
        text = (f"{value:.2f} {unit}" for unit, value in numbers.items() if value != "")
        print("  ".join([row["op"], size, row["dtype"], row["provider"], *text]), flush=True)


def versions() -> str:
    found = []
    for name in ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return " ".join(found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="T=4096, 15 %% kept, H=768, V=30522, and a BERT-base step")
    parser.add_argument("--mode", choices=["speed", "memory", "step"], nargs="+", default=["speed", "memory", "step"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of tokens that are kept")
    parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--providers", nargs="+", help="default: all that are installed")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where others run as well")
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.widths, args.classes, args.shares, args.rounds = [4096], [768], [30_522], [0.15], 3
        args.providers = args.providers or [BASE, "gathered", "torch", "torch, chunked", "ours/torch"]
    return args


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = ("op", "tokens", "width", "classes", "share", "dtype")
    sizes = itertools.product(["head"], args.tokens, args.widths, args.classes, args.shares, args.dtypes)
    shapes = [dict(zip(names, size, strict=True)) for size in sizes]
    if args.peak:
        peak(args, shapes[0])
        return
    results: list[dict[str, Any]] = []
    tables = {"speed": speed, "memory": memory}
    work = [functools.partial(tables[mode], args, shape) for mode in args.mode if mode in tables for shape in shapes]
    steps = [functools.partial(bert_step, args, dtype) for dtype in args.dtypes if "step" in args.mode]
    for take in work + steps:
        fresh = take()
        show(fresh)
        results += fresh
    name = device_name(torch.device(args.device))
    stem = f"linear_cross_entropy_{'quick_' if args.quick else ''}{''.join(c if c.isalnum() else '-' for c in name)}"
    context = {"device": name, "clock": args.clock, "versions": versions()}
    write_rows(RESULTS / f"{stem}.csv", [row | context for row in results])


if __name__ == "__main__":
    main()
