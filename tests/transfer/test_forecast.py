"""Forecasts: against loops over the table they come from, on any number of ranks, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.data.errors import DataError
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.rows import from_csv
from bigssl.data.tools.timed.windows import Windows
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.towers import Tower
from bigssl.transfer.bench import Bench
from bigssl.transfer.discovery import discover_evaluations
from bigssl.transfer.inputs import input_of
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.scorecard import score
from bigssl.transfer.steps.windows import set_norms
from bigssl.transfer.subjects import Exported
from bigssl.transfer.tasks import forecast
from bigssl.transfer.team import Team

PAST, FUTURE = 24, 6
SMALL = BackboneConfig(type="patchtst", channels=2, length=PAST, config={
    "d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "patch_length": 4,
    "patch_stride": 4})  # fmt: skip


def values() -> np.ndarray:
    """float32 [600, 2]: a season of 12 steps on a slow wave, in another unit each."""
    steps, rng = np.arange(600)[:, None], np.random.default_rng(0)
    season = np.sin(2 * np.pi * steps / 12 + np.array([0.0, 1.0])) + 2 * np.sin(steps / 90)
    return ((season + 0.1 * rng.normal(size=(600, 2))) * [3, 100] + [0, 5000]).round(4).astype(np.float32)


@pytest.fixture(scope="module")
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower("series", SMALL, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tower: Tower) -> Path:
    """train and val: the first 450 rows and the last 150, in windows; and a run with an export."""
    folder = tmp_path_factory.mktemp("forecast")
    table = folder / "long.csv"
    table.write_text("a,b\n" + "\n".join(",".join(map(str, row)) for row in values().tolist()))
    items = from_csv(table, "long", Windows(window=50, held_out=0.25))
    pack(items, folder / "shards", name="x", split=("val", 0.25), shuffle=True)
    export_run(folder, {"series": tower.model}, {"series": input_of(tower)}, {}, {})
    return folder


def section(data: Path, **changes: Any) -> dict[str, Any]:
    found = {"task": "forecast", "train": str(data / "shards/train"), "queries": str(data / "shards/val"),
             "horizon": FUTURE, "stride": 3, "seeds": 2, "fractions": [0.1, 1.0]}  # fmt: skip
    return {"mine": TypeAdapter(discover_evaluations()["forecast"]).validate_python(found | changes)}


def test_naive_forecasts_are_those_of_the_table(data: Path) -> None:
    card = score(data, section(data), seed=0, out=data / "out")
    rows = values().astype(np.float64)
    scaled = (rows[450:] - rows[:450].mean(0)) / rows[:450].std(0)
    begins = range(0, 150 - PAST - FUTURE + 1, 3)
    last, period, mean = [], [], []
    for begin in begins:
        past, future = scaled[begin : begin + PAST], scaled[begin + PAST : begin + PAST + FUTURE]
        last.append(past[-1] - future)
        period.append(past[-12:][:FUTURE] - future)
        mean.append(future)
    for name, error in (("mse", np.square), ("mae", np.abs)):
        row = card["tasks"][f"mine/{name}"]
        assert row["queries"] == len(begins) and row["period"] == 12
        assert row["windows"] == (450 - PAST - FUTURE) // 3 + 1
        assert row["raws"]["last value"] == pytest.approx(error(last).mean(), rel=1e-4)
        assert row["raws"]["last period (12 steps)"] == pytest.approx(error(period).mean(), rel=1e-4)
        assert row["blind"] == pytest.approx(error(mean).mean(), rel=1e-4)
        assert row["raws"]["linear model of the past"] < 0.8 * row["raws"]["last period (12 steps)"]
        assert row["trained"] < 0.5 * min(row["blind"], row["raws"]["last value"]) and row["random_net"] > 0
        samples = [point["samples"] for point in row["curve"]]
        assert samples == [round(0.1 * row["windows"]), row["windows"]] and len(row["seeds"]["random_net"]) == 2


def test_all_weights_can_be_tuned_and_the_export_stays_as_it_is(data: Path) -> None:
    weights = {path: path.read_bytes() for path in (data / "export").rglob("*.safetensors")}
    once = {"seeds": 1, "fractions": [1.0]}
    frozen, tuned = (score(data, section(data, **once, **how), seed=0, out=data / "out")["tasks"]["mine/mse"]
                     for how in ({}, {"tune": "all", "epochs": 10, "lr": 3e-3, "backbone_lr": 3e-3}))  # fmt: skip
    assert tuned["trained"] != frozen["trained"] and tuned["trained"] < 0.2 * tuned["blind"]
    assert tuned["raws"] == frozen["raws"]
    assert weights == {path: path.read_bytes() for path in (data / "export").rglob("*.safetensors")} != {}


@pytest.mark.parametrize("tune", ["head", "all"])
def test_a_random_network_has_the_statistics_of_the_training_windows(
    data: Path, tmp_path: Path, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is judged or trained, whatever its seed: judged with those that it is made with, it would lose for want
    of bookkeeping."""
    features, met = forecast._Work._features_of, list[tuple[Any, list[torch.Tensor]]]()

    def seen(work: Any, model: Any, cases: Any) -> torch.Tensor:
        met.append((model, statistics(model)))
        return features(work, model, cases)

    monkeypatch.setattr(forecast._Work, "_features_of", seen)
    with Scratch(tmp_path, Team()) as scratch:
        bench = Bench(Team(), scratch, Exported(data / "export", 0, {}), "cpu", where="evaluate.mine")
        work = forecast._Work.of(section(data, tune=tune, epochs=1)["mine"], bench)
        for seed in (0, 1):
            work.errors(Trial("random_net", 1.0, seed, torch.arange(20)))
        for seed, (_, found) in ((0, met[0]), (1, met[-1])):
            fresh = bench.network(bench.subject("series"), "random_net", seed)
            assert found and all(bool((value == 0).all() or (value == 1).all()) for value in statistics(fresh))
            set_norms(fresh, work.train.seen, 256, "cpu")
            assert all(torch.allclose(*both, rtol=1e-4) for both in zip(found, statistics(fresh), strict=True))


def statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of the running means and variances."""
    return [value.detach().clone() for name, value in model.named_buffers() if "running" in name]


def ranked(data: Path, out: Path, sections: dict[str, Any]) -> Any:
    torch.distributed.init_process_group("gloo")
    return score(data, sections, seed=0, out=out)["tasks"]


@pytest.mark.distributed
def test_ranks_find_what_one_finds(data: Path, ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    alone = score(data, section(data), seed=0, out=tmp_path / "alone")["tasks"]
    for found in ranks(ranked, 2, data, tmp_path / "two", section(data)):
        assert found == alone


def test_states_of_all_channels_together_cannot_be_told_apart(data: Path) -> None:
    """A linear head forecasts a channel from its own states."""
    mine = section(data)["mine"]
    small = {"hidden_size": 8, "width": 8, "depth": 1}
    together = Tower("series", BackboneConfig(type="ts2vec", channels=2, length=PAST, config=small), None)
    with pytest.raises(ConfigError, match="evaluate.mine.backbone: value 'series': it is of type ts2vec, whose states"):
        mine.check(Checked("evaluate.mine", mine, {"series": together}, {}))


def test_what_cannot_be_forecast_is_refused(data: Path, tower: Tower) -> None:
    def check(**changes: Any) -> None:
        mine = section(data, **changes)["mine"]
        mine.check(Checked("evaluate.mine", mine, {"series": tower}, {}))

    check(period=24)
    with pytest.raises(
        ConfigError, match="evaluate.mine.period: value 25; allowed: <= 24, the steps that the backbone"
    ):
        check(period=25)
    with pytest.raises(ConfigError, match="evaluate.mine.queries: .* 1 of 1 shards are also in evaluate.mine.train"):
        check(queries=str(data / "shards/train"))
    with pytest.raises(DataError, match=r"queries: 1 series, the longest of 150 steps; allowed: 164 or more \(24 that"):
        score(data, section(data, horizon=140), seed=0, out=data / "out")
    with pytest.raises(DataError, match=r"queries: rows 0 to 449 of series 'long', of which rows up to 599 are learnt"):
        score(
            data,
            section(data, train=str(data / "shards/val"), queries=str(data / "shards/train")),
            seed=0,
            out=data / "out",
        )
