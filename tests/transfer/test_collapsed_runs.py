"""`bigssl evaluate` of networks whose features are constant up to tiny noise: it is said on the console and in the
report, of every modality, and nothing is said of the same networks where they are healthy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModel, PatchTSTConfig, PreTrainedModel, PreTrainedTokenizerFast

from bigssl.cli.main import main
from bigssl.report.html import write_report
from bigssl.transfer.inputs import ImageInput, SeriesInput, TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.scorecard import format_table, score
from bigssl.transfer.tasks.knn import Knn

ROOT = Path(__file__).parents[2]
MOTIONS = "bigssl/demo/series/basic_motions"
LAYERS = (nn.LayerNorm, nn.BatchNorm2d, nn.BatchNorm1d, nn.Linear)


def collapse(model: PreTrainedModel) -> PreTrainedModel:
    """Layers forget nearly all that goes through them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LAYERS):
                layer.weight.mul_(1e-4)
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["healthy", "collapsed"])
def evaluated(
    request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel], shards: Path,
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory,
) -> tuple[bool, Path]:  # fmt: skip
    """(whether all three networks collapsed, their run folder). `prose` of the recipe is gone from the export."""
    folder = tmp_path_factory.mktemp("run")
    series = PatchTSTConfig(d_model=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, patch_length=10,
                            patch_stride=10, context_length=100, num_input_channels=6)  # fmt: skip
    torch.manual_seed(0)
    configs = {"image": make_model("vit").config, "text": make_model("bert").config, "series": series}
    networks = {name: AutoModel.from_config(config) for name, config in configs.items()}
    if request.param:
        networks = {name: collapse(model) for name, model in networks.items()}
    inputs = {"image": ImageInput(32), "text": TextInput(tokenizer, 32), "series": SeriesInput(100, 6)}
    export_run(folder, networks, inputs, {}, {})
    recipe = yaml.safe_load((ROOT / "launch/recipes/demo.yaml").read_text())
    known = {"task": "knn", "bank": str(shards / "train"), "queries": str(shards / "val"), "label": "category", "k": 5}
    recipe |= {"out": str(folder), "evaluate": {"image": known, "text": known | {"backbone": "text"}}, "probe": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    return request.param, folder


def check_said(names: Iterable[str], folder: Path, collapsed: bool, lines: list[str]) -> None:
    """lines: of the console."""
    page, health = (folder / "report.html").read_text(), json.loads((folder / "scorecard.json").read_text())["health"]
    for name in names:
        own, random = health[name]["trained"], health[name]["random_net"]
        (line,) = [line for line in lines if line.startswith(f"features of {name}: ")]
        assert f"RankMe {own['rankme']:.1f} of {own['of']} directions (random network {random['rankme']:.1f} " in line
        assert f"; std of directions trained {own['std']:.4f}, random network {random['std']:.4f}" in line
        assert f"<td>{own['rankme']:.1f}</td>" in page and len(health[name]) > 2, "and of the raw input"
        said = f"{name} has COLLAPSED: its features span about {own['rankme']:.1f} of {own['of']} directions, those of"
        assert sum(line.startswith(said) for line in lines) == collapsed == page.count(said), (name, own, random)
        assert (own["rankme"] < 1.1) == collapsed


def test_a_collapse_is_said_of_pictures_and_texts_and_of_none_that_is_healthy(
    evaluated: tuple[bool, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collapsed, folder = evaluated
    monkeypatch.chdir(ROOT)
    assert main(["evaluate", str(folder)]) == 0
    check_said(["image", "text"], folder, collapsed, capsys.readouterr().out.splitlines())


def test_a_collapse_is_said_of_series(evaluated: tuple[bool, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No pretext of a recipe learns from them yet."""
    collapsed, folder = evaluated
    monkeypatch.chdir(ROOT)
    motions = Knn(backbone="series", bank=f"{MOTIONS}/train", queries=f"{MOTIONS}/test", label="label", k=5)
    card = score(folder, {"series": motions}, seed=0)
    write_report(folder)
    check_said(["series"], folder, collapsed, format_table(card).splitlines())


def test_what_is_gone_from_the_export_cannot_be_judged(
    evaluated: tuple[bool, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["evaluate", str(evaluated[1]), "evaluate.text.backbone=prose"]) == 2
    assert "evaluate.text.backbone: no backbone 'prose'; allowed: image, series, text" in capsys.readouterr().err
