"""Recipes with a published number have the settings it was reached with, where their pages do not say otherwise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.kinds.views import TwoViews
from bigssl.engine.groups import treatments
from bigssl.engine.plan.activations import OnPaper
from bigssl.objectives.base import config_union, discover
from bigssl.transfer.discovery import evaluation_union

FOLDER = Path(__file__).parents[1] / "launch" / "recipes" / "gpu"
MODEL = recipe_model(config_union(), evaluation_union())
HALF = {"jitter": 0.5, "saturation": 0.4}  # .4, .4, .2, .1
# of both views, from solo-learn's files for CIFAR-10, and appendix D of arXiv 2011.10566
VIEWS: dict[str, list[dict[str, float]]] = {
    "simclr": [{"min_scale": 0.08, "jitter": 1.0, "saturation": 0.8, "blur": 0.5}] * 2,
    "byol": [HALF | {"min_scale": 0.08, "blur": 0, "solarise": share} for share in (0, 0.2)],
    "barlow_twins": [HALF | {"min_scale": 0.08, "blur": 0, "solarise": share} for share in (0, 0.2)],
    "vicreg": [HALF | {"min_scale": 0.2, "blur": 0, "solarise": 0.1}] * 2,
    "simsiam": [{"min_scale": 0.2, "jitter": 0.5, "saturation": 0.8, "blur": 0}] * 2,
}
OWN: dict[str, Any] = {"byol": "byol", "barlow_twins": "byol", "vicreg": "byol", "simsiam": "moco-v2"}


def loaded(path: Path, *overrides: str) -> Any:
    return load_recipe(path, overrides, MODEL)


@pytest.mark.parametrize("name", VIEWS)
def test_views_on_cifar10_are_those_of_the_number(name: str) -> None:
    section = loaded(FOLDER / f"{name}-cifar10.yaml").objective
    found = TwoViews(section.augment, 32, OWN.get(name, "simclr")).distributions
    assert [vars(each) for each in found] == [vars(SimClrAugment(32, **each)) for each in VIEWS[name]]  # type: ignore[arg-type]


def test_a_neighbourhood_that_is_quoted_is_the_one_that_is_measured_and_any_length_is_taken() -> None:
    """`k = 200` of a page; a warm-up as a share of the steps."""
    for path in sorted(FOLDER.glob("*.yaml")):
        recipe, head = loaded(path, "steps=10"), path.read_text().partition("name:")[0]
        assert recipe.optim.warmup < 1, path.name
        quoted = set(map(int, re.findall(r"\bk = (\d+)", re.sub(r"\n# +", " ", head))))
        sections = [*recipe.evaluate.values(), *(recipe.probe.sections.values() if recipe.probe else [])]
        found = {each.k for each in sections if each.task == "knn"}
        assert not quoted or found == quoted, path.name


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_captioned_pictures_are_trained_on_and_labelled_ones_judged(name: str) -> None:
    recipe = loaded(FOLDER / f"{name}-cc3m.yaml", "fill={root: R, judged: J, label: label, item: null}")
    of = recipe.evaluate
    assert recipe.data.sources["pictures"].url == "R/train" and of["retrieval"].queries == "R/val"
    judged = (of["linear"].train, of["linear"].queries, of["names"].queries, of["names"].captions)
    assert judged == ("J/train", "J/val", "J/val", "J/train")


def test_biases_and_norms_of_barlow_twins_have_the_rate_of_the_paper() -> None:
    """.0048 beside .2 of the others."""
    recipe = loaded(FOLDER / "barlow_twins-imagenet.yaml")
    for parameter, treatment in treatments(OnPaper(recipe).objective, recipe.optim).items():
        rate = 1.6 * treatment.factor * 256 / 2048
        assert rate == pytest.approx(0.0048 if parameter.dim() == 1 else 0.2)


def test_the_networks_are_those_of_the_papers() -> None:
    mocov3, simsiam = loaded(FOLDER / "mocov3-imagenet.yaml"), loaded(FOLDER / "simsiam-cifar10.yaml")
    assert mocov3.backbones["image"].config["num_attention_heads"] == 12
    assert simsiam.objective.layers == 2 and loaded(FOLDER / "simsiam-imagenet.yaml").objective.layers == 3
    with_number = {path.stem.partition("-")[0].replace("mocov3", "moco") for path in FOLDER.glob("*-imagenet.yaml")}
    assert {"simsiam", "lejepa", *OWN, "simclr", "moco", "swav", "dino", "ibot", "mae"} <= with_number <= {*discover()}
