"""What a recipe's step costs on 8 to 4096 GPUs, and what limits it first: `python benchmarks/scaling.py [RECIPE ...]`

A simulator: it predicts, and says from what. A step's FLOPs, operators and collectives are counted on tensors without
numbers (`clusters/paper.py`); laws of collectives, ZeRO, data, checkpoints and stragglers (`clusters/law.py`,
`clusters/step.py`) make seconds of them on a cluster of which only facts are given (`--profile`,
`clusters/profiles.py`). What was measured takes the place of what is assumed:

    python benchmarks/scaling.py --measure h100.json          # a minute on a GPU; on a CPU, 1 and 2 ranks over gloo
    python benchmarks/scaling.py --fit h100.json --profile dgx-h100-400g
    python benchmarks/scaling.py --validate                   # cases that were not fitted: predicted beside measured

Weak scaling by default: a GPU has the samples that it has on 8 GPUs with the recipe's batch (in more passes where its
memory asks for it), and the batch grows; `--strong` keeps the recipe's batch. Efficiency is that against one GPU alone
that never waits. Rows go to benchmarks/results/scaling_PROFILE.csv and .svg with `--write`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from clusters import measured, validation
from clusters.law import Cluster
from clusters.paper import OnShapes, on_paper
from clusters.predict import Row, Settings, modalities_of, rows_of
from clusters.profiles import PROFILES, START, UTILISATION
from clusters.rank import Asked
from measure import RESULTS, write_rows

from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.engine.plan.activations import OnPaper
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union

RECIPES = Path(__file__).parents[1] / "launch" / "recipes"
WORLDS = [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
ON_GPU = {"gpu/simclr-imagenet.yaml": [32, 64, 128], "gpu/bert-base.yaml": [8, 16, 32]}
"""What is measured on a GPU, at how many samples a pass."""
ON_CPU = {"demo.yaml": [8, 16]}


def read(path: str, overrides: list[str]) -> Recipe:
    return load_recipe(path, overrides, recipe_model(config_union(), evaluation_union()))


def found_recipes(names: list[str]) -> list[str]:
    """Paths of recipes; a name alone is one of launch/recipes. Default: the demo and all of launch/recipes/gpu."""
    if not names:
        return [str(RECIPES / "demo.yaml"), *map(str, sorted((RECIPES / "gpu").glob("*.yaml")))]
    return [name if Path(name).exists() else str(next(RECIPES.rglob(f"{name}.yaml"))) for name in names]


def measure(options: argparse.Namespace) -> None:
    """Runs on this machine, into a file."""
    described = measured.described([])
    default = ON_GPU if described["cuda"] else ON_CPU
    wanted = {str(RECIPES / name): micros for name, micros in default.items()}
    if options.recipes:
        wanted = {path: options.micro or [4, 8] for path in found_recipes(options.recipes)}
    runs = []
    for path, micros in wanted.items():
        overrides = list(options.set)
        if not any(each.startswith("data.sources.") for each in overrides) and not path.endswith("demo.yaml"):
            recipe = read(path, overrides)
            overrides += measured.demo_data(recipe, modalities_of(OnPaper(recipe).objective))
        asked = Asked(path, "", overrides, options.micro or micros, options.steps, [])
        for world in options.ranks or ([1] if described["cuda"] else [1, 2]):
            sizes = measured.SIZES if world > 1 else []
            each = dataclasses.replace(asked, sizes=sizes, checkpoint=world == 1)
            run = measured.launch(each, world, options.threads)
            runs.append(run)
            print(said_of(run), flush=True)
            Path(options.measure).write_text(json.dumps(described | {"runs": runs}, indent=1))


def said_of(run: measured.Run) -> str:
    """A measurement in a few lines."""
    found = run["found"]
    lines = [f"{found['name']} on {found['world']} rank{'s' * (found['world'] > 1)}: first step after "
             f"{found['start']:.0f} s; {found['samples/s of a worker']:.0f} samples/s of a loader worker"]  # fmt: skip
    for micro, phases in found["steps"].items():
        middle = {name: 1e3 * sorted(times)[len(times) // 2] for name, times in phases.items()}
        lines.append(f"  {micro:>4} samples: step {middle['total']:.1f} ms (forward {middle['forward']:.1f}, backward "
                     f"{middle['backward']:.1f}, update {middle['update']:.1f}); processor {middle['cpu']:.1f}, of it "
                     f"the thread that computes {middle['thread']:.1f}")  # fmt: skip
    if saved := found["checkpoint"]:
        lines.append(f"  checkpoint: {saved['bytes'] / 1e6:.0f} MB (planned {saved['planned'] / 1e6:.0f}) in "
                     f"{saved['seconds']:.2f} s")  # fmt: skip
    return "\n".join(lines)


def fitted_from(path: str) -> tuple[dict[str, Any], dict[str, measured.Fitted]]:
    """What a file of `--measure` says, and its fits of one rank by name of the recipe."""
    found = json.loads(Path(path).read_text())
    fits = {r["found"]["name"]: measured.fit_recipe(r) for r in found["runs"] if r["found"]["world"] == 1}
    for run in found["runs"]:
        name = run["found"]["name"]
        if name in fits and any(each.startswith("data.sources.") for each in run["overrides"]):  # not its own data
            fits[name] = dataclasses.replace(fits[name], readers=0.0, sample_bytes=0.0, samples_per_open=0.0)
    return found, fits


def calibrated(fits: dict[str, measured.Fitted], shapes: dict[str, OnShapes], peak: float) -> dict[str, float]:
    """The share of a GPU's peak that measured recipes reach, by the kind of their networks: for those not measured."""
    found: dict[str, float] = {}
    for name, fit in fits.items():
        if name in shapes and peak:
            micro = max(fit.micros)
            kind = "convolution" if shapes[name].convolution else "transformer"
            found[kind] = sum(shapes[name].at(1, micro).flops.values()) / fit.passes(micro) / peak
    return found


def predict(options: argparse.Namespace) -> list[Row]:
    data, fits = fitted_from(options.fit) if options.fit else ({}, {})
    cluster = PROFILES[options.profile]
    recipes = [read(path, options.set) for path in found_recipes(options.recipes)]
    shapes = {recipe.name: on_paper(recipe, gpus=not options.sums) for recipe in recipes}
    same = any(part in data.get("device", "").lower() for part in options.profile.split("-"))
    if data and not same:
        print(f"measured on {data['device']}, which {options.profile} does not consist of: nothing of it is used")
        fits = {}
    shares = UTILISATION | calibrated(fits, shapes, cluster.peak)
    print(assumptions(cluster, options, shares, fits, data.get("device", "")))
    rows: list[Row] = []
    for recipe in recipes:
        one, fit = shapes[recipe.name], fits.get(recipe.name)
        share = options.mfu or shares["convolution" if one.convolution else "transformer"]
        settings = Settings(options.workers or recipe.data.workers, share, options.strong,
                            sample_bytes=options.sample_bytes, worker_rate=options.worker_rate)  # fmt: skip
        start = fit.start if fit else START
        mine = rows_of(recipe, one, cluster, options.gpus, settings, fit, start)
        print(table(mine, one, fit is not None, share), flush=True)
        rows += mine
    return rows


def assumptions(cluster: Cluster, options: argparse.Namespace, shares: dict[str, float],
                fits: dict[str, measured.Fitted], device: str) -> str:  # fmt: skip
    """What the numbers below rest on."""
    compute = f"FLOPs at {options.mfu} of the peak (--mfu)" if options.mfu else (
        f"FLOPs at {shares['convolution']:.3f} (convolutions) or {shares['transformer']:.3f} of the peak")  # fmt: skip
    scaling = "Strong scaling: the batch of the recipe" if options.strong else "Weak scaling: samples of a GPU as on 8"
    taken = f"measured on {device}: {', '.join(fits)}" if fits else "none measured"
    return f"""Predictions, not measurements. {cluster.name}: {cluster.sources}
  {cluster.per_node} GPUs a node; to others in it {cluster.inner / 1e9:.0f} GB/s, {cluster.inner_latency * 1e6:.1f} us \
a hop; a node to others {cluster.outer / 1e9:.1f} GB/s, {cluster.outer_latency * 1e6:.1f} us
  compute: {taken}; else {compute}, or {cluster.launch * 1e6:.0f} us of the host for each counted
  operator, whichever is more
  collectives of objectives and BatchNorms hide behind nothing; ZeRO's as DeepSpeed's settings of the recipe say
  data: what was not measured on data of its own has bytes and reading rates of its kind (clusters/profiles.py)
  stragglers: ranks draw log step times independently; data: readers run ahead of steps without end; checkpoints stop
  all ranks; networks are shared with nobody; no failures. {scaling}"""


def table(rows: list[Row], shapes: OnShapes, is_measured: bool, share: float) -> str:
    """Milliseconds of a step's parts, by number of GPUs."""
    if not rows:
        return "no row: fewer samples in a batch than GPUs"
    how = "compute measured" if is_measured else f"compute from FLOPs at {share:.3f} of the peak: a guess"
    how += f"; its backward is not counted but taken as twice the forward ({shapes.partly})" if shapes.partly else ""
    lines = [f"\n{rows[0].recipe}: ZeRO-{shapes.stage}, {shapes.trained / 4e6:.1f} M trained, {rows[0].micro} samples "
             f"a pass and {rows[0].accum} passes on {rows[0].gpus} GPUs; {how}",
             f"{'GPUs':>6}{'step ms':>10}{'compute':>10}{'bn+stats':>10}{'gather':>10}{'zero':>10}{'slowest':>10}"
             f"{'data':>10}{'save':>10}{'eff.':>7}{'samples/s':>12}{'start s':>9}  first limit"]  # fmt: skip
    for row in rows:
        parts = "".join(f"{1e3 * value:>10.1f}" for value in row.parts.seconds().values())
        lines.append(f"{row.gpus:>6}{1e3 * row.parts.total:>10.1f}{parts}{row.efficiency:>7.2f}{row.rate:>12,.0f}"
                     f"{row.start:>9.0f}  {row.limit or '-'}")  # fmt: skip
    lines += [f"  {limit}: {advice}" for limit, advice in {row.limit: row.advice for row in rows if row.limit}.items()]
    return "\n".join(lines)


def write(rows: list[Row], name: str) -> None:
    """The rows as CSV, and efficiency by GPUs as a figure."""
    write_rows(RESULTS / f"scaling_{name}.csv", [
        {"recipe": r.recipe, "gpus": r.gpus, "samples a pass": r.micro, "passes": r.accum}
        | {"step ms": 1e3 * r.parts.total}
        | {f"{k} ms": 1e3 * v for k, v in r.parts.seconds().items()}
        | {f"{k} bytes": v for k, v in r.parts.traffic.items()}
        | {"efficiency": r.efficiency, "samples/s": r.rate, "start s": r.start, "first limit": r.limit} for r in rows
    ])  # fmt: skip
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6))
    for number, recipe in enumerate(dict.fromkeys(row.recipe for row in rows)):
        mine = [row for row in rows if row.recipe == recipe]
        style = ("-", "--", ":", "-.")[number // 10 % 4]
        axes.plot([r.gpus for r in mine], [r.efficiency for r in mine], style, label=recipe)
    axes.set(xscale="log", xlabel="GPUs", ylabel="efficiency (predicted)", ylim=(0, 1.05), title=name)
    axes.legend(fontsize=6, ncols=2)
    figure.tight_layout()
    figure.savefig(RESULTS / f"scaling_{name}.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="*", help="paths, or names in launch/recipes; default: demo, gpu/*")
    parser.add_argument("--measure", metavar="OUT.json", help="run recipes here for a few steps")
    parser.add_argument("--fit", metavar="IN.json", help="a file of --measure")
    parser.add_argument("--validate", action="store_true", help="cases that were not fitted, predicted and measured")
    parser.add_argument("--profile", choices=PROFILES, default="dgx-h100-400g", help="default %(default)s")
    parser.add_argument("--gpus", type=int, nargs="*", default=WORLDS)
    parser.add_argument("--strong", action="store_true", help="the batch of the recipe on any number of GPUs")
    parser.add_argument("--sums", action="store_true", help="BatchNorms send sums, as over CPUs, where GPUs gather")
    parser.add_argument("--mfu", type=float, help="share of the GPU's peak that counted FLOPs reach")
    parser.add_argument("--workers", type=int, help="loader workers of a rank; default the recipe's")
    parser.add_argument("--worker-rate", type=float, help="samples/s of a loader worker")
    parser.add_argument("--sample-bytes", type=float, help="bytes of a sample in a shard")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results")
    parser.add_argument("--micro", type=int, nargs="*", help="--measure: samples a pass")
    parser.add_argument("--ranks", type=int, nargs="*", help="--measure: worlds; default 1, on a CPU 1 and 2")
    parser.add_argument("--steps", type=int, default=8, help="--measure, --validate: of each kind (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="--measure: of a rank on a CPU (%(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="a.b=c", help="fields of the recipes")
    options = parser.parse_args()
    if options.measure:
        measure(options)
    elif options.validate:
        return validation.validate(options.steps)
    else:
        rows = predict(options)
        if options.write:
            write(rows, options.profile + ("_strong" if options.strong else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
