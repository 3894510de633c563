"""Anomalies: nothing of what is judged sets a threshold; measures against scikit-learn; what is refused."""

import json
import re
import runpy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.metrics import average_precision_score, f1_score

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.data.errors import DataError
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.heads.base import Head
from bigssl.nets.heads.steps import errors_when_hidden
from bigssl.nets.towers import Tower
from bigssl.transfer.bench import Bench
from bigssl.transfer.discovery import discover_evaluations
from bigssl.transfer.features import evaluating
from bigssl.transfer.inputs import input_of
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.scorecard import score
from bigssl.transfer.steps.series import read_long_series
from bigssl.transfer.subjects import Exported
from bigssl.transfer.tasks import anomaly
from bigssl.transfer.team import Team

FILLING = {"type": "patchtst", "channels": 6, "length": 40, "config": {
    "d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32,
    "patch_length": 8, "patch_stride": 8,
}}  # fmt: skip
CONTENDERS = ["trained", "random_net", "blind", anomaly.PCA, anomaly.POLYNOMIAL]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anomaly")
    runpy.run_path(str(Path(__file__).parent / "made" / "anomaly.py"))["make"](folder)
    torch.manual_seed(0)
    tower = Tower("series", BackboneConfig.model_validate(FILLING), None)
    export_run(folder, {"series": tower.model}, {"series": input_of(tower)}, {}, {})
    return folder


def section(data: Path, **changes: Any) -> Any:
    found = {"task": "anomaly", "train": str(data / "train"), "queries": str(data / "val"), "seeds": 2, "quantile": 0.9}
    return TypeAdapter(discover_evaluations()["anomaly"]).validate_python(found | changes)


@pytest.fixture
def work(data: Path, tmp_path: Path) -> Iterator[anomaly._Work]:
    with Scratch(tmp_path, Team()) as scratch:
        bench = Bench(Team(), scratch, Exported(data / "export", 0, {}), "cpu", where="evaluate.mine")
        yield anomaly._Work.of(section(data), bench)


def judged(work: anomaly._Work, contender: str) -> list[anomaly.StepsJudged]:
    return work.judged(Trial(contender, 1.0, 0, torch.arange(len(work.normal))))


@pytest.mark.parametrize("contender", CONTENDERS)
def test_the_threshold_knows_nothing_of_what_is_judged(work: anomaly._Work, contender: str) -> None:
    """Neither other series, nor the labels, nor how high scores are there change what is called anomalous."""
    found = judged(work, contender)
    other = [replace(line, marks=~line.marks) for line in work.lines]  # type: ignore[operator]
    for one, flipped in zip(found, judged(replace(work, lines=other), contender), strict=True):
        assert one.plain.hits == flipped.plain.alarms and one.plain.alarms == flipped.plain.hits
    wild = [*work.lines, replace(work.lines[0], values=1000 * work.lines[0].values)]
    more = judged(replace(work, lines=wild), contender)
    assert [each.plain for each in more[:-1]] == [each.plain for each in found]
    if contender in (anomaly.PCA, anomaly.POLYNOMIAL):  # PatchTST sees a window at variance 1
        assert more[-1].plain.alarms > 0.9 * len(work.lines[0]), "a thousand times as large"


def test_with_a_head_a_score_is_the_error_of_hidden_patches(data: Path, tmp_path: Path) -> None:
    """Also of a random network with a random head; nothing is remembered, and gaps have no error."""
    folder = tmp_path / "filling"
    torch.manual_seed(1)
    layer = torch.nn.Linear(16, 8)
    head = Head("masked_series", {"series": "series"}, dict(layer.named_parameters()), {"ratio": 0.4})
    tower = Tower("series", BackboneConfig.model_validate(FILLING), None)
    export_run(folder, {"series": tower.model}, {"series": input_of(tower)}, {"filling": head}, {})
    asked = section(data, head="filling", stride=40)
    with Scratch(tmp_path, Team()) as scratch:
        bench = Bench(Team(), scratch, Exported(folder / "export", 0, {}), "cpu", where="evaluate.mine")
        work = anomaly._Work.of(asked, bench)
        scores = work._detector(Trial("trained", 1.0, 0, torch.arange(4)))([])
        line = work.scale(work.lines[1])
        model = work.subject.models["trained"]
        got = scores(line)
        for window in range(4):
            values = torch.from_numpy(line[window * 40 : window * 40 + 40] * work.scale.std).float()[None]
            with torch.no_grad(), evaluating(model):
                errors = errors_when_hidden(model, layer, values, values.isfinite(), 0.4)[0].numpy()
            want = (errors / work.scale.std**2).mean(1)
            np.testing.assert_allclose(got[window * 40 : window * 40 + 40], want, rtol=1e-3, atol=1e-5)
        gap = line.copy()
        gap[50:60] = np.nan
        assert np.isfinite(scores(gap)).all() and not scores(gap)[50:60].any()
    card = score(folder, {"mine": asked}, seed=0, out=folder / "out")["tasks"]
    assert card["mine/f1"]["trained"] != card["mine/f1"]["random_net"]
    with pytest.raises(ValidationError, match="k 5 has no effect with head, which remembers nothing"):
        section(data, head="filling", k=5)
    with pytest.raises(ConfigError, match="evaluate.mine.head: value 'lost'; allowed: filling"):
        lost = section(data, head="lost")
        lost.check(Checked("evaluate.mine", lost, {"series": tower}, {"filling": head}))


def steps_of(parts: Iterable[np.ndarray]) -> Counter[bytes]:
    return Counter(step.tobytes() for rows in parts for step in rows)


@pytest.mark.parametrize("contender", ["trained", "random_net", anomaly.PCA])
def test_no_step_that_sets_the_threshold_is_remembered(
    work: anomaly._Work, contender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By no detector, nor as a copy; and each step of the training part is in one of both."""
    detector, remembered, scored = anomaly._Work._detector, list[np.ndarray](), list[np.ndarray]()

    def seen(of: anomaly._Work, trial: Trial) -> Any:
        made = detector(of, trial)

        def fitted(normal: Sequence[np.ndarray]) -> Any:
            remembered.extend(normal)
            scores = made(normal)
            return lambda rows: scored.append(rows) or scores(rows)  # type: ignore[func-returns-value]

        return fitted

    monkeypatch.setattr(anomaly._Work, "_detector", seen)
    judged(work, contender)
    threshold = scored[: -len(work.lines)]
    assert threshold and not any(np.shares_memory(*both) for both in product(remembered, threshold))
    known, asked = steps_of(remembered), steps_of(threshold)
    assert not known & asked and len(known) == known.total(), "no step is like another"
    train = [work.scale(line) for line in read_long_series(
        work.bench, work.section.train, limit=None, field="train", channels=work.takes.channels)]  # fmt: skip
    assert known + asked == steps_of(train)


@pytest.mark.parametrize("sizes", [(400,), (200, 199, 450), (60, 90, 100, 70, 80, 50, 400)])
def test_each_normal_step_is_remembered_or_sets_the_threshold(sizes: Sequence[int]) -> None:
    """Of long series the last fifth, of short ones each fifth."""
    rows = [np.random.default_rng(size).normal(size=(size, 2)) for size in sizes]
    normal, calibrating = anomaly._parted("evaluate.mine", rows, 40)
    assert not any(np.shares_memory(*both) for both in product(normal, calibrating))
    assert steps_of(normal) + steps_of(calibrating) == steps_of(rows)
    assert 0.1 < sum(map(len, calibrating)) / sum(sizes) < 0.5


def test_random_networks_have_the_statistics_of_normal_windows(
    work: anomaly._Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, met = anomaly.tokens_of, list[Any]()
    monkeypatch.setattr(anomaly, "tokens_of", lambda model, windows: met.append(model) or tokens(model, windows))
    for seed in (0, 1):
        work.judged(Trial("random_net", 1.0, seed, torch.arange(len(work.normal))))
    for model in (met[0], met[-1]):
        norms = [each for each in model.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
        assert norms and all(each.running_var.sub(1).abs().max() > 0.1 for each in norms), "those it is made with are 1"


def test_rows_are_what_scikit_learn_makes_of_the_scores(work: anomaly._Work, data: Path) -> None:
    card = score(data, {"mine": section(data)}, seed=0, out=data / "out")["tasks"]
    assert list(card) == ["mine/f1", "mine/f1_adjusted", "mine/auc_pr", "mine/vus_pr"]
    trial = Trial(anomaly.PCA, 1.0, 0, torch.arange(4))
    scores = work._detector(trial)(work.normal)
    level = np.quantile(np.concatenate([scores(rows) for rows in work.calibrating]), 0.9)
    truth = [line.marks for line in work.lines]
    said = [scores(work.scale(line)) for line in work.lines]
    called = [each > level for each in said]
    words = "principal components"
    assert card["mine/f1"]["raws"][words] == pytest.approx(f1_score(np.concatenate(truth), np.concatenate(called)))
    areas = [average_precision_score(*each) for each in zip(truth, said, strict=True) if each[0].any()]
    assert len(areas) == 3 and card["mine/auc_pr"]["raws"][words] == pytest.approx(np.mean(areas))
    marked = [each.mean() for each in truth if each.any()]
    assert card["mine/auc_pr"]["chance"] == pytest.approx(np.mean(marked))
    assert card["mine/f1"]["queries"] == 4 and card["mine/f1"]["anomalous"] == pytest.approx(np.mean(truth))
    for name, row in card.items():
        assert row["blind_name"] == "a random score" and len(row["seeds"]["random_net"]) == 2, name
        assert row["trained"] > row["blind"] or name == "mine/f1_adjusted"
    assert card["mine/f1_adjusted"]["blind"] > 2 * card["mine/f1"]["blind"], "point adjustment flatters a random score"
    assert card["mine/vus_pr"]["border"] == 20, "the period of the waves"


def packed(folder: Path, series: dict[str, np.ndarray], marks: dict[str, np.ndarray] | None = None) -> str:
    npy = runpy.run_path(str(Path(__file__).parent / "made" / "anomaly.py"))["_npy"]
    fields = {key: {"npy": npy(each)} | ({} if marks is None else
              {"json": json.dumps({"label": marks[key].tolist()}).encode()})
              for key, each in series.items()}  # fmt: skip
    pack([Item(key, key, lambda key=key: fields[key]) for key in series], folder, name="x")
    return str(folder)


def test_what_cannot_be_judged_is_refused(data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = {"a": rng.normal(size=(100, 6)).astype(np.float32)}
    none, lacking = {"a": np.zeros(100, np.uint8)}, plain | {"a": np.where([0, 0, 1, 0, 0, 0], np.nan, plain["a"])}
    for changes, words in (
        ({"queries": packed(tmp_path / "none", plain, none)}, "no step of 1 series is marked as anomalous"),
        ({"queries": packed(tmp_path / "bare", plain)}, "sample 'a': no marks of its steps, label in its json"),
        ({"label": "odd"}, "no marks of its steps, odd in its json; that has label"),
        ({"train": packed(tmp_path / "few", plain)}, "train: 1 series of 100 steps at most; allowed: 5 series"),
        ({"train": packed(tmp_path / "nan", lacking)}, "train: channel 2 has no finite value"),
        ({"train": packed(tmp_path / "short", {"a": plain["a"][:39]})}, "the longest of 39 steps; allowed: 40 or more"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=re.escape(words)):
            score(data, {"mine": section(data, **changes)}, seed=0, out=tmp_path)


def test_a_stride_beyond_the_window_is_refused_before_anything_is_read(data: Path) -> None:
    """Steps between two windows would lie in none."""
    tower = Tower("series", BackboneConfig(type="patchtst", channels=6, length=40, config={}), None)
    section(data, stride=40).check(Checked("evaluate.mine", section(data, stride=40), {"series": tower}, {}))
    words = "evaluate.mine.stride: value 41; allowed: <= 40, the steps of a window: others would lie in none"
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        section(data).check(Checked("evaluate.mine", section(data, stride=41), {"series": tower}, {}))


@pytest.mark.parametrize("weights", [True, False])
def test_a_network_of_nan_finds_no_anomalies(
    work: anomaly._Work, weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is above a threshold of NaN, which looked like a careful detector."""
    if weights:
        parameter = next(work.subject.models["trained"].parameters())
        parameter.data.view(-1)[0] = torch.nan
        said = "backbone 'series', trained: its encoder.* is not finite; export a checkpoint from before it diverged"
    else:
        tokens = anomaly.tokens_of
        monkeypatch.setattr(anomaly, "tokens_of", lambda *args: tokens(*args) * torch.nan)
        said = r"^\d+ of \d+ scores of steps are not finite; look at the network's weights, or lower lr$"
    with pytest.raises(DataError, match=said):
        judged(work, "trained")


def test_a_series_that_never_varies_is_judged(data: Path, tmp_path: Path) -> None:
    flat = {"a": np.ones((400, 6), dtype=np.float32)}
    jump, marks = {"b": np.ones((100, 6), dtype=np.float32)}, {"b": np.zeros(100, np.uint8)}
    jump["b"][50:60], marks["b"][50:60] = 3, 1
    asked = section(
        data, train=packed(tmp_path / "flat", flat), queries=packed(tmp_path / "jump", jump, marks), seeds=1
    )
    card = score(data, {"mine": asked}, seed=0, out=tmp_path)["tasks"]
    assert card["mine/auc_pr"]["raws"]["principal components"] > 0.9
    assert card["mine/f1"]["stderr"] is None  # one series cannot tell
