"""Figures of the report as SVG text, drawn from the rows of metrics.jsonl and from a scorecard.

matplotlib is imported where something is drawn: every rank and every command would wait for it."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigssl.report.health import PREFIX as HEALTH
from bigssl.report.health import SCALE, named_health
from bigssl.report.metrics import Measure
from bigssl.report.values import CURVE, SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK = "#1f5fa8", "#c8641c", "#2f8f5b", "#9aa0a6", "#202124"
POINTS = 600  # a curve of more points than pixels only makes the file larger
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, selectable, in the page's own font
    "svg.hashsalt": "bigssl",  # the same run gives the same bytes
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#eceff1",
}
Rows = Sequence[dict[str, float]]


def curve_points(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one metric where it is finite."""
    pairs = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def thin(xs: Sequence[float], ys: Sequence[float], points: int = POINTS) -> tuple[list[float], list[float]]:
    """Means over equal bins, at most `points` of them; the same values when there are no more than that."""
    if len(xs) <= points:
        return list(xs), list(ys)
    edges = [round(i * len(xs) / points) for i in range(points + 1)]
    bins = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]
    return [sum(xs[a:b]) / (b - a) for a, b in bins], [sum(ys[a:b]) / (b - a) for a, b in bins]


def smooth(ys: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values (fewer at the beginning)."""
    out, total = [], 0.0
    for i, y in enumerate(ys):
        total += y - (ys[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


def parts(rows: Rows) -> list[str]:
    """Loss names in order of appearance: "loss" first, then "loss/PART" where there are at least two parts."""
    names = list(dict.fromkeys(name for row in rows for name in row if name == "loss" or name.startswith("loss/")))
    named = [name for name in names if name != "loss"]
    return [name for name in names if name == "loss"] + (named if len(named) > 1 else [])


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg"):]


def _axes(panels: int, *, width: float = 10.0, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Panels of one size whatever their number: two a row, or three where that fills the rows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = 3 if panels in (3, 5, 6) else min(panels, 2)
    rows = -(-panels // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, rows * height), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.set_axis_off()
    return figure, axes[:panels]


def _curve(axis: Axes, rows: Rows, name: str, colour: str, *, label: str | None = None, scale: float = 1.0,
           style: str = "-") -> None:
    """label: may hold a format of the curve's last (smoothed) value."""
    xs, ys = thin(*curve_points(rows, name))
    ys = [scale * y for y in ys]
    window = max(1, len(ys) // 40)
    if window > 1:
        axis.plot(xs, ys, color=colour, alpha=0.25, linewidth=0.8)
    marker = "o" if len(xs) < 30 else None
    line = smooth(ys, window)
    axis.plot(xs, line, color=colour, linewidth=1.8, linestyle=style, marker=marker, markersize=3,
              label=label and label.format(line[-1] if line else math.nan))
    axis.set_xlabel("step")


def losses(rows: Rows, measures: Mapping[str, Measure]) -> str:
    """One panel per loss beside its blind value (dashed): a loss near that line has learnt nothing."""
    names = parts(rows)
    figure, axes = _axes(len(names))
    for axis, name in zip(axes, names, strict=True):
        _curve(axis, rows, name, BLUE, label="loss")
        blind, measure = name.replace("loss", "blind", 1), measures.get(name, Measure("", "blind"))
        if curve_points(rows, blind)[0]:
            _curve(axis, rows, blind, ORANGE, style="--", label=f"{measure.blind} {{:.2f}}")
        axis.set_title("total loss" if name == "loss" else name.removeprefix("loss/"), fontsize=10, loc="left")
        axis.set_ylim(bottom=0)
        axis.set_ylabel(measure.unit)
        axis.legend(frameon=False, fontsize=9)
    return _svg(figure)


def probed(rows: Rows) -> list[str]:
    """Names of the online probes, in order of appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row if name.startswith("probe/")))
    return [name for name in names if curve_points(rows, name)[0]]


def probes(rows: Rows, measures: Mapping[str, Measure]) -> str:
    """The online probes, one panel each."""
    names = probed(rows)
    figure, axes = _axes(len(names))
    for axis, name in zip(axes, names, strict=True):
        unit = measures[name].unit if name in measures else ""
        _curve(axis, rows, name, GREEN, scale=100.0 if unit == SHARE else 1.0)
        rest = name.removeprefix("probe/")
        axis.set_title(f"{rest} ({'%' if unit == SHARE else unit})", fontsize=10, loc="left")
    return _svg(figure)


def health(rows: Rows) -> str:
    """What is looked at, one panel each: every measure of health from 0 (collapsed) to 1."""
    names = list(named_health(rows))
    figure, axes = _axes(len(names))
    colours = dict(zip(SCALE, (BLUE, GREEN, ORANGE, INK, GREY), strict=True))
    for axis, name in zip(axes, names, strict=True):
        for scale, colour in colours.items():
            if curve_points(rows, f"{HEALTH}{name}/{scale}")[0]:
                _curve(axis, rows, f"{HEALTH}{name}/{scale}", colour, label=scale)
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_ylim(0, 1.05)
        axis.legend(frameon=False, fontsize=8)
    return _svg(figure)


def spreads(rows: Rows) -> str:
    """How different samples are in what must not collapse, one line each."""
    figure, (axis,) = _axes(1)
    names = sorted({name for row in rows for name in row if name.startswith("spread/")})
    for name, colour in zip(names, itertools.cycle((BLUE, ORANGE, GREEN, GREY)), strict=False):
        _curve(axis, rows, name, colour, label=name.removeprefix("spread/"))
    axis.set_title("spread (0 = collapsed, 1 = as different as can be)", fontsize=10, loc="left")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize=9)
    return _svg(figure)


BALANCE = {
    "weight": "weight of each part",
    "gradient": "norm of its weighted gradient by what is shared",
    "conflict": "cosine between two gradients (below 0 they conflict)",
}


def balanced(rows: Rows) -> list[str]:
    """Which of `BALANCE` a joint run has recorded."""
    names = {name for row in rows for name in row}
    return [kind for kind in BALANCE if any(name.startswith(f"stats/{kind}.") for name in names)]


def balance(rows: Rows) -> str:
    """How the parts of a joint task share weights: a panel each of `balanced`, a line a part or pair of parts."""
    kinds = balanced(rows)
    figure, axes = _axes(len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        names = list(dict.fromkeys(name for row in rows for name in row if name.startswith(f"stats/{kind}.")))
        for name, colour in zip(names, itertools.cycle((BLUE, ORANGE, GREEN, INK, GREY)), strict=False):
            parts_of = name.removeprefix(f"stats/{kind}.").replace(".", " and ")
            _curve(axis, rows, name, colour, label=f"{parts_of} {{:.2f}}")
        axis.set_title(BALANCE[kind], fontsize=10, loc="left")
        if kind == "conflict":
            axis.set_ylim(-1.05, 1.05)
        else:
            axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize=8)
    return _svg(figure)


def speed(rows: Rows) -> str:
    """Throughput, and the shares of time that are not the model's."""
    figure, axes = _axes(2)
    _curve(axes[0], rows, "speed/samples_per_s", BLUE)
    axes[0].set_title("samples per second", fontsize=10, loc="left")
    axes[0].set_ylim(bottom=0)
    for name, colour, label in (("speed/data_wait", ORANGE, "data wait"),
                                ("speed/driver_overhead", GREEN, "driver overhead")):
        if curve_points(rows, name)[0]:
            _curve(axes[1], rows, name, colour, label=label, scale=100.0)
    axes[1].set_title("share of each step (%)", fontsize=10, loc="left")
    axes[1].set_ylim(bottom=0)
    if axes[1].lines:
        axes[1].legend(frameon=False, fontsize=9)
    return _svg(figure)


def scores(tasks: Sequence[dict]) -> str:
    """One line per task that is judged by shares: the trained network's among those of its baselines, in percent."""
    markers = (("majority", INK, "|", "majority class"), ("random_net", ORANGE, "s", "random network"),
               ("raw", INK, "D", "raw input"), ("trained", BLUE, "o", "trained network"))
    figure, (axis,) = _axes(1, height=0.9 + 0.42 * len(tasks))
    for y, task in enumerate(reversed(tasks)):
        shown = [100 * task[key] for key, *_ in markers if task.get(key) is not None]
        axis.plot([min(shown), max(shown)], [y, y], color="#dadce0", linewidth=3, zorder=1)
    for key, colour, marker, label in markers:
        points = [(100 * t[key], y) for y, t in enumerate(reversed(tasks)) if t.get(key) is not None]
        if points:
            axis.scatter([p[0] for p in points], [p[1] for p in points], color=colour, marker=marker, s=46, zorder=2,
                         label=label)
    axis.set_yticks(range(len(tasks)), [t["title"] for t in reversed(tasks)])
    axis.set_ylim(-0.6, len(tasks) - 0.4)
    axis.set_xlim(left=0)
    axis.set_xlabel("accuracy (%)")
    axis.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return _svg(figure)


def curves(tasks: Sequence[dict[str, Any]]) -> str:
    """The few-label curve of each row that has one: means over the seeds with a band of a standard deviation."""
    figure, axes = _axes(len(tasks), height=3.2)
    for axis, task in zip(axes, tasks, strict=True):
        scale = 100.0 if task["unit"] == SHARE else 1.0
        for name, colour, marker in (("trained", BLUE, "o"), ("random_net", ORANGE, "s"), ("raw", INK, "D")):
            points = [(p["samples"], scale * p["means"][name], scale * (p["stds"][name] or 0.0))
                      for p in task["curve"] if name in p["means"]]  # fmt: skip
            if points:
                xs, ys, stds = zip(*points, strict=True)
                axis.plot(xs, ys, color=colour, marker=marker, markersize=4, linewidth=1.8, label=CURVE[name])
                low, high = ([y + sign * std for y, std in zip(ys, stds, strict=True)] for sign in (-1, 1))
                axis.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_xscale("log")
        sizes = [point["samples"] for point in task["curve"]]
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("samples with labels")
        axis.set_ylabel("%" if task["unit"] == SHARE else task["unit"])
        axis.set_title("\n".join(textwrap.wrap(task["title"], 46)), fontsize=10, loc="left")
        axis.legend(frameon=False, fontsize=9)
    return _svg(figure)
