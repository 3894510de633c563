"""Speed and memory of the contrastive losses beside dense torch, torch.compile and what else can be installed.

    python benchmarks/contrastive.py --quick                 # 2 minutes on 2 cores: the ratios to dense torch
    python benchmarks/contrastive.py --device cuda           # every size; about 20 minutes on a GPU
    python benchmarks/contrastive.py --op clip_loss --mode memory --rows 8192 --dims 128

M counts rows: 2N for nt_xent, N for clip_loss. Every provider's loss and gradients are compared with float64 before it
is timed; one that is wrong is not timed. Providers are timed in turn. Rows go to benchmarks/results/contrastive_*.csv.
Peers are timed where they are installed (extra `bench`); sentence-transformers has no loss on embeddings alone.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import RESULTS, device_name, in_turn, matmul_rate, peak_bytes, write_rows
from torch import Tensor

import bigssl_kernels

Loss = Callable[[Tensor, Tensor], Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROWS = [2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144]
DIMS = [64, 128, 256, 512, 1024]
DENSE_LIMIT = {"cpu": 16384, "cuda": 65536}  # rows beyond which a full matrix of logits is not tried


def dense_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    z = F.normalize(torch.cat([first, second]), dim=1)
    logits = (z @ z.T / temperature).float().fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(first)))


def dense_clip_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    logits = (F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature).float()
    target = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


DENSE = {"nt_xent": dense_nt_xent, "clip_loss": dense_clip_loss}


def ours(op: str, impl: str, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    number = temperature if op == "nt_xent" else 1 / temperature
    return getattr(bigssl_kernels, op)(first, second, number, impl=impl)


def lightly(temperature: float) -> Loss:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature)


def metric_learning(temperature: float) -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature))


def open_clip(temperature: float) -> Loss:
    from open_clip.loss import ClipLoss

    clip = ClipLoss()
    return lambda a, b: clip(F.normalize(a, dim=1), F.normalize(b, dim=1), 1 / temperature)


# losses of others that compute the same from two matrices of embeddings
PEERS = {"nt_xent": (lightly, metric_learning), "clip_loss": (open_clip,)}
CUBIC = {"metric_learning": 512}  # takes M^3 bytes: 550 GB at M = 8192


@functools.cache
def peers(op: str, temperature: float) -> dict[str, Loss]:
    """Those that can be imported here; the others are named once."""
    found: dict[str, Loss] = {}
    for make in PEERS[op]:
        try:
            found[make.__name__] = make(temperature)
        except Exception as error:  # absent, or broken in whatever way: a benchmark of the rest goes on
            print(f"{make.__name__} cannot be imported: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def providers(op: str, temperature: float, device: str, rows: int, wanted: list[str] | None) -> dict[str, Loss]:
    """Name -> loss, dense torch first; without those that hold a matrix of logits where it would be too large."""
    impls = ["torch", "triton"] if device == "cuda" else ["torch", "auto"]
    own: dict[str, Loss] = {
        f"ours/{impl}": functools.partial(ours, op, impl, temperature=temperature) for impl in impls
    }
    if rows > DENSE_LIMIT[device]:
        return {name: loss for name, loss in own.items() if not wanted or name in wanted}
    dense = functools.partial(DENSE[op], temperature=temperature)
    compiled = torch.compile(DENSE[op])
    table: dict[str, Loss] = {"dense": dense, "compiled": lambda a, b: compiled(a, b, temperature)}
    others = {make.__name__ for make in PEERS[op]}
    table |= peers(op, temperature) if not wanted or others & set(wanted) else {}
    table = {name: loss for name, loss in table.items() if rows <= CUBIC.get(name, rows)}
    return {name: loss for name, loss in (table | own).items() if not wanted or name in wanted}


def embeddings(op: str, rows: int, dim: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    count = rows // 2 if op == "nt_xent" else rows
    generator = torch.Generator().manual_seed(rows + dim)
    return [torch.randn(count, dim, generator=generator).to(device, dtype).requires_grad_() for _ in range(2)]


def step(loss: Loss, inputs: list[Tensor], direction: str) -> Callable[[], Any]:
    """What is timed: forward (as in training, with a graph), backward alone, or both."""
    if direction == "forward":
        return lambda: loss(*inputs)
    if direction == "backward":
        value = loss(*inputs)
        return lambda: torch.autograd.grad(value, inputs, retain_graph=True)

    def both() -> None:
        torch.autograd.grad(loss(*inputs), inputs)

    return both


def verify(op: str, name: str, loss: Loss, temperature: float, dim: int, dtype: torch.dtype, device: str) -> str:
    """ "" where loss and gradients agree with float64 at 514 rows, else what differs."""
    inputs = embeddings(op, 514, dim, dtype, device)
    wide = [value.detach().double().requires_grad_() for value in inputs]
    truth = functools.partial(DENSE[op], temperature=temperature)(*wide)
    try:
        value = loss(*inputs)
        grads = torch.autograd.grad(value, inputs)
    except Exception as error:  # a peer may fail in any way; that is a result
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    allowed = {torch.float32: 1e-4}.get(dtype, 3e-2)
    for label, got, expected in zip(
        ("loss", "d first", "d second"), (value, *grads), (truth, *torch.autograd.grad(truth, wide)), strict=True
    ):
        gap = ((got.double() - expected).abs().max() / expected.abs().max()).item()
        if not gap <= allowed:
            return f"{label} is off by {gap:.2g} of its largest entry"
    return ""


def fits(name: str, loss: Loss, inputs: list[Tensor]) -> bool:
    """Whether a provider finds the memory it wants at this size."""
    try:
        step(loss, inputs, "both")()
    except RuntimeError as error:
        print(f"{name} is not timed at {len(inputs[0])} pairs: {str(error).splitlines()[0][-120:]}", file=sys.stderr)
        return False
    return True


def versions() -> str:
    names = ("torch", "triton", "lightly", "open_clip_torch", "pytorch-metric-learning")
    found = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return " ".join(found)


def speed(args: argparse.Namespace, rows: int, dim: int, dtype: str, temperature: float) -> list[dict[str, Any]]:
    """One table row for each provider that is right."""
    device = torch.device(args.device)
    inputs = embeddings(args.op, rows, dim, DTYPES[dtype], args.device)
    chosen = providers(args.op, temperature, args.device, rows, args.providers)
    results = []
    for name in list(chosen):
        if complaint := verify(args.op, name, chosen[name], temperature, dim, DTYPES[dtype], args.device):
            print(f"{name} is not timed at D={dim} {dtype}: {complaint}", file=sys.stderr)
            del chosen[name]
    for direction in args.directions:
        runs = {name: step(loss, inputs, direction) for name, loss in chosen.items() if fits(name, loss, inputs)}
        times = in_turn(runs, device, args.rounds, args.clock)
        base = times.get("dense", (0.0, 0.0, 0.0))[1]
        roof = matmul_rate(DTYPES[dtype], device, 8192) if device.type == "cuda" else 0.0
        flops = {"forward": 2, "backward": 4, "both": 6}[direction] * rows * rows * dim
        for name, (p20, p50, p80) in times.items():
            share = flops / p50 / roof if roof else ""
            results.append(
                {
                    "op": args.op, "provider": name, "direction": direction, "rows": rows, "dim": dim, "dtype": dtype,
                    "temperature": temperature, "p20_ms": p20 * 1e3, "p50_ms": p50 * 1e3, "p80_ms": p80 * 1e3,
                    "times_dense": base / p50 if base else "", "share_of_matmul": share, "peak_mib": "",
                }
            )  # fmt: skip
    return results


def memory(args: argparse.Namespace, rows: int, dim: int, dtype: str, temperature: float) -> list[dict[str, Any]]:
    """Extra memory of forward and backward; each provider in a process of its own, where nothing was freed before."""
    results = []
    for name in providers(args.op, temperature, args.device, rows, args.providers).keys() - {"compiled"}:
        command = [sys.executable, __file__, "--op", args.op, "--device", args.device, "--peak", name]
        command += ["--rows", str(rows), "--dims", str(dim), "--dtypes", dtype, "--temperatures", str(temperature)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} has no peak: {done.stderr.splitlines()[-1][:100]}", file=sys.stderr)
            continue
        row = dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "times_dense", "share_of_matmul"), "")
        shape = {"op": args.op, "provider": name, "direction": "both", "rows": rows, "dim": dim, "dtype": dtype}
        results.append(shape | {"temperature": temperature} | row | {"peak_mib": int(done.stdout) / 2**20})
    return results


def peak(args: argparse.Namespace) -> None:
    """In a process of its own: print the bytes one provider takes."""
    rows, dim, dtype, temperature = args.rows[0], args.dims[0], DTYPES[args.dtypes[0]], args.temperatures[0]
    loss = providers(args.op, temperature, args.device, rows, [args.peak])[args.peak]
    step(loss, embeddings(args.op, 8, dim, dtype, args.device), "both")()  # code is loaded before the count begins
    inputs = embeddings(args.op, rows, dim, dtype, args.device)
    print(peak_bytes(step(loss, inputs, "both"), torch.device(args.device)))


def show(results: list[dict[str, Any]]) -> None:
    for row in results:
        cells = [row["op"], f"M={row['rows']}", f"D={row['dim']}", row["dtype"], row["direction"], row["provider"]]
        numbers = {
            "ms": row["p50_ms"], "x dense": row["times_dense"], "of matmul": row["share_of_matmul"],
            "MiB extra": row["peak_mib"],
        }  # fmt: skip
        print("  ".join([*map(str, cells), *(f"{value:.2f} {unit}" for unit, value in numbers.items() if value != "")]))


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Time over rows, one line a provider."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    timed = [row for row in results if row["p50_ms"] != "" and row["direction"] == "both"]
    for name, dim, dtype in dict.fromkeys((row["provider"], row["dim"], row["dtype"]) for row in timed):
        points = [row for row in timed if (row["provider"], row["dim"], row["dtype"]) == (name, dim, dtype)]
        axes.loglog(
            [row["rows"] for row in points], [row["p50_ms"] for row in points], "o-", label=f"{name} D={dim} {dtype}"
        )
    axes.set(xlabel="rows M", ylabel="forward and backward, ms (median)")
    axes.legend(fontsize=6)
    figure.savefig(file, bbox_inches="tight")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sizes, dense torch and ours only, speed and memory")
    parser.add_argument("--op", choices=list(DENSE), default="nt_xent")
    parser.add_argument("--mode", choices=["speed", "memory"], nargs="+", default=["speed", "memory"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS)
    parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.05, 0.1, 0.5])
    parser.add_argument("--directions", choices=["forward", "backward", "both"], nargs="+", default=["both"])
    parser.add_argument("--providers", nargs="+", help="default: all that are installed")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.dims, args.temperatures, args.rounds = [128, 512, 8192], [128], [0.1], 7
        args.providers = args.providers or ["dense", "ours/auto", "ours/triton"]
    return args


def main() -> None:
    args = arguments()
    if args.peak:
        peak(args)
        return
    results: list[dict[str, Any]] = []
    shapes = list(itertools.product(args.rows, args.dims, args.dtypes, args.temperatures))
    work = [
        (mode, shape) for mode in args.mode for shape in shapes if mode == "speed" or not args.quick or shape[0] > 4096
    ]
    if args.quick and "memory" in args.mode:
        work += [("memory", (65536, 128, dtype, 0.1)) for dtype in args.dtypes]
    for mode, shape in work:
        fresh = (speed if mode == "speed" else memory)(args, *shape)
        show(fresh)
        results += fresh
    name = device_name(torch.device(args.device))
    stem = f"contrastive_{'quick_' if args.quick else ''}{''.join(c if c.isalnum() else '-' for c in name)}"
    context = {"device": name, "clock": args.clock, "versions": versions()}
    write_rows(RESULTS / f"{stem}.csv", [row | context for row in results])
    if not args.quick:
        plot(results, RESULTS / f"{stem}.svg")


if __name__ == "__main__":
    main()
