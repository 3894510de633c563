"""What is recommended for a card is the cheapest way that fits, by the plan's own count of bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl.cli.main import main
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.engine import zero
from bigssl.engine.plan.activations import Activations, OnPaper
from bigssl.engine.plan.cards.advise import LEVELS, SPARE, Level, WayToRun, advise
from bigssl.engine.plan.cards.table import CARDS, CONTEXT, Card, card_named
from bigssl.engine.plan.memory import memory
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union

ROOT = Path(__file__).parents[4]
MODEL = recipe_model(config_union(), evaluation_union())
SIZE, WORLD = 24, 2
WIDE = {"backbones": {"image": {"type": "resnet", "size": 32, "config": {
    "embedding_size": 16, "hidden_sizes": [64, 512], "depths": [1, 1], "layer_type": "basic"}}}}  # fmt: skip
MAE = {"objective": {"name": "mae", "source": "emoji", "decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2},
       "backbones": {"image": {"type": "vit", "size": 32, "config": {
           "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
           "patch_size": 8}}}}  # fmt: skip
A_FEW = ["bert-base", "jigsaw-cifar10", "mae-imagenet", "moco-imagenet", "patchtst-etth1", "simclr-imagenet",
         "wav2vec2-librispeech"]  # fmt: skip
RECIPES = sorted((ROOT / "launch" / "recipes" / "gpu").glob("*.yaml"))


def card(megabytes: float, **changes: Any) -> Card:
    """Of so many 10^6 bytes to plan with."""
    return dataclasses.replace(CARDS["h100-80"], gigabytes=CONTEXT + megabytes / 1e3, **changes)


def every_way(recipe: Recipe, paper: OnPaper) -> dict[tuple[int, int], int]:
    """Bytes that a rank needs, by level and passes: each level with each split, counted one by one."""
    found = {}
    for number, level in enumerate(LEVELS):
        host = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}} if level.offload else {}
        section = recipe.zero.model_copy(update={"stage": level.stage, "options": host})
        changed = recipe.model_copy(update={"zero": section})
        for accum in (k for k in range(1, SIZE + 1) if SIZE % (k * WORLD) == 0):
            held = memory(paper.objective, changed, stage=level.stage, world=WORLD, accum=accum, bf16=True)
            kept = paper.activations({"emoji": SIZE // accum // WORLD}, bf16=True)
            device = sum(held.device.values()) + round(SPARE * kept.bytes) + kept.batch
            found[number, accum] = max(device, held.construction)
    return found


@pytest.fixture(scope="module", params=["wide", "mae"])
def case(request: pytest.FixtureRequest) -> tuple[Recipe, OnPaper, dict[tuple[int, int], int]]:
    values = {"wide": WIDE, "mae": MAE}[request.param]
    recipe = made(batch={"size": SIZE}, optim={"name": "adamw", "lr": 0.1}, **values)
    paper, once = OnPaper(recipe), dict[int, Activations]()
    count = paper.activations

    def activations(micro: dict[str, int], *, bf16: bool) -> Activations:
        if (size := micro["emoji"]) not in once:
            once[size] = count(micro, bf16=bf16)
        return once[size]

    paper.activations = activations  # type: ignore[method-assign]  # which takes its time
    return recipe, paper, every_way(recipe, paper)


def made(**changes: Any) -> Recipe:
    url = str(ROOT / "bigssl" / "demo" / "emoji" / "train")
    values = {"name": "t", "steps": 5, "objective": {"name": "simclr", "source": "emoji", "hidden": 16, "dim": 8},
              "data": {"sources": {"emoji": {"url": url}}}}  # fmt: skip
    return MODEL.model_validate(values | changes)


def where(fit: WayToRun) -> tuple[int, int]:
    return [str(level) for level in LEVELS].index(fit.level), fit.accum


def test_it_is_the_cheapest_that_fits(case: Any) -> None:
    """On cards of all sizes at which another answer begins, and of a byte less."""
    recipe, paper, ways = case
    wanted = []
    for size in sorted({size - less for size in ways.values() for less in (0, 1)}):
        found = advise(recipe, paper, WORLD, card(size / 1e6))
        fitting = [way for way, need in ways.items() if need <= size]
        if not fitting:
            assert found.chosen is None and found.lacking == min(ways.values()) - size
            assert f"{found.lacking / 1e9:.1f} GB more" in found.failure and "a larger card" in found.failure
            continue
        assert found.chosen is not None and where(found.chosen) == min(fitting) and not found.failure
        assert found.chosen.need == ways[min(fitting)] and found.chosen.micro * found.chosen.accum * WORLD == SIZE
        wanted.append(min(fitting))
    assert wanted == sorted(wanted, reverse=True), "more memory, and a dearer way"
    assert {level for level, _ in wanted} > {0} and len(set(wanted)) >= 4, "cases that tell nothing"


def test_its_overrides_make_the_recipe_that_was_counted(case: Any, tmp_path: Path) -> None:
    """Read by `load_recipe` and refused by nobody, it needs what was said."""
    recipe, paper, ways = case
    file = tmp_path / "r.yaml"
    values = json.loads(recipe.model_dump_json())
    values["zero"] = {"stage": 2, "options": {"reduce_bucket_size": 10_000, "round_robin_gradients": True}}
    file.write_text(yaml.safe_dump(values))
    given = load_recipe(file, [], MODEL)
    for size in (1e12, min(ways.values()) * 1.02):
        fit = advise(given, paper, WORLD, card(size / 1e6)).chosen
        assert fit is not None
        changed = load_recipe(file, fit.overrides, MODEL)
        zero.check_zero(changed)
        assert (changed.batch.micro, changed.batch.accum, changed.zero.stage) == (fit.micro, fit.accum, fit.stage)
        assert "round_robin_gradients" not in changed.zero.options, "which has no effect there"
        assert ("reduce_bucket_size" in changed.zero.options) == (fit.stage > 0)
        held = memory(paper.objective, changed, stage=fit.stage, world=WORLD, accum=fit.accum, bf16=True)
        kept = paper.activations({"emoji": fit.micro}, bf16=True)
        least = max(sum(held.device.values()) + round(SPARE * kept.bytes) + kept.batch, held.construction)
        assert least == fit.need and sum(held.host.values()) == fit.host


def test_a_loss_that_compares_samples_is_given_gradcache() -> None:
    recipe = made(batch={"size": SIZE}, **WIDE)
    paper = OnPaper(recipe)
    small = advise(recipe, paper, WORLD, card(min(every_way(recipe, paper).values()) / 1e6))
    assert small.chosen is not None and small.chosen.accum > 1 and "batch.cached=true" in small.chosen.overrides
    assert any("simclr compares all samples of a step, whatever the micro-batch" in note for note in small.notes)
    large = advise(recipe, paper, WORLD, card(1e5))
    assert large.chosen is not None and large.chosen.accum == 1 and not large.notes
    other = made(batch={"size": SIZE}, **WIDE | {"objective": {"name": "byol", "source": "emoji"}})
    paper = OnPaper(other)
    most, least = (each.need for each in (advise(other, paper, WORLD, card(size)).by_level[0] for size in (1e5, 1)))
    split = advise(other, paper, WORLD, card(max(least, most - 1) / 1e6))
    assert split.chosen is not None and "batch.cached=true" not in split.chosen.overrides and split.chosen.accum > 1
    assert any(f"sees the {split.chosen.micro * WORLD} samples of a pass" in note for note in split.notes)


def test_a_card_without_bf16_is_counted_in_fp32() -> None:
    recipe, old = made(batch={"size": SIZE}, precision="bf16", **MAE), card(1e5, bf16=None)
    paper = OnPaper(recipe)
    found, new = advise(recipe, paper, WORLD, old), advise(recipe, paper, WORLD, card(1e5))
    assert found.chosen is not None and new.chosen is not None and found.chosen.need > new.chosen.need
    assert "precision=fp32" in found.chosen.overrides and "does not compute in bf16" in found.notes[0]
    itself = advise(made(batch={"size": SIZE}, **MAE), paper, WORLD, old)
    assert itself.chosen is not None and "precision=fp32" not in itself.chosen.overrides
    assert itself.chosen.need == found.chosen.need


def test_what_a_recipe_cannot_have_is_said_and_not_chosen() -> None:
    recipe = made(batch={"size": SIZE}, optim={"name": "muon", "lr": 0.1, "clip": 1.0}, **WIDE)
    found = advise(recipe, OnPaper(recipe), WORLD, card(1e5))
    assert "orthogonalises gradients" in found.refused["stage 1"] and "muon" in found.refused["stage 3 + offload"]
    with pytest.raises(ConfigError, match=f"value {SIZE}: cannot be dealt out to 7 ranks"):
        advise(recipe, OnPaper(recipe), 7, card(1e5))


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem in A_FEW], ids=lambda path: path.stem)
def test_recipes_of_gpus_get_a_recommendation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(path, [], MODEL)
    found = advise(recipe, OnPaper(recipe), 8, CARDS["h100-80"])
    assert found.chosen is not None and found.chosen.need <= CARDS["h100-80"].usable
    assert found.chosen.micro * found.chosen.accum * 8 == recipe.batch.size


def test_the_command_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also before the data are there; a name that is not known, and two memories, are refused."""
    (file := tmp_path / "r.yaml").write_text(made(batch={"size": SIZE}, **WIDE).model_dump_json())
    command = ["plan", "--config", str(file), "--world", "2", f"out={tmp_path}/run"]
    assert main([*command, "--gpu", "t4-16"]) == 0
    text = capsys.readouterr().out
    assert "card t4-16: 16 GB, 15 to plan with; no bf16" in text and "<- the cheapest that fits" in text
    assert "  give: zero.stage=0 batch.micro=12 batch.accum=1" in text
    assert main([*command, "--gpu", "h100-80", "--json", f"data.sources.emoji.url={tmp_path}/none"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["advice"]["chosen"]["overrides"] == ["zero.stage=0", "batch.micro=12", "batch.accum=1"]
    assert main([*command, "--gpu", "h100"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in CARDS) and "nearest: h100-80" in said
    assert main([*command, "--gpu", "h100-80", "--memory", "3"]) == 2 and "one of the two" in capsys.readouterr().err


def test_the_table_is_of_cards_as_they_are_sold() -> None:
    for name, each in CARDS.items():
        assert name == each.name and card_named(name) is each and each.source
        assert 0.9 * int(name.rpartition("-")[2]) < each.gigabytes <= int(name.rpartition("-")[2])
        assert each.bf16 is None or each.bf16 > each.fp32
    assert Level(3) in LEVELS and [str(level) for level in LEVELS][-1] == "stage 3 + offload"
