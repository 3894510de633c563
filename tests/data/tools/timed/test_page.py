"""The section on series of docs/data.md: its commands run, its recipe draws windows, and no row leaks."""

from __future__ import annotations

import io
import json
import re
import shlex
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bigssl.cli.main import main
from bigssl.config.recipe import SourceConfig
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.windows import WindowIndex

PAGE = (Path(__file__).parents[4] / "docs" / "data.md").read_text().split("## Series\n")[1]
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def commands() -> list[list[str]]:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
    return [words for line in block.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


def prices() -> list[str]:
    rng, rows = np.random.default_rng(0), ["date,ticker,close,volume"]
    for ticker in ("AAA", "BBB"):
        days = [datetime(2023, 1, 2) + n * DAY for n in range(200)]
        trading = [day for day in days if day.weekday() < 5 and day != datetime(2023, 4, 7)]
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, len(trading))))
        rows += [f"{day:%Y-%m-%d},{ticker},{price:.4f},{1000 + n}"
                 for n, (day, price) in enumerate(zip(trading, close, strict=True))]  # fmt: skip
    return rows


def sensor() -> list[str]:
    hours = [n for n in range(700) if not 200 <= n < 230]
    return ["time,load,heat", *(f"{datetime(2024, 1, 1) + n * HOUR},{n % 97},{n % 24}" for n in hours)]


def meter(minutes: int, missing: range) -> list[str]:
    times = [n * minutes for n in range(2880 // minutes) if n * minutes not in missing]
    return ["time,power", *(f"{1_704_067_200 + 60 * at},{at}" for at in times)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all commands have run."""
    root = tmp_path_factory.mktemp("page")
    (root / "meters").mkdir()
    files = {"prices.csv": prices(), "sensor.csv": sensor(), "meters/a.csv": meter(1, range(600, 700)),
             "meters/b.csv": meter(5, range(0)), "meters/c.csv": meter(15, range(0))}  # fmt: skip
    for name, lines in files.items():
        (root / name).write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for words in commands():
            assert words[0] == "bigssl" and main([*words[1:], "--jobs", "1"]) == 0, words
    return root


def samples(folder: Path) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    return {s.key: (np.load(io.BytesIO(s.fields["npy"])), json.loads(s.fields["json"]))
            for s in read_in_order(DatasetIndex.load(folder))}  # fmt: skip


def test_returns_are_those_of_numpy(packed: Path) -> None:
    rows = [row.split(",") for row in prices()[1:]]
    both = [samples(packed / "returns" / part) for part in ("train", "val")]
    for ticker in ("AAA", "BBB"):
        close = np.array([float(row[2]) for row in rows if row[1] == ticker])
        wanted = np.diff(np.log(close))
        (train, before), (val, after) = (next(s for key, s in part.items() if ticker in key) for part in both)
        np.testing.assert_allclose(train[:, 0], wanted[: len(train)], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(val[:, 0], wanted[-len(val) :], rtol=1e-4, atol=1e-7)
        assert before["start"] + before["rows"] + 16 == after["start"] and before["step"] == 86400
        assert len(val) == round(0.2 * len(wanted)) and before["uneven"] > 20


def test_windows_of_the_recipe_share_no_row(packed: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    source = SourceConfig.model_validate(yaml.safe_load(block)["data"]["sources"]["it"])
    assert source.url == "sensor/train" and source.windows is not None
    rows: dict[str, set[int]] = {}
    for part in ("train", "val"):
        base = DatasetIndex.load(packed / "sensor" / part)
        index = WindowIndex(base, source.windows.length, source.windows.stride, short=source.windows.short)
        for sample in read_in_order(index):
            facts = json.loads(sample.fields["json"])
            values = np.load(io.BytesIO(sample.fields["npy"]))
            held = range(facts["start"], facts["start"] + 48)
            np.testing.assert_array_equal(values[:, 0], [n % 97 for n in held])  # no gap is inside of a window
            assert values.shape == (48, 6)
            assert datetime.fromisoformat(facts["time"]) == datetime(2024, 1, 1) + facts["start"] * HOUR
            rows.setdefault(part, set()).update(held)
    assert max(rows["train"]) + 48 < min(rows["val"])


def test_meters_of_three_rates_become_one(packed: Path) -> None:
    found = samples(packed / "meters-15")
    assert {facts["step"] for _, facts in found.values()} == {900} and len(found) == 3
    values, _ = found["a"]
    quarters = np.arange(2880).reshape(-1, 15).astype(float)
    there = [[at for at in quarter if at not in range(600, 700)] for quarter in quarters]
    wanted = [np.mean(quarter) if quarter else np.nan for quarter in there]
    np.testing.assert_allclose(values[:, 0], wanted)
    assert np.isnan(values).sum() == 6
