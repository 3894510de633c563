"""What every recipe of launch/recipes promises: its page says what to expect, its numbers fit together as they stand,
any override works, and its first loss is the same on one rank and on two."""

from __future__ import annotations

import atexit
import io
import re
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bigssl import distributed
from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.data.loading.loader import MicroBatches
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine import zero
from bigssl.engine.constraints import check_constraints
from bigssl.engine.groups import check_groups
from bigssl.engine.plan import preflight
from bigssl.engine.plan.activations import OnPaper
from bigssl.engine.plan.evaluation import check_evaluation
from bigssl.engine.plan.sources import split_batch
from bigssl.engine.stepping.split import check_cached, check_passes
from bigssl.nets.build import postponed, refuse_derived
from bigssl.nets.progress import Progress
from bigssl.objectives.base import config_union, exported_heads
from bigssl.transfer.discovery import evaluation_union

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "launch" / "recipes").rglob("*.yaml"))
LAPTOP = [path for path in RECIPES if path.parent.name in ("recipes", "cpu")]
MODEL = recipe_model(config_union(), evaluation_union())
SMALL = ["precision=fp32", "data.workers=0", "batch={size: 8}", "steps=2", "optim.warmup=0.5"]
DEMO = {"label": "category", "item": "code"}  # what fills words of a recipe; all others are folders
PLANS: dict[str, preflight.Plan] = {}  # by recipe: made once, before ranks are forked
FIRST: dict[str, list[Any]] = {}  # by recipe: its first loss in one process, and each rank's share; or why not

# a loss beside its blind line, and a score beside it, of which the words vary
BLIND = re.compile(r"blind line[^;]*\d|\([^)]*: [^)]*\d[^)]*\)")
SCORE = re.compile(r"(kNN|[Ll]inear)[\w ]*? (\d+\.\d+ %|\.\d+)|never trained on[^:]*: \d\.\d+ nats \(.*n-grams \d\.\d+")

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def filled(path: Path) -> str:
    """The override by which a recipe reads the demo, whatever its words; those of a laptop do as they stand."""
    recipe = yaml.safe_load(path.read_text())
    words, hears = recipe.get("fill", {}), any("rate" in backbone for backbone in recipe["backbones"].values())
    own = DEMO | ({"series": made_series()} if "series" in words else {})
    root = "bigssl/demo/speech" if hears else "bigssl/demo/emoji"
    values = words if path in LAPTOP else {word: own.get(word, root) for word in words}
    return f"fill={yaml.safe_dump(values, default_flow_style=True).strip()}"


@cache
def made_series() -> str:
    """A folder of shards as recipes of long series take them: seven channels, which no series of the demo has."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    for number, part in enumerate(("train", "val")):
        out = io.BytesIO()
        np.save(out, np.random.default_rng(number).standard_normal((1500, 7)).cumsum(0))
        fields = {"npy": out.getvalue()}
        pack([Item("hours", part, partial(dict, fields))], folder / part, name=part)
    return str(folder)


def head(path: Path) -> dict[str, str]:
    """What the comment at the top of a recipe says, by its words."""
    lines = path.read_text().splitlines()
    top = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    text = " ".join(line.removeprefix("#").strip() for line in top)
    parts = re.split(r"(?:^| )(Command|Time|Expect|Memory): ", text)
    assert parts[0] == "" and parts[1:6:2] == ["Command", "Time", "Expect"], top
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@each_recipe
def test_a_recipe_begins_with_command_time_and_expectation(path: Path) -> None:
    """On a laptop: minutes or seconds; a loss beside its blind line, and a score."""
    said = head(path)
    assert re.match(rf"bigssl train {re.escape(str(path.relative_to(ROOT)))}( |$)", said["Command"])
    assert any(c.isdigit() for c in said["Time"])
    if path.parent.name != "cpu":
        assert "demo" in path.stem or re.search(r"\d", said["Expect"]), said["Expect"]
        return
    assert re.search(r"\d+ (CPU )?(s|seconds|minutes)\b", said["Time"]), said["Time"]
    assert "loss" in said["Expect"] or "reconstruction" in said["Expect"]
    assert BLIND.search(said["Expect"]), said["Expect"]
    assert SCORE.search(said["Expect"]), said["Expect"]


@each_recipe
def test_the_numbers_of_a_recipe_fit_together_as_they_stand(path: Path) -> None:
    """Of batch, passes, queue, groups and evaluations, on one rank and more, with networks that have shapes only: all
    that a run would be refused for, but for its data, which of large recipes are not here."""
    recipe = load_recipe(path, [filled(path)], MODEL)
    if path.parent.name != "recipes":
        load_recipe(path, [filled(path), "steps=2"], MODEL)  # warm-up is a share of any number
    zero.check_zero(recipe)
    paper = OnPaper(recipe)
    check_groups(paper.objective, recipe)
    check_constraints(paper.objective)
    check_evaluation(recipe, preflight.evaluated_towers(paper.objective, paper.towers), exported_heads(paper.objective))
    sizes = preflight.batch_sizes(recipe, paper.objective)
    check_cached(recipe, paper.objective)
    for world in (1, 2, 4 if path in LAPTOP else 8):
        _, accum = split_batch(recipe, world)
        check_passes(recipe, paper.objective, sizes, accum)


@pytest.mark.parametrize("path", LAPTOP, ids=lambda p: p.stem)
def test_a_laptop_recipe_takes_any_stage_and_precision(path: Path) -> None:
    """Its networks at ZeRO-3, where they have no numbers while the task is built."""
    whole = load_recipe(path, [], MODEL)
    recipe = load_recipe(path, ["zero.stage=3", "optim.warmup=1", "steps=3", "precision=bf16"], MODEL)
    assert (recipe.batch, recipe.objective) == (whole.batch, whole.objective)
    zero.check_zero(recipe)
    with postponed(main=True):
        objective, _ = preflight.build_networks(recipe)
    refuse_derived(objective)
    check_groups(objective, recipe)


@pytest.mark.parametrize("path", LAPTOP, ids=lambda p: p.stem)
def test_the_first_loss_of_a_laptop_recipe_is_one_on_one_and_two_ranks(path: Path, first: dict[str, list[Any]]) -> None:
    alone, *shares = first[path.stem]
    assert isinstance(alone, float), alone
    assert sum(shares) / 2 == pytest.approx(alone, rel=1e-4)


@pytest.fixture
def first(tmp_path: Path, ranks: Any) -> dict[str, list[Any]]:
    """Of all laptop recipes, made when the first is asked for: processes start once."""
    if not FIRST:
        for path in LAPTOP:
            try:
                PLANS[path.stem] = preflight.plan(small(path, f"out={tmp_path / path.stem}"), 1)
            except Exception as error:  # of this recipe alone
                FIRST[path.stem] = [error]
        shares = ranks(first_losses, 2)  # before a pass here changes what the first is made with: queues, frequencies
        for name, value in first_losses().items():
            FIRST[name] = [value, *(share[name] for share in shares)]
        PLANS.clear()
    return FIRST


def small(path: Path, *overrides: str) -> Recipe:
    """The recipe for two steps; sources with a batch of their own get a small one, too."""
    whole = load_recipe(path, [], MODEL)
    own = [f"data.sources.{name}.batch=8" for name, source in whole.data.sources.items() if source.batch]
    return load_recipe(path, [*SMALL, *own, *overrides], MODEL)


def first_losses() -> dict[str, Any]:
    """Of each plan, this rank's share of the first pass; of one that fails, why."""
    if preflight.announced_world() > 1:
        zero.start()
    return {name: first_loss(plan) for name, plan in PLANS.items()}


def first_loss(plan: preflight.Plan) -> Any:
    try:
        loader = MicroBatches(plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, 0,
                              distributed.rank(), distributed.world(), 1)  # fmt: skip
        batch = loader[0]
        assert not isinstance(batch, Exception), batch
        return plan.objective(batch.data, Progress(0, 2)).total.item()
    except Exception as error:  # before or after the collectives of the pass, which are alike on both ranks
        return repr(error)
