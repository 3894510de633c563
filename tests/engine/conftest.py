"""A tiny recipe on real shards, and runs of it in this process or on forked ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigssl.config.recipe import Recipe, recipe_model
from bigssl.engine import loop, zero
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union
from bigssl.train import live_probe
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.team import Team

DEMO = Path(__file__).parents[2] / "bigssl" / "demo"
TINY: dict[str, Any] = {
    "name": "tiny",
    "steps": 6,
    "precision": "fp32",
    "objective": {"name": "simclr", "source": "emoji", "hidden": 16, "dim": 8, "augment": {"min_scale": 0.2}},
    "backbones": {
        "image": {
            "type": "resnet",
            "size": 16,
            "config": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        }
    },
    "data": {"workers": 0, "sources": {"emoji": {"url": str(DEMO / "emoji" / "train")}}},
    "batch": {"size": 8},
    "optim": {"lr": 0.01, "warmup": 2},
    "checkpoint": {"every": 2},
}


JOINT: dict[str, Any] = {
    "objective": {
        "name": "joint",
        "parts": {
            "views": {"name": "simclr", "source": "emoji", "hidden": 16, "dim": 8, "augment": {"min_scale": 0.2}},
            "captions": {"name": "clip", "source": "emoji", "dim": 8},
            "words": {"name": "mlm", "source": "text"},
        },
    },
    "backbones": TINY["backbones"] | {
        "text": {
            "type": "bert", "tokenizer": str(DEMO / "tokenizer.json"), "length": 16,
            "config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                       "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        }
    },
    "data": {"workers": 0, "sources": {"emoji": {"url": str(DEMO / "emoji" / "train")},
                                       "text": {"url": str(DEMO / "text" / "train"), "batch": 4}}},
}  # fmt: skip


def make_recipe(out: Path | str = "unused", **changes: Any) -> Recipe:
    """The tiny recipe with top-level sections replaced."""
    return recipe_model(config_union(), evaluation_union()).model_validate({**TINY, "out": str(out), **changes})


class _Disturbed:
    """A probe during which something else happens."""

    def __init__(self, probe: loop.Probe, during: Callable[[], None]) -> None:
        self._probe, self._during = probe, during

    def prepare(self) -> None:
        self._probe.prepare()
        self.measures = self._probe.measures

    def __call__(self, step: int) -> dict[str, float]:
        self._during()
        return self._probe(step)


def run(recipe: Recipe, during: Callable[[], None] | None = None) -> tuple[loop.Outcome, dict[str, Any]]:
    """Train as train.py does: (outcome, whole weights of the objective). Collective. `during`: called at each probe."""
    plan = preflight.plan(recipe, preflight.announced_world())
    device = zero.start()
    probe = live_probe(recipe, plan, device, Team())
    if probe is not None and during is not None:
        probe = _Disturbed(probe, during)
    try:
        outcome = loop.train(recipe, plan, device, probe)
        return outcome, zero.full_state(plan.objective)
    finally:
        zero.stop()


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Metrics without what depends on the clock, and without the spectra that a run looks at when it ends."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    spectra = ("/rankme", "/of", "/span", "/lidar", "/lidar_of", "/discerned")
    return [{key: value for key, value in row.items() if not key.startswith("speed/") and not key.endswith(spectra)}
            for row in rows]  # fmt: skip


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    return make_recipe


@pytest.fixture
def joint() -> dict[str, Any]:
    """Changes that make the tiny recipe a joint one over an image and a text backbone."""
    return JOINT


@pytest.fixture
def train() -> Callable[..., Any]:
    return run


@pytest.fixture
def curve() -> Callable[[Path], list[dict[str, float]]]:
    return read_curve
