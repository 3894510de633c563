"""`report.html`: one file that shows a run to a person, written from the files of the run folder alone."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from bigssl.files import write_atomic
from bigssl.report import environment, figures
from bigssl.report.blind import BlindVerdict, verdicts
from bigssl.report.changes import read_changes
from bigssl.report.collapses import collapses
from bigssl.report.health import SCALE, TITLES, collapse_said, health_rows, named_health, scaled_rows
from bigssl.report.metrics import Measure, read_measures, read_metrics
from bigssl.report.pictures import read_grids
from bigssl.report.values import CARD_VERSION, SHARE, raws_said, shown, with_std, with_unit

FILE = "report.html"
TEMPLATE = Path(__file__).with_name("template.html")
Rows = list[dict[str, float]]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _tiles(rows: Rows, measures: dict[str, Measure]) -> list[tuple[str, str]]:
    """The few numbers a reader wants first; medians, since the first steps compile and warm up."""
    tiles = [("steps", f"{rows[-1]['step']:.0f}")] if rows else []
    _, losses = figures.curve_points(rows, "loss")
    if losses:
        tiles.append(("final loss", f"{losses[-1]:.3f}"))
    for name in figures.probed(rows):
        if name in measures:
            last = figures.curve_points(rows, name)[1][-1]
            tiles.append((f"probe {name.removeprefix('probe/')}", with_unit(last, measures[name].unit)))
    shares = (("samples / s", "speed/samples_per_s"), ("tokens / s", "speed/tokens_per_s"),
              ("of the cards' peak", "speed/mfu"), ("data wait", "speed/data_wait"),
              ("driver overhead", "speed/driver_overhead"))
    for label, name in shares:
        _, values = figures.curve_points(rows, name)
        if values:
            tiles.append((label, f"{median(values):.0f}" if name.endswith("_per_s") else shown(median(values))))
    return tiles


def _environment(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if not facts:
        return []
    gpus = ", ".join(facts["gpus"]) or "none"
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return [("recorded", facts["time"]), ("ranks", str(facts["world"])),
            ("processor", f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB"), ("GPUs", gpus),
            ("system", f"{facts['system']}, Python {facts['python']}"), ("packages", packages)]


def _subtitle(tasks: list[dict[str, Any]], rows: Rows, learnt: list[BlindVerdict]) -> str:
    below = f"{sum(verdict.below for verdict in learnt)} of {len(learnt)} losses ended below their blind line."
    said = [below] if learnt else []
    if tasks:
        passed = sum(task["passed"] for task in tasks)
        return " ".join([f"The trained network beats every baseline in {passed} of {len(tasks)} tasks.", *said])
    return " ".join(["Trained, not evaluated yet.", *said]) if rows else "Nothing recorded yet."


def _figures(rows: Rows, measures: dict[str, Measure], tasks: list[dict[str, Any]]) -> dict[str, str]:
    has = {name for row in rows for name in row}
    return {
        "scores": figures.scores(shares) if (shares := [task for task in tasks if task["unit"] == SHARE]) else "",
        "curves": figures.curves(drawn) if (drawn := [task for task in tasks if len(task["curve"]) > 1]) else "",
        "losses": figures.losses(rows, measures) if figures.parts(rows) else "",
        "probes": figures.probes(rows, measures) if figures.probed(rows) else "",
        "health": figures.health(rows) if named_health(rows) else "",
        "spreads": figures.spreads(rows) if any(name.startswith("spread/") for name in has) else "",
        "balance": figures.balance(rows) if figures.balanced(rows) else "",
        "speed": figures.speed(rows) if "speed/samples_per_s" in has else "",
    }


def render_report(run_folder: Path, beside: Path | None = None) -> str:
    """The page of a run as HTML text; reads config.yaml, metrics.jsonl, environment.json, scorecard.json,
    changes.jsonl, started_from.json, init_from.json and pictures/*.png as present.

    beside: another folder, from which the scorecard, the recipe that made it and further pictures come.
    """
    rows = read_metrics(run_folder)
    card = _json((beside or run_folder) / "scorecard.json")
    readable = card.get("version") == CARD_VERSION
    tasks = list(card["tasks"].values()) if readable else []
    health = card["health"] if readable else {}
    recipe = (beside or run_folder) / "config.yaml"
    measures = read_measures(run_folder)
    learnt = verdicts(rows, measures)
    engine = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    engine.filters |= {"shown": shown, "with_std": with_std, "with_unit": with_unit}
    return engine.from_string(TEMPLATE.read_text()).render(
        name=run_folder.resolve().name, subtitle=_subtitle(tasks, rows, learnt), tiles=_tiles(rows, measures),
        tasks=tasks, failed=card.get("failed", {}), repeated=any(task["std"] for task in tasks),
        stale=bool(card) and not readable, learnt=learnt, notes=card.get("notes", []),
        raws=[said for task in tasks if (said := raws_said(task))],
        scale=SCALE, titles=TITLES, scaled=scaled_rows(rows),
        health=health_rows(health), collapsed=collapse_said(health), collapses=collapses(rows),
        figures=_figures(rows, measures, tasks), pictures=read_grids(run_folder, *([beside] if beside else [])),
        environment=_environment(_json(run_folder / environment.FILE)),
        began=_json(run_folder / "started_from.json"), read=_json(run_folder / "init_from.json"),
        changes=read_changes(run_folder),
        recipe=recipe.read_text() if recipe.exists() else "",
    )


def write_report(run_folder: Path, beside: Path | None = None) -> Path:
    """Writes `report.html` in the run folder (or `beside`, see `render_report`) atomically and returns its path. Needs
    no network and no other file to view."""
    path = Path(beside or run_folder) / FILE
    write_atomic(path, render_report(Path(run_folder), beside).encode())
    return path
