"""What every recipe of launch/recipes promises: its page says what to expect, any override works, and its first loss is
the same on one rank and on two."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bigssl import distributed
from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.data.loading.loader import MicroBatches
from bigssl.engine import zero
from bigssl.engine.plan import preflight
from bigssl.engine.plan.activations import OnPaper
from bigssl.engine.plan.evaluation import check_evaluation
from bigssl.nets.progress import Progress
from bigssl.objectives.base import config_union, exported_heads
from bigssl.transfer.discovery import evaluation_union

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "launch" / "recipes").rglob("*.yaml"))
LAPTOP = [path for path in RECIPES if path.parent.name in ("recipes", "cpu")]
LARGE = [path for path in RECIPES if path not in LAPTOP]
MODEL = recipe_model(config_union(), evaluation_union())
SMALL = ["precision=fp32", "data.workers=0", "batch={size: 16}", "steps=2"]
PLANS: dict[str, preflight.Plan] = {}  # by recipe: made once, before ranks are forked


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def small(path: Path, *overrides: str) -> Recipe:
    """The recipe for two steps; sources with a batch of their own get a small one, too."""
    whole = load_recipe(path, [], MODEL)
    own = [f"data.sources.{name}.batch=16" for name, source in whole.data.sources.items() if source.batch]
    short = "optim.warmup=0" if whole.optim.warmup >= 1 else "optim.warmup=0.5"
    return load_recipe(path, [*SMALL, *own, short, *overrides], MODEL)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_recipe_begins_with_command_time_and_expectation(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert re.match(rf"# Command: .*{re.escape(str(path.relative_to(ROOT)))}( |$)", lines[0]), lines[0]
    assert lines[1].startswith("# Time: ") and any(c.isdigit() for c in lines[1])
    assert lines[2].startswith("# Expect: ") and any(c.isdigit() for line in lines[2:8] for c in line)


def test_every_laptop_recipe_takes_overrides_and_has_one_first_loss_on_one_and_two_ranks(
    tmp_path: Path, ranks: Any
) -> None:
    for path in LAPTOP:
        place = f"out={tmp_path / path.stem}"
        PLANS[path.stem] = preflight.plan(small(path, place), 1)
        load_recipe(path, ["zero.stage=3", "optim.warmup=1", "steps=3", "precision=bf16"], MODEL)
    shares = ranks(first_losses, 2)  # before a pass here changes what the first is made with: queues, frequencies
    alone = first_losses()
    PLANS.clear()
    for name, value in alone.items():
        together = sum(share[name] for share in shares) / 2
        assert together == pytest.approx(value, rel=1e-4), name


def first_losses() -> dict[str, float]:
    """Of each plan, this rank's share of the first pass."""
    if preflight.announced_world() > 1:
        zero.start()
    found = {}
    for name, plan in PLANS.items():
        loader = MicroBatches(plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, 0,
                              distributed.rank(), distributed.world(), 1)  # fmt: skip
        batch = loader[0]
        assert not isinstance(batch, Exception), batch
        found[name] = plan.objective(batch.data, Progress(0, 2)).total.item()
    return found


@pytest.mark.parametrize("path", LARGE, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_large_recipe_is_right_on_paper(path: Path) -> None:
    """Its networks, objective and evaluations fit together; its data is not here."""
    recipe = load_recipe(path, ["fill={root: bigssl/demo/emoji, label: category, item: code}"], MODEL)
    paper = OnPaper(recipe)
    towers = preflight.evaluated_towers(paper.objective, paper.towers)
    check_evaluation(recipe, towers, exported_heads(paper.objective))
