"""Speed and memory of linear cross-entropy beside full logits, gathered logits, torch's own, and what can be installed.

    python benchmarks/linear_cross_entropy.py --quick        # 5 minutes on 2 cores: the ratios of one size, a BERT step
    python benchmarks/linear_cross_entropy.py --minutes 60   # as many sizes as an hour allows, the smallest first
    python benchmarks/linear_cross_entropy.py --mode memory --tokens 4096 --widths 768 --classes 30522 --shares 0.15

Loss and gradients of every provider are compared with float64 before it is timed; one that is wrong is not timed.
Providers are timed in turn. One command writes all rows of benchmarks/results/linear_cross_entropy_*.csv; what was not
run has a row that says why. Extra memory is what forward and backward take at their peak beyond the inputs and the
weight's gradient. --plot draws the CSV beside it.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from linear_ce_providers import BASE, DTYPES, PEERS, absent, both, complaint, problem, providers
from measure import RESULTS, device_name, in_turn, matmul_rate, peak_bytes, write_rows

TOKENS = [512, 1024, 2048, 4096, 8192, 16384, 32768]
WIDTHS = [256, 512, 768, 1024, 2048, 4096]
CLASSES = [30_522, 50_257, 128_256, 256_000]
SHARES = [0.15, 0.4, 1.0]
NAMES = ("op", "tokens", "width", "classes", "share", "dtype")
OPTIONS = {"--tokens": "tokens", "--widths": "width", "--classes": "classes", "--shares": "share", "--dtypes": "dtype"}
BLANK = dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "times_ours", "share_of_matmul", "extra_mib", "note"), "")
Row = dict[str, Any]


def flops(shape: Row) -> float:
    """Of the three products on the kept rows."""
    return float(6 * shape["tokens"] * shape["share"] * shape["width"] * shape["classes"])


def timed(shape: Row, times: dict[str, tuple[float, float, float]], roof: float) -> list[Row]:
    """Rows of providers that were timed."""
    own = next((value[1] for name, value in times.items() if name.startswith("ours")), None)
    return [
        shape | {"provider": name} | BLANK
        | {"p20_ms": p20 * 1e3, "p50_ms": p50 * 1e3, "p80_ms": p80 * 1e3, "times_ours": p50 / own if own else ""}
        | {"share_of_matmul": flops(shape) / p50 / roof if roof else ""}
        for name, (p20, p50, p80) in times.items()
    ]  # fmt: skip


def speed(args: argparse.Namespace, shape: Row) -> list[Row]:
    """One row for each provider that is right, and for each that is not."""
    device, chosen = (
        torch.device(args.device),
        providers(args.device, shape["tokens"] * shape["classes"], args.providers),
    )
    wrong = {name: words for name, loss in chosen.items() if (words := complaint(loss, shape, args.device))}
    given = problem(shape, args.device)
    runs = {name: both(loss, given) for name, loss in chosen.items() if name not in wrong}
    roof = matmul_rate(DTYPES[shape["dtype"]], device, 8192) if device.type == "cuda" else 0.0
    notes = {name: f"not timed: {words}" for name, words in wrong.items()} | absent(args.device, args.providers)
    rows = timed(shape, in_turn(runs, device, args.rounds, args.clock), roof)
    return rows + [shape | {"provider": name} | BLANK | {"note": note} for name, note in notes.items()]


def memory(args: argparse.Namespace, shape: Row) -> list[Row]:
    """Extra memory of forward and backward."""
    results = []
    for name in providers(args.device, shape["tokens"] * shape["classes"], args.providers):
        if name == "compiled":
            continue  # what the compiler itself takes would count
        try:
            taken = peak(args, name, shape) if args.device == "cuda" else _peak_in_a_process(args, name, shape)
            found: Row = {"extra_mib": taken / 2**20}
        except Exception as error:  # a peer may fail in any way; that is a result
            why = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            found = {"note": f"no peak: {(why.splitlines() or ['killed'])[-1][:100]}"}
        results.append(shape | {"provider": name} | BLANK | found)
    return results


def _peak_in_a_process(args: argparse.Namespace, name: str, shape: Row) -> int:
    """`peak` of its own process, where nothing was freed before: resident pages stay, as a GPU's allocator's do not."""
    command = [sys.executable, __file__, "--device", args.device, "--peak", name, "--threads", str(args.threads)]
    for option, name_of in OPTIONS.items():
        command += [option, str(shape[name_of])]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak(args: argparse.Namespace, name: str, shape: Row) -> int:
    """Bytes that one provider takes beyond the weight's gradient."""
    loss = providers(args.device, shape["tokens"] * shape["classes"], [name])[name]
    both(loss, problem(shape | {"tokens": 8, "classes": 64}, args.device))()  # code is loaded before the count begins
    given = problem(shape, args.device)
    return peak_bytes(both(loss, given), torch.device(args.device)) - given[1].numel() * given[1].element_size()


def step(args: argparse.Namespace, shape: Row) -> list[Row]:
    """Training steps of BERT-base."""
    from linear_ce_bert import steps  # here: it needs transformers

    runs = steps(args.device, shape["dtype"])
    return timed(shape, in_turn(runs, torch.device(args.device), args.rounds, args.clock), 0.0)


def free_bytes(device: str) -> int:
    """Memory of the device that may be taken."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def obstacle(args: argparse.Namespace, shape: Row, pace: float, left: float) -> str:
    """Why a size is not run, "" if it is. `pace`: seconds a flop, so far; `left`: seconds."""
    wanted = 4 * (shape["tokens"] + shape["classes"]) * shape["width"] * DTYPES[shape["dtype"]].itemsize
    if wanted > (free := free_bytes(args.device)):
        return f"not run: wants {wanted / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    return "not run: the time is over" if pace * flops(shape) > left else ""


def measured(args: argparse.Namespace, file: Path) -> list[Row]:
    """The rows of the BERT step and of every mode and size, the smallest sizes first, within the time that is given.

    All there are stand in `file` after each size: what ends the process later takes none of them.
    """
    sizes = itertools.product(["head"], args.tokens, args.widths, args.classes, args.shares, args.dtypes)
    shapes = sorted((dict(zip(NAMES, size, strict=True)) for size in sizes), key=flops)
    step_of = dict(zip(NAMES, ("BERT-base step", 1024, 768, 30_522, 0.15), strict=False))
    work = [("step", step, step_of | {"dtype": dtype}) for dtype in args.dtypes]
    work += [(mode, take, shape) for shape in shapes for mode, take in (("speed", speed), ("memory", memory))]
    context = {"device": device_name(torch.device(args.device)), "clock": args.clock, "versions": versions()}
    results, paces, end = [], dict.fromkeys(("speed", "memory", "step"), 0.0), time.monotonic() + 60 * args.minutes
    for mode, take, shape in (one for one in work if one[0] in args.mode):
        begin = time.monotonic()
        if note := obstacle(args, shape, paces[mode], end - begin):
            fresh = [shape | {"provider": "all"} | BLANK | {"note": note}]
        else:
            fresh = take(args, shape)
            paces[mode] = (time.monotonic() - begin) / flops(shape)
        show(fresh)
        results += fresh
        write_rows(file, [row | context for row in results])
    return results


def show(results: list[Row]) -> None:
    for row in results:
        size = f"T={row['tokens']}  H={row['width']}  V={row['classes']}  {row['share']:.0%} kept"
        numbers = {
            "ms": row["p50_ms"], "x ours": row["times_ours"], "of matmul": row["share_of_matmul"],
            "MiB extra": row["extra_mib"],
        }  # fmt: skip
        text = [f"{value:.2f} {unit}" for unit, value in numbers.items() if value != ""]
        print("  ".join([row["op"], size, row["dtype"], row["provider"], *text, row["note"]]), flush=True)


def plot(results: list[Row], file: Path) -> None:
    """Time and extra memory of each provider over the size, a column of axes for each dtype."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    dtypes = list(dict.fromkeys(row["dtype"] for row in results))
    labels = {"times_ours": "time / that of ours", "extra_mib": "extra memory, MiB"}
    figure, axes = pyplot.subplots(len(labels), len(dtypes), figsize=(6 * len(dtypes), 7), squeeze=False)
    for (line, (column, label)), (place, dtype) in itertools.product(enumerate(labels.items()), enumerate(dtypes)):
        shown = [row for row in results if row["dtype"] == dtype and row["op"] == "head" and row[column] != ""]
        for name in dict.fromkeys(row["provider"] for row in shown):
            points = sorted((flops(row), row[column]) for row in shown if row["provider"] == name)
            axes[line, place].loglog(*zip(*points, strict=True), "o", markersize=4, label=name)
        axes[line, place].set(title=dtype, xlabel="flops of the kept rows' products", ylabel=label)
        if shown:
            axes[line, place].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file)


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
    parser.add_argument("--rounds", type=int, help="default: 20; 3 with --quick")
    parser.add_argument("--minutes", type=float, default=60, help="sizes that would take longer are not run")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where others run as well")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on a CPU")
    parser.add_argument("--plot", action="store_true", help="draw the results as well (SVG)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.widths, args.classes, args.shares = [4096], [768], [30_522], [0.15]
        if args.device == "cpu":  # without the compiled one, which takes a minute to compile
            args.providers = args.providers or [BASE, "gathered", "torch", "torch, chunked", "ours/torch", *PEERS]
    args.rounds = args.rounds or (3 if args.quick else 20)
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.peak:
        size = ("head", args.tokens[0], args.widths[0], args.classes[0], args.shares[0], args.dtypes[0])
        print(peak(args, args.peak, dict(zip(NAMES, size, strict=True))))
        return
    name = device_name(torch.device(args.device))
    stem = f"linear_cross_entropy_{'quick_' if args.quick else ''}{''.join(c if c.isalnum() else '-' for c in name)}"
    results = measured(args, args.out / f"{stem}.csv")
    if args.plot:
        plot(results, args.out / f"{stem}.svg")


if __name__ == "__main__":
    main()
