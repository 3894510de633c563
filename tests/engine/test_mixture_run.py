"""A run on mixtures: it learns, is the same on two ranks, and goes on after a stop as if there had been none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import SourceConfig, dump_recipe
from bigssl.engine.plan import preflight
from bigssl.engine.plan.sources import source_order

DEMO = Path(__file__).parents[2] / "bigssl" / "demo"
MIXED = {
    "workers": 1,
    "sources": {
        "emoji": {
            "mix": {
                "train": {"url": str(DEMO / "emoji" / "train"), "weight": 2},
                "val": {"url": str(DEMO / "emoji" / "val"), "weight": 1},
            }
        },
        "text": {
            "batch": 4,
            "mix": {
                "prose": {"url": str(DEMO / "text" / "train"), "weight": 0.7},
                "captions": {"url": str(DEMO / "emoji" / "train"), "weight": 0.3},
            },
        },
    },
}


def losses(curve: Any, folder: Path) -> list[float]:
    return [row["loss"] for row in curve(folder)]


@pytest.mark.distributed
def test_a_joint_run_on_mixtures_is_one_run_whatever_the_world(
    recipe: Any, joint: Any, train: Any, curve: Any, ranks: Any, tmp_path: Path
) -> None:
    changes = joint | {"data": MIXED, "optim": {"lr": 0.002, "schedule": "constant"}}
    ranks(train, 1, recipe(tmp_path / "one", steps=4, **changes))
    ranks(train, 1, recipe(tmp_path / "one", steps=6, **changes))
    whole = losses(curve, tmp_path / "one")
    assert len(whole) == 6
    ranks(train, 2, recipe(tmp_path / "two", steps=6, **changes))
    assert losses(curve, tmp_path / "two") == pytest.approx(whole, rel=1e-4)


@pytest.mark.distributed
def test_a_mixture_is_learned_from(recipe: Any, joint: Any, train: Any, curve: Any, ranks: Any, tmp_path: Path) -> None:
    text = {"objective": {"name": "mlm", "source": "text"}, "backbones": {"text": joint["backbones"]["text"]}}
    optim = {"lr": 0.02, "schedule": "constant"}
    data = MIXED | {"sources": {"text": MIXED["sources"]["text"]}}  # type: ignore[index]
    ranks(train, 1, recipe(tmp_path / "run", steps=30, **text, data=data, optim=optim, checkpoint={"every": 100}))
    found = losses(curve, tmp_path / "run")
    assert sum(found[-5:]) / 5 < found[0] - 1


def test_other_weights_are_another_run(recipe: Any, joint: Any, tmp_path: Path) -> None:
    first = recipe(tmp_path, **joint | {"data": MIXED})
    (tmp_path / "config.yaml").write_text(dump_recipe(first))
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    sources = MIXED["sources"] | {"text": {"url": str(DEMO / "text" / "train"), "batch": 4}}  # type: ignore[operator]
    with pytest.raises(ConfigError, match="data.sources.text.mix.prose.weight: 0.7 before, None now"):
        preflight.plan(recipe(tmp_path, **joint | {"data": {"workers": 1, "sources": sources}}), 1)


@pytest.mark.parametrize(("power", "train"), [(0.0, 1.0), (0.5, (3078 / 734) ** 0.5), (1.0, 3078 / 734)])
def test_weights_follow_sizes_to_a_power(recipe: Any, joint: Any, power: float, train: float) -> None:
    """Against the numbers of samples of the two datasets; weights of 1 may be left out."""
    mixed = {name: {"url": str(DEMO / "emoji" / name)} for name in ("train", "val")}
    sources = {"emoji": {"mix": mixed, "power": power}, "text": {"url": str(DEMO / "text" / "train"), "batch": 4}}
    made = recipe(**{**joint, "data": {"workers": 1, "sources": sources}})
    order = source_order(made, "emoji", 16, 1)
    first, second = order.schedule.weights
    assert [len(stream) for stream in order.parts.values()] == [3078, 734]
    assert first / second == pytest.approx(train, rel=1e-5)
    with pytest.raises(ValueError, match="power 0.5 has no effect with url"):
        SourceConfig(url="x", power=0.5)
