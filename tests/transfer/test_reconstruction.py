"""Pictures drawn again: numbers as loops have them, the same hidden for all, grids for a person, also at ZeRO-3."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from bigssl.config.errors import ConfigError
from bigssl.config.evaluate import Evaluation
from bigssl.config.recipe import BackboneConfig, Recipe, recipe_model
from bigssl.data.errors import DataError
from bigssl.data.shards.index import DatasetIndex
from bigssl.engine import loop, zero
from bigssl.engine.plan import preflight
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.heads.base import Head
from bigssl.nets.remaking.base import Remaker, discover_remakers
from bigssl.nets.remaking.mae import MaeRemaker
from bigssl.nets.towers import Tower
from bigssl.objectives.base import config_union
from bigssl.report.html import write_report
from bigssl.train import live_probe
from bigssl.transfer.baselines import random_network
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.features import chosen, samples_at
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.leaving.export import export_run, load_backbone, load_head
from bigssl.transfer.scorecard import score
from bigssl.transfer.tasks.reconstruction import picture_seed
from bigssl.transfer.team import Team

EMOJI = Path(__file__).parents[2] / "bigssl" / "demo" / "emoji"
VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8,
       "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
SECTION = {"task": "reconstruction", "head": "mae", "bank": str(EMOJI / "train"), "queries": str(EMOJI / "val"),
           "item": "code", "bank_limit": 40, "query_limit": 24, "batch": 10}  # fmt: skip
parse: Callable[[Any], Evaluation] = TypeAdapter(evaluation_union()).validate_python


def remaker(**changes: Any) -> MaeRemaker:
    torch.manual_seed(2)
    settings = {"dim": 32, "size": 32, "patch": 8, "visible": 4, "width": 16, "layers": 1, "heads": 2}
    return MaeRemaker(**settings | changes)


def exported(folder: Path, drawn: Remaker | None = None) -> Path:
    torch.manual_seed(1)
    tower = Tower("image", BackboneConfig(type="vit", size=32, config=VIT), None)
    drawn = drawn or remaker()
    head = Head(drawn.kind, {"image": "image"}, drawn.learnt(), drawn.settings)
    export_run(folder, {"image": tower.model}, {"image": ImageInput(32)}, {"mae": head}, {})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("run"))


def decibels(made: np.ndarray, truth: np.ndarray, judged: np.ndarray) -> float:
    error = (made.astype(float) - truth.astype(float)) ** 2
    return 10 * math.log10(255**2 / error[np.broadcast_to(judged, error.shape)].mean())


@pytest.fixture(scope="module")
def card(run: Path) -> dict[str, Any]:
    return score(run, {"mine": parse(SECTION)}, seed=7, steps=30)


def test_every_contender_is_judged_where_the_same_is_hidden(run: Path, card: dict[str, Any]) -> None:
    """One sample after another, with masks of its own key; the mean picture and the patches' means from the pixels."""
    takes, index = ImageInput(32), DatasetIndex.load(SECTION["queries"])
    trained, head = load_backbone(run / "export" / "image"), load_head(run / "export" / "heads" / "mae.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        fresh = Remaker.of_head("mae", head.settings, None, trained)
    makers = {"trained": (trained, Remaker.of_head("mae", head.settings, head.tensors, trained)),
              "random_net": (random_network(trained.config, 7), fresh)}  # fmt: skip
    bank = DatasetIndex.load(SECTION["bank"])
    seen = [takes.view(each)["image"] for each in samples_at(bank, chosen(bank, 40))]
    mean = np.round(np.mean(seen, 0, dtype=float)).astype(np.uint8)
    found: dict[str, list[float]] = {}
    for sample in samples_at(index, chosen(index, 24)):
        truth = takes.view(sample)["image"]
        pictures, seeds = torch.from_numpy(truth)[None], torch.tensor([picture_seed(sample.key)])
        masks = []
        for name, (model, drawn) in makers.items():
            with torch.no_grad():
                given, made, judged = drawn.remake(model, pictures, seeds)
            masks.append(judged[0].numpy())
            found.setdefault(name, []).append(decibels(made[0].numpy(), truth, masks[-1]))
            assert (given[0].numpy()[:, masks[-1][0]] == 128).all()
            assert torch.equal(made.masked_fill(judged, 0), pictures.masked_fill(judged, 0))
        assert np.array_equal(*masks) and masks[0].sum() == 12 * 64
        patches = truth.reshape(3, 4, 8, 4, 8).mean((0, 2, 4))[None].repeat(8, 1).repeat(8, 2)
        found.setdefault("blind", []).append(decibels(mean, truth, masks[0]))
        found.setdefault("raw", []).append(decibels(np.round(patches), truth, masks[0]))
    row = card["tasks"]["mine/psnr"]
    for name, values in found.items():
        assert row[name] == pytest.approx(np.mean(values), abs=1e-2 if name == "raw" else 1e-6), name
    assert row["raw_name"] == "each patch's mean" and row["unit"] == "dB" and row["queries"] == 24
    assert card["tasks"]["mine/ssim"]["trained"] < 1 and row["blind_name"] == "the mean picture of the bank"


def test_a_person_sees_the_same_samples_every_time(run: Path, card: dict[str, Any]) -> None:
    with Image.open(run / "pictures" / "mine-000000030.png") as grid:
        pixels, said = np.asarray(grid), str(grid.info["caption"])
    assert pixels.shape == (3 * 34 - 2, 8 * 34 - 2, 3)
    assert "given, made, truth" in said and "12 from these" in said and "the truth's" in said
    index, takes = DatasetIndex.load(SECTION["queries"]), ImageInput(32)
    for place, sample in enumerate(samples_at(index, [n * len(index) // 8 for n in range(8)])):
        truth = takes.view(sample)["image"].transpose(1, 2, 0)
        assert np.array_equal(pixels[68:, 34 * place :][:32, :32], truth)
        hidden = (pixels[:32, 34 * place :][:, :32] == 128).all(-1)
        assert hidden.sum() >= 12 * 64 and not np.array_equal(pixels[34:66, 34 * place :][:, :32], truth)
        assert np.array_equal(pixels[34:66, 34 * place :][:, :32][~hidden], truth[~hidden])


def test_a_decoder_that_is_none_of_this_network_is_named(tmp_path: Path) -> None:
    other = exported(tmp_path / "other", remaker(dim=24))
    with pytest.raises(DataError, match=r"evaluate.mine.*mat1|shape"):
        score(other, {"mine": parse(SECTION)}, seed=0)
    odd = remaker()
    torch.nn.init.constant_(odd.decoder.decoder_pred.bias, float("nan"))
    with pytest.raises(DataError, match=r"evaluate.mine: pictures of image: .*pixels that it makes are not finite"):
        score(exported(tmp_path / "odd", odd), {"mine": parse(SECTION)}, seed=0)
    towers = {"image": Tower("image", BackboneConfig(type="vit", size=32, config=VIT), None)}
    head = {"mae": Head("clip", {"image": "image"}, {})}
    kinds = " or ".join(sorted(discover_remakers()))
    with pytest.raises(ConfigError, match=f"mine.head: value 'mae'; allowed: none: .* of the kind {kinds}$"):
        parse(SECTION).check(Checked("mine", parse(SECTION), towers, head))


def trained(recipe: Recipe) -> None:
    plan = preflight.plan(recipe, preflight.announced_world())
    device = zero.start()
    loop.train(recipe, plan, device, live_probe(recipe, plan, device, Team()))
    zero.stop()


def recipe_of(out: Path, stage: int) -> Recipe:
    return recipe_model(config_union(), evaluation_union()).model_validate({
        "name": "drawn", "out": str(out), "steps": 4, "precision": "fp32", "batch": {"size": 8},
        "objective": {"name": "mae", "source": "emoji", "decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2},
        "backbones": {"image": {"type": "vit", "size": 32, "config": VIT}}, "checkpoint": {"every": 4},
        "data": {"workers": 0, "sources": {"emoji": {"url": str(EMOJI / "train")}}}, "optim": {"lr": 1e-3},
        "zero": {"stage": stage}, "probe": {"every": 2, "drawn": SECTION | {"query_limit": 13, "batch": 4}},
    })  # fmt: skip


@pytest.mark.distributed
def test_two_ranks_at_stage_3_draw_what_one_draws(tmp_path: Path, ranks: Any) -> None:
    one, two = recipe_of(tmp_path / "one", 0), recipe_of(tmp_path / "two", 3)
    ranks(trained, 1, one)
    ranks(trained, 2, two)
    rows = [[json.loads(line) for line in (each.folder / "metrics.jsonl").read_text().splitlines()]
            for each in (one, two)]  # fmt: skip
    for left, right in zip(*([row for row in each if "probe/drawn/psnr" in row] for each in rows), strict=True):
        for name in ("probe/drawn/psnr", "probe/drawn/ssim"):
            assert left[name] == pytest.approx(right[name], rel=1e-4), name
    names = ["drawn-000000002.png", "drawn-000000004.png"]
    for name in names:
        left, right = (np.asarray(Image.open(each.folder / "pictures" / name)).astype(int) for each in (one, two))
        assert abs(left - right).max() <= 1, name
    page = write_report(one.folder).read_text()  # as `bigssl report` does at any time
    assert page.count("data:image/png;base64,") == 2 and "after 4 steps" in page
