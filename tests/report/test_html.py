"""The report stands on the files of a run folder alone, whichever of them are there."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from bigssl.report import environment, figures
from bigssl.report.html import write_report
from bigssl.report.metrics import Measure, MetricsWriter
from bigssl.report.values import CARD_VERSION, curve_rows

TASK: dict[str, Any] = {
        "title": "kNN over <category>", "unit": "share", "higher_is_better": True, "chance": 0.1, "majority": 0.3,
        "blind": None, "random_net": 0.58, "raw": 0.63, "trained": 0.66,
        "raws": {"raw <letters>": 0.63, "raw words": 0.41}, "passed": True, "verdict": "better than all",
        "std": {}, "curve": [], "sentence": "The network & its features."}
WORDS = {"title": "masked words", "unit": "nats", "higher_is_better": False, "chance": None, "majority": None,
         "blind": 6.021, "random_net": 7.13, "raw": None, "trained": 4.404, "passed": True,
         "raws": {}, "verdict": "better than all", "std": {}, "curve": [], "sentence": "Masked words & 8 documents."}
SCALED = {"span": 0.47, "uniformity": -2.5, "uniform": 0.63, "spread": 0.69}
HEALTH = {"image": {"trained": SCALED | {"std": 0.0612, "rankme": 60.25, "samples": 734, "of": 128},
                    "random_net": SCALED | {"std": 0.0553, "rankme": 71.5, "samples": 734, "of": 128},
                    "raw <letters>": {"span": 0.78, "uniformity": -3.6, "uniform": 0.9, "rankme": 401.2,
                                      "samples": 512, "of": 512}},
          "text": {"trained": SCALED | {"std": 0.0021, "rankme": 2.04, "samples": 300, "of": 128},
                   "random_net": SCALED | {"std": 0.0221, "rankme": 42.5, "samples": 300, "of": 128}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    writer = MetricsWriter(tmp_path, resume_step=0, enabled=True)
    for step in range(1, 41):
        values = {"loss": 9 - step / 10, "blind": 9.0, "loss/simclr": 5.0, "blind/simclr": 6.2, "loss/mlm": 4.0,
                  "speed/samples_per_s": 800.0, "speed/data_wait": 0.03, "speed/driver_overhead": 0.01,
                  "stats/gradient.simclr": 0.5, "stats/gradient.mlm": 0.2, "stats/conflict.simclr.mlm": -0.37}
        measures = {name: Measure("nats", "guessing") for name in ("loss", "loss/simclr", "loss/mlm")}
        writer.describe(measures | {"probe/near": Measure("share", ""), "probe/lm": Measure("nats", "")})
        probed = {"probe/near": 0.615, "probe/lm": 5.5, "health/image/std": 0.08,
                  "health/image/spread": 0.91, "health/z/span": 0.31, "health/z/rankme": 20.4, "health/z/of": 64.0}
        writer.write(step, values | (probed if step % 10 == 0 else {}))
    writer.close()
    (tmp_path / "config.yaml").write_text("name: <demo>\nsteps: 40\n")
    card = {"version": CARD_VERSION, "tasks": {"images": TASK, "words": WORDS}, "health": HEALTH, "notes": ["A note."]}
    (tmp_path / "scorecard.json").write_text(json.dumps(card))
    environment.record(tmp_path)
    return tmp_path


def test_page_is_one_file_with_everything_in_it(run: Path) -> None:
    page = write_report(run).read_text()
    assert not re.search(r'(src|href)="(?!#)', page), "the page points outside itself"
    assert page.count("<svg") == 6
    for text in ("66.0 %", "58.0 %", "better than all", "The network &amp; its features.", "A note.", "simclr", "mlm",
                 "kNN over &lt;category&gt;", "name: &lt;demo&gt;", "guessing 6.20", "driver overhead", "torch",
                 "6.02", "7.13", "4.40 nats", "(lower is better)", "probe near", "61.5 %", "near (%)", "lm (nats)",
                 "5.50 nats", "0.91 (0.08)", "0.31 (20.4 of 64)", "discerned (LiDAR)", "0.47", "0.63",
                 "raw input is raw &lt;letters&gt; 63.0 %, raw words 41.0 %",
                 "Balance of the parts", "simclr 0.50", "mlm 0.20", "simclr and mlm -0.37",
                 "60.2", "71.5", "401.2", "0.0612",
                 "text has COLLAPSED: its features span about 2.0 of 128 directions",
                 "beats every baseline in 2 of 2 tasks",
                 "Masked words &amp; 8 documents.", "simclr: 1.20 nats below its blind line"):
        assert text in page, text
    assert page.count("COLLAPSED") == 1
    assert not list(run.glob("*.tmp"))


def test_same_files_give_the_same_bytes(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


@pytest.mark.parametrize("absent", ["scorecard.json", "config.yaml", "environment.json", "metrics.jsonl"])
def test_absent_file_is_said(run: Path, absent: str) -> None:
    (run / absent).unlink()
    said = {"scorecard.json": "Not evaluated yet.", "config.yaml": "No config.yaml", "metrics.jsonl": "No losses",
            "environment.json": "were not recorded"}
    assert said[absent] in write_report(run).read_text()


def test_a_scorecard_of_another_version_is_said(run: Path) -> None:
    """Its rows hold something else."""
    (run / "scorecard.json").write_text(json.dumps({"version": 1, "tasks": {"text.knn": {"trained": 0.3}}}))
    assert "bigssl evaluate</code> makes it again" in (page := write_report(run).read_text()) and "30.0 %" not in page


def test_empty_folder_has_a_report(tmp_path: Path) -> None:
    assert "Nothing recorded yet." in write_report(tmp_path).read_text()


def test_thin_keeps_the_mean_and_the_length() -> None:
    xs = [float(i) for i in range(1000)]
    thin_xs, thin_ys = figures.thin(xs, [2 * x for x in xs], points=50)
    assert len(thin_xs) == 50 and sum(thin_ys) / 50 == pytest.approx(999.0)
    assert figures.thin([1.0], [2.0]) == ([1.0], [2.0])


def test_smooth_is_the_mean_of_the_last_values() -> None:
    assert figures.smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_series_leaves_out_what_is_not_a_number() -> None:
    rows: list[dict[str, float]] = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3},
                                    {"step": 4, "loss": 1.0}]
    assert figures.curve_points(rows, "loss") == ([1, 4], [2.0, 1.0])


def test_parts_of_a_run_with_one_loss_are_not_shown_twice() -> None:
    assert figures.parts([{"step": 1, "loss": 1.0, "loss/mlm": 1.0}]) == ["loss"]
    assert figures.parts([{"step": 1, "loss/b": 1.0, "loss": 1.0, "loss/a": 1.0}]) == ["loss", "loss/b", "loss/a"]


def curved(unit: str, title: str) -> dict[str, Any]:
    points = [(0.01, 9, 0.2, 0.03), (0.1, 90, 0.4, None), (1.0, 900, 0.61, 0.01)]
    curve = [{"fraction": fraction, "samples": samples, "stds": {"trained": std, "random_net": std},
              "means": {"trained": mean, "random_net": mean - 0.1} | ({"raw": 0.5} if unit == "nats" else {})}
             for fraction, samples, mean, std in points]  # fmt: skip
    for point in curve:
        point["stds"] |= {name: 0.0 for name in point["means"] if name == "raw"}  # type: ignore[attr-defined]
    return TASK | {"title": title, "unit": unit, "curve": curve, "std": {"trained": 0.01, "random_net": None}}


def test_the_few_label_curve_has_a_panel_of_each_row_with_its_deviations(run: Path) -> None:
    tasks = {"images": TASK, "linear": curved("share", "linear probe: kind"), "loss": curved("nats", "loss of it")}
    card = json.loads((run / "scorecard.json").read_text()) | {"tasks": tasks, "failed": {"detect": "no <box> there"}}
    (run / "scorecard.json").write_text(json.dumps(card))
    page = write_report(run).read_text()
    assert page.count("<svg") == 7 and "<h2>Few labels</h2>" in page
    figure = figures.curves([tasks["linear"], tasks["loss"]])
    for text, times in (
        ("samples with labels", 2), ("linear probe: kind", 1), ("loss of it", 1), (">9<", 2),
        (">900<", 2), (">trained<", 2), (">random net<", 2), (">raw<", 1), (">%<", 1), (">nats<", 1),
    ):  # fmt: skip
        assert figure.count(text) == times, text
    assert "66.0 ± 1.0 %" in page and "detect failed:</b> no &lt;box&gt; there" in page
    rows = curve_rows(tasks["linear"])
    assert rows == [("samples with labels", "random net", "trained"), ("1 % (9)", "10.0 ± 3.0 %", "20.0 ± 3.0 %"),
                    ("10 % (90)", "30.0 %", "40.0 %"), ("100 % (900)", "51.0 ± 1.0 %", "61.0 ± 1.0 %")]  # fmt: skip
    assert curve_rows(TASK) == [] == curve_rows(tasks["linear"] | {"curve": tasks["linear"]["curve"][:1]})
