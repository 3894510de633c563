"""Speed and memory of the contrastive losses beside dense torch, torch.compile and what else can be installed.

    python benchmarks/contrastive.py --quick                 # 2 minutes on 2 cores: the ratios to dense torch
    python benchmarks/contrastive.py                         # what a CPU does in 20 minutes; on a GPU every size
    python benchmarks/contrastive.py --op clip_loss --mode memory --rows 8192 --dims 128
    python benchmarks/contrastive.py --plot benchmarks/results/contrastive_NAME.csv    # the picture alone

M counts rows: 2N for nt_xent, N for clip_loss. Every provider's loss and gradients are compared with float64 before it
is timed; one that is wrong is not timed. Providers are timed in turn, small sizes first, until --budget is spent; what
is left out, or not installed, is said. Rows go to benchmarks/results/contrastive_*.csv, and a picture beside them.
"""

import argparse
import csv
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contrastive_peers import DENSE, Loss, peers, providers, versions
from measure import RESULTS, device_name, in_turn, matmul_rate, peak_bytes, seconds, write_rows
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = {  # device -> rows, features, temperatures, minutes
    "cpu": ([128, 512, 2048, 4096, 8192, 16384], [128, 512], [0.1], 20.0),
    "cuda": ([2048 << power for power in range(8)], [64, 128, 256, 512, 1024], [0.05, 0.1, 0.5], 60.0),
}
Shape = tuple[str, int, int, str, float]  # op, rows, features, dtype, temperature
MEASURED = ("p20_ms", "p50_ms", "p80_ms", "times_dense", "share_of_matmul", "peak_mib", "note")


def table_row(shape: Shape, provider: str, direction: str, **measured: float | str) -> dict[str, Any]:
    """One row of the CSV; what was not measured stays empty."""
    op, rows, dim, dtype, temperature = shape
    place = {"op": op, "provider": provider, "direction": direction, "rows": rows, "dim": dim, "dtype": dtype}
    return place | {"temperature": temperature} | dict.fromkeys(MEASURED, "") | measured


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
    truth = DENSE[op](*wide, temperature)
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


def speed(args: argparse.Namespace, shape: Shape) -> list[dict[str, Any]]:
    """One table row for each provider that is right."""
    op, rows, dim, dtype, temperature = shape
    device = torch.device(args.device)
    inputs = embeddings(op, rows, dim, DTYPES[dtype], args.device)
    chosen = providers(op, temperature, args.device, rows, args.providers)
    for name in list(chosen):
        if complaint := verify(op, name, chosen[name], temperature, dim, DTYPES[dtype], args.device):
            print(f"{name} is not timed at D={dim} {dtype}: {complaint}", file=sys.stderr)
            del chosen[name]
    roof = matmul_rate(DTYPES[dtype], device, 8192) if device.type == "cuda" else 0.0
    results = []
    for direction in args.directions:
        runs = {name: step(loss, inputs, direction) for name, loss in chosen.items() if fits(name, loss, inputs)}
        slowest = max(seconds(run, device, args.clock) for run in runs.values())
        rounds = min(30 * args.rounds, max(args.rounds, int(2 / slowest)))  # runs of a millisecond are mostly noise
        times = in_turn(runs, device, rounds, args.clock)
        base = times.get("dense", (0.0, 0.0, 0.0))[1]
        flops = {"forward": 2, "backward": 4, "both": 6}[direction] * rows * rows * dim
        for name, (p20, p50, p80) in times.items():
            ratios = {"times_dense": base / p50 if base else "", "share_of_matmul": flops / p50 / roof if roof else ""}
            spread = {"p20_ms": p20 * 1e3, "p50_ms": p50 * 1e3, "p80_ms": p80 * 1e3}
            results.append(table_row(shape, name, direction, **spread, **ratios))
    return results


def memory(args: argparse.Namespace, shape: Shape) -> list[dict[str, Any]]:
    """Extra memory of forward and backward."""
    op, rows, dim, dtype, temperature = shape
    results = []
    for name in providers(op, temperature, args.device, rows, args.providers):
        if name == "compiled":  # the compiler takes more than the loss
            continue
        try:
            taken = peak(args, name, shape) if args.device == "cuda" else _peak_in_a_process(args, name, shape)
        except Exception as error:  # a peer may fail in any way; that is a result
            why = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            print(f"{name} has no peak: {why.splitlines()[-1][:100]}", file=sys.stderr)
            continue
        results.append(table_row(shape, name, "both", peak_mib=taken / 2**20))
    return results


def _peak_in_a_process(args: argparse.Namespace, name: str, shape: Shape) -> int:
    """`peak` of its own process, where nothing was freed before: resident pages stay, as a GPU's allocator's do not."""
    op, rows, dim, dtype, temperature = shape
    command = [sys.executable, __file__, "--op", op, "--device", args.device, "--peak", name]
    command += ["--rows", str(rows), "--dims", str(dim), "--dtypes", dtype, "--temperatures", str(temperature)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak(args: argparse.Namespace, name: str, shape: Shape) -> int:
    """Bytes that one provider takes."""
    op, rows, dim, dtype, temperature = shape
    loss = providers(op, temperature, args.device, rows, [name])[name]
    step(loss, embeddings(op, 8, dim, DTYPES[dtype], args.device), "both")()  # code is loaded before the count begins
    inputs = embeddings(op, rows, dim, DTYPES[dtype], args.device)
    return peak_bytes(step(loss, inputs, "both"), torch.device(args.device))


def absent(op: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each peer that cannot be imported, with the reason."""
    shape = (op, 0, 0, "", args.temperatures[0])
    reasons = peers(op, args.temperatures[0])[1]
    return [
        table_row(shape, name, "", note=why)
        for name, why in reasons.items()
        if not args.providers or name in args.providers
    ]


def show(results: list[dict[str, Any]]) -> None:
    for row in results:
        cells = [row["op"], f"M={row['rows']}", f"D={row['dim']}", row["dtype"], row["direction"], row["provider"]]
        numbers = {
            "ms": row["p50_ms"], "x dense": row["times_dense"], "of matmul": row["share_of_matmul"],
            "MiB extra": row["peak_mib"],
        }  # fmt: skip
        cells = [row["op"], row["provider"], row["note"]] if row["note"] else cells
        print("  ".join([*map(str, cells), *(f"{value:.2f} {unit}" for unit, value in numbers.items() if value != "")]))


def plot(file: Path) -> None:
    """Time and memory over rows, one line a provider, one column an operation, dtype and number of features."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with file.open() as stream:
        results = [row for row in csv.DictReader(stream) if row["direction"] == "both"]
    columns = list(dict.fromkeys((row["op"], row["dtype"], row["dim"]) for row in results))
    size = (3.2 * len(columns), 5.5)
    figure, axes = pyplot.subplots(2, len(columns), figsize=size, sharex=True, sharey="row", squeeze=False)
    names = list(dict.fromkeys(row["provider"] for row in results))
    for place, column in enumerate(columns):
        for axis, quantity in zip(axes[:, place], ("p50_ms", "peak_mib"), strict=True):
            here = [row for row in results if (row["op"], row["dtype"], row["dim"]) == column and row[quantity]]
            for name in dict.fromkeys(row["provider"] for row in here):
                points = sorted((int(row["rows"]), float(row[quantity])) for row in here if row["provider"] == name)
                axis.loglog(*zip(*points, strict=True), "o-", color=f"C{names.index(name)}", label=name, markersize=3)
        axes[0, place].set_title("{} {} D={}".format(*column), fontsize=8)
        axes[1, place].set_xlabel("rows M")
        axes[0, place].legend(fontsize=6)
    axes[0, 0].set_ylabel("forward and backward, ms (median)")
    axes[1, 0].set_ylabel("extra memory, MiB")
    figure.savefig(file.with_suffix(".png"), bbox_inches="tight", dpi=110)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sizes, dense torch and ours only, speed and memory")
    parser.add_argument("--op", choices=list(DENSE), nargs="+", help="default: all (--quick: nt_xent)")
    parser.add_argument("--mode", choices=["speed", "memory"], nargs="+", default=["speed", "memory"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--dims", type=int, nargs="+")
    parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--temperatures", type=float, nargs="+")
    parser.add_argument("--directions", choices=["forward", "backward", "both"], nargs="+", default=["both"])
    parser.add_argument("--providers", nargs="+", help="default: all that are installed")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="begin no size that ends later")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--plot", type=Path, metavar="CSV", help="draw the rows of an earlier run beside it, as PNG")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows, dims, temperatures, budget = SIZES[args.device]
    if args.quick:
        rows, dims, temperatures = [128, 512, 8192], [128], [0.1]
        args.providers = args.providers or ["dense", "ours/auto", "ours/triton"]
    args.op = args.op or (["nt_xent"] if args.quick else list(DENSE))
    args.rows, args.dims = args.rows or rows, args.dims or dims
    args.temperatures, args.budget = args.temperatures or temperatures, args.budget or budget
    args.rounds = args.rounds or (7 if args.quick else 20)
    return args


def work_of(args: argparse.Namespace) -> list[tuple[str, Shape]]:
    """(mode, shape) in the order of their cost."""
    shapes = sorted(
        itertools.product(args.op, args.rows, args.dims, args.dtypes, args.temperatures), key=lambda s: s[1] ** 2 * s[2]
    )
    work = [(mode, shape) for shape in shapes for mode in args.mode]
    if not args.quick:
        return work
    work = [(mode, shape) for mode, shape in work if mode == "speed" or shape[1] > 4096]
    large = [(op, 65536, 128, dtype, 0.1) for op in args.op for dtype in args.dtypes]
    return work + [("memory", shape) for shape in large if "memory" in args.mode]


def sweep(args: argparse.Namespace, file: Path) -> None:
    """Measure, print and write what the budget allows."""
    name = device_name(torch.device(args.device))
    context = {"device": name, "clock": args.clock, "versions": versions()}
    results = [] if args.quick else [row for op in args.op for row in absent(op, args)]
    show(results)
    begin, last = time.monotonic(), dict.fromkeys(args.mode, (0.0, 1))  # seconds and M M D of the latest shape
    for mode, shape in work_of(args):
        size = shape[1] ** 2 * shape[2]
        start = time.monotonic()
        growth = size / last[mode][1] if shape[1] > 2048 else 0.0  # below, compilers and imports take the time
        expected = last[mode][0] * growth
        if not args.quick and start - begin + expected > args.budget * 60:
            print(f"{mode} of {shape} is left out: the budget of {args.budget:g} minutes is spent", file=sys.stderr)
            continue
        fresh = (speed if mode == "speed" else memory)(args, shape)
        last[mode] = (time.monotonic() - start, size)
        show(fresh)
        results += fresh
        write_rows(file, [row | context for row in results])


def main() -> None:
    args = arguments()
    if args.peak:
        print(peak(args, args.peak, (args.op[0], args.rows[0], args.dims[0], args.dtypes[0], args.temperatures[0])))
    elif args.plot:
        plot(args.plot)
    else:
        name = device_name(torch.device(args.device))
        stem = f"contrastive_{'quick_' if args.quick else ''}{''.join(c if c.isalnum() else '-' for c in name)}"
        file = RESULTS / f"{stem}.csv"
        sweep(args, file)
        if not args.quick:
            plot(file)


if __name__ == "__main__":
    main()
