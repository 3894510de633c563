"""`bigssl ablate`: what training tasks together has gained or cost, against each of them trained alone."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cyclopts.types import PositiveInt

from bigssl import exits
from bigssl.cli.recipes import model
from bigssl.cli.train import train
from bigssl.config.errors import ConfigError
from bigssl.config.optim import NOT_DECAYED
from bigssl.config.recipe import Recipe, dump_recipe, load_recipe
from bigssl.files import write_atomic
from bigssl.report.metrics import read_metrics
from bigssl.report.values import shown

if TYPE_CHECKING:
    from torch import nn

    from bigssl.engine.plan.activations import OnPaper

TOGETHER = "joint"
LAST = 10  # records of the metrics whose mean is the loss that a run ended with


def ablate(
    recipe: Path, /, *overrides: str, parts: bool = False, seeds: PositiveInt = 1, ranks: PositiveInt | None = None,
    out: Path | None = None,
) -> int:  # fmt: skip
    """Trains a joint recipe, and each of its parts alone: the same network, samples a step, steps and optimizer. Then
    prints, for each evaluation and each loss, the numbers beside each other, and writes them to ablation.json. The same
    command goes on where it was stopped.

    Args:
        recipe: YAML whose objective is joint
        overrides: recipe fields to change, a.b=c
        parts: take the parts of the objective apart
        seeds: repeat all with as many seeds, from that of the recipe on
        ranks: processes of each run, as of `bigssl train`
        out: folder of all runs (default: ablation-NAME beside that of the recipe)
    """
    if not parts:
        raise ConfigError("ablate: nothing is named that is to be taken apart; allowed: --parts")
    whole = load_recipe(recipe, list(overrides), model())
    folder = out or whole.folder.parent / f"ablation-{whole.name}"
    runs = list[Trained]()
    for seed in range(whole.seed, whole.seed + seeds):
        for part, values in variants(whole).items():
            made = Trained(part, seed, folder / f"{part}-{seed}")
            if code := _trained(made, values, ranks):
                return code
            runs.append(made)
    found = {"recipe": str(recipe), "steps": whole.steps, "seeds": seeds, **compared(runs)}
    write_atomic(folder / "ablation.json", json.dumps(found, indent=1).encode())
    print("\n".join(told(found)))
    print(f"written to {folder}/ablation.json; runs are beside it")
    return exits.DONE


@dataclass(frozen=True)
class Trained:
    """part: `TOGETHER`, or the name of one."""

    part: str
    seed: int
    folder: Path

    def done(self, steps: int, judged: bool) -> bool:
        """Whether it was trained to its end, exported and judged."""
        rows = read_metrics(self.folder)
        card = self.folder / "scorecard.json"
        return bool(rows) and rows[-1]["step"] == steps and (self.folder / "export").is_dir() and (
            not judged or card.is_file())  # fmt: skip

    def scores(self) -> dict[str, dict[str, Any]]:
        """Rows of its scorecard; none where it evaluates nothing."""
        card = self.folder / "scorecard.json"
        rows: dict[str, dict[str, Any]] = json.loads(card.read_text())["tasks"] if card.is_file() else {}
        return rows

    def losses(self) -> dict[str, tuple[float, float]]:
        """(loss, blind) of each part at the end."""
        rows = read_metrics(self.folder)[-LAST:]
        names = [name.removeprefix("loss/") for name in rows[-1] if name.startswith("loss/")]
        return {
            name: (statistics.fmean(row[f"loss/{name}"] for row in rows),
                   statistics.fmean(row[f"blind/{name}"] for row in rows))
            for name in names
        }  # fmt: skip


def variants(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The recipe as it is, and one for each part, by name: with what that part reads, trains and can be judged by.

    Raises ConfigError where there is nothing to compare.
    """
    values: dict[str, Any] = yaml.safe_load(dump_recipe(recipe))
    objective = values["objective"]
    if objective["name"] != "joint" or len(objective["parts"]) < 2:
        raise ConfigError(f"objective.name: value {objective['name']!r}; allowed: joint, with two parts or more")
    if TOGETHER in objective["parts"]:
        raise ConfigError(f"objective.parts.{TOGETHER}: the name of all of them together; allowed: another name")
    for part, own in objective["parts"].items():
        if own["weight"] == 0:
            raise ConfigError(f"objective.parts.{part}.weight: value 0, so that alone it would train nothing; allowed: "
                              "> 0, or a recipe without this part")  # fmt: skip
    return {TOGETHER: values} | {part: _alone(values, part) for part in objective["parts"]}


def _alone(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    from bigssl.objectives.base import discover

    own = {name: value for name, value in values["objective"]["parts"][part].items() if name != "shares"}
    bodies = {own[field] for field in discover()[own["name"]].takes}
    objective = values["objective"] | {"parts": {part: own}, "balance": None, "watch": 0}
    made = dict(values) | {
        "objective": objective,
        "backbones": {name: body for name, body in values["backbones"].items() if name in bodies},
        "data": values["data"] | {"sources": {own["source"]: values["data"]["sources"][own["source"]]}},
        "evaluate": None, "probe": None,
    }  # fmt: skip
    from bigssl.engine.plan.activations import OnPaper

    networks = OnPaper(model().model_validate(made))
    return made | {"optim": _of_these(values["optim"], networks.objective),
                   "evaluate": _served(made, values["evaluate"] or {}, networks) or None}  # fmt: skip


def _of_these(optim: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """Settings of the optimizer without patterns that are about parameters of other parts."""
    from bigssl.engine.groups import trained_names

    names = [name for spellings in trained_names(module).values() for name in spellings]

    def here(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    return dict(optim) | {"groups": [group for group in optim["groups"] if here(group["pattern"])],
                          "no_decay": [each for each in optim["no_decay"] if each in NOT_DECAYED or here(each)]}


def _served(values: Mapping[str, Any], evaluate: Mapping[str, Any], networks: OnPaper) -> dict[str, Any]:
    """Those evaluations for which there are networks and heads."""
    from bigssl.engine.plan.evaluation import check_evaluation
    from bigssl.engine.plan.preflight import evaluated_towers
    from bigssl.objectives.base import exported_heads

    towers, heads = evaluated_towers(networks.objective, networks.towers), exported_heads(networks.objective)
    served = {}
    for name, section in evaluate.items():
        try:
            check_evaluation(model().model_validate({**values, "evaluate": {name: section}}), towers, heads)
        except ConfigError:
            continue  # it asks for what other parts train; the table has no number there
        served[name] = section
    return served


def _trained(run: Trained, values: Mapping[str, Any], ranks: int | None) -> int:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    named = {**values, "name": run.folder.name, "out": str(run.folder), "seed": run.seed}
    file, text = run.folder.with_suffix(".yaml"), yaml.safe_dump(named, sort_keys=False).encode()
    if file.is_file() and file.read_bytes() == text and run.done(values["steps"], bool(values["evaluate"])):
        print(f"{run.part}, seed {run.seed}: {run.folder} is there", flush=True)
        return exits.DONE
    before, code = file.read_bytes() if file.is_file() else None, None
    write_atomic(file, text)
    print(f"{run.part}, seed {run.seed}: {run.folder}", flush=True)
    try:
        code = train(file, ranks=ranks)
    finally:
        if code != exits.DONE and before is not None:  # else a run of another recipe would be taken for one of this
            write_atomic(file, before)
    return code


def compared(runs: Sequence[Trained]) -> dict[str, Any]:
    """`evaluations` and `losses`, each by name a row: of each part (and of all together) mean, standard deviation over
    seeds and standard error; `gain`, how much better the joint run is than the best that was trained alone."""
    cards = [(run.part, run.scores()) for run in runs]
    evaluations = {}
    for name in cards[0][1]:
        rows = [(part, card[name]) for part, card in cards if name in card]
        first = rows[0][1]
        numbers = {part: [(row["trained"], row["stderr"]) for other, row in rows if other == part] for part, _ in rows}
        baseline = {"random_net": first["random_net"], "raw": first["raw"]}
        evaluations[name] = _row(numbers, first["unit"], first["higher_is_better"]) | baseline
    ended = [(run.part, run.losses()) for run in runs]
    losses = {}
    for name, (_, blind) in ended[0][1].items():
        owner = name.partition("/")[0]  # of "holes/discriminator", holes
        numbers = {part: [(own[name][0], None) for other, own in ended if other == part and name in own]
                   for part in (TOGETHER, owner)}  # fmt: skip
        losses[name] = _row(numbers, "", False) | {"blind": blind}
    return {"evaluations": evaluations, "losses": losses}


def _row(numbers: Mapping[str, Sequence[tuple[float, float | None]]], unit: str, higher: bool) -> dict[str, Any]:
    means = {part: statistics.fmean(value for value, _ in each) for part, each in numbers.items()}
    errors = {part: _error(each) for part, each in numbers.items()}
    alone = {part: mean for part, mean in means.items() if part != TOGETHER}
    row: dict[str, Any] = {"unit": unit, "higher_is_better": higher, "means": means, "stderrs": errors}
    if not alone:
        return row | {"best_alone": None, "gain": None, "gain_stderr": None}
    best = (max if higher else min)(alone, key=lambda part: alone[part])
    both = [error for part in (TOGETHER, best) if (error := errors[part]) is not None]
    difference = means[TOGETHER] - means[best]
    return row | {"best_alone": best, "gain": difference if higher else -difference,
                  "gain_stderr": math.hypot(*both) if len(both) == 2 else None}  # fmt: skip


def _error(each: Sequence[tuple[float, float | None]]) -> float | None:
    """Of a mean over seeds; of one seed, that over the queries, where it is known."""
    if len(each) > 1:
        return statistics.stdev(value for value, _ in each) / math.sqrt(len(each))
    return each[0][1]


def told(found: Mapping[str, Any]) -> list[str]:
    """The two tables as lines, and a sentence on each row."""
    lines = list[str]()
    for kind in ("evaluations", "losses"):
        rows = found[kind]
        names = list(dict.fromkeys(part for row in rows.values() for part in row["means"]))
        table = [({"evaluations": "evaluation", "losses": "loss"}[kind], *names, "gain of joint")]
        for name, row in rows.items():
            cells = [shown(row["means"].get(part), row["unit"]) for part in names]
            table.append((name, *cells, _gain(row)))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table] + [""] if rows else []
    return lines[:-1]


def _gain(row: Mapping[str, Any]) -> str:
    if row["gain"] is None:
        return "none alone"
    error = row["gain_stderr"]
    within = abs(row["gain"]) <= 2 * (error or 0)
    what = "no difference beyond 2 standard errors" if within else "gained" if row["gain"] > 0 else "cost"
    what = "one run each, error unknown" if error is None else what
    said = f"{row['gain'] + 0.0:+.4g}" + ("" if error is None else f" ± {error:.2g}")
    return f"{said} ({what})"
