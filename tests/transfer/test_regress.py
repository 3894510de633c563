"""Real values from frozen features: as scikit-learn has it on the same features, and what is refused."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from bigssl.data.errors import DataError
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.transfer.discovery import discover_evaluations
from bigssl.transfer.features import encoder, view_batches
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.scorecard import score

PICTURE = runpy.run_path(str(Path(__file__).parent / "made" / "regress.py"))["_item"]


@pytest.fixture
def data(tmp_path: Path, make_model: Any) -> Path:
    runpy.run_path(str(Path(__file__).parent / "made" / "regress.py"))["make"](tmp_path)
    export_run(tmp_path, {"image": make_model("resnet").eval()}, {"image": ImageInput(16)}, {}, {})
    return tmp_path


def section(data: Path, **changes: Any) -> dict[str, Any]:
    found = {"task": "regress", "train": str(data / "train"), "queries": str(data / "val"), "label": "levels",
             "seeds": 1, "fractions": [1.0], "l2": [2.0]}  # fmt: skip
    return {"mine": TypeAdapter(discover_evaluations()["regress"]).validate_python(found | changes)}


def test_rows_are_those_of_scikit_learn_on_the_same_features(data: Path, make_model: Any) -> None:
    card = score(data, section(data), seed=0)["tasks"]
    encode, known = encoder(make_model("resnet").eval(), "cpu"), {}
    for part in ("train", "val"):
        batches = list(view_batches(read_in_order(DatasetIndex.load(str(data / part))), ImageInput(16), batch=9))
        vectors = torch.cat([encode(each.arrays) for each in batches]).double().numpy()
        known[part] = vectors, np.array([meta["levels"] for each in batches for meta in each.meta])
    (x, y), (asked, truth) = known["train"], known["val"]
    varies = x.std(0) > 1e-6 * np.abs(x).max(0)
    x, asked = ((each - x.mean(0))[:, varies] / x.std(0)[varies] for each in (x, asked))
    want = (truth - y.mean(0)) / y.std(0)
    said = Ridge(alpha=2.0).fit(x, (y - y.mean(0)) / y.std(0)).predict(asked)
    assert card["mine/mse"]["trained"] == pytest.approx(mean_squared_error(want, said), rel=1e-3)
    assert card["mine/mae"]["trained"] == pytest.approx(mean_absolute_error(want, said), rel=1e-3)
    assert card["mine/r2"]["trained"] == pytest.approx(r2_score(want, said), rel=1e-3)
    assert card["mine/mse"]["blind"] == pytest.approx(np.square(want).mean(), rel=1e-5)
    assert card["mine/r2"]["raws"]["raw pixels"] > 0.95 and -0.2 < card["mine/r2"]["blind"] <= 0


def packed(folder: Path, values: list[Any]) -> str:
    rng = np.random.default_rng(0)

    def fields(number: int, value: Any) -> dict[str, bytes]:
        found: dict[str, bytes] = PICTURE(str(number), rng).load()
        return {"png": found["png"], "json": json.dumps({"levels": value}).encode()}

    pack([Item(str(n), str(n), lambda n=n, v=v: fields(n, v)) for n, v in enumerate(values)], folder, name="x")
    return str(folder)


def test_what_is_no_number_is_refused(data: Path, tmp_path: Path) -> None:
    for number, (changes, words) in enumerate((
        ({"label": "age"}, "sample 'train-000': no metadata field 'age'; it has levels"),
        ({"train": [1, "2.5", [3]]}, ""),  # text of a number, and a list of one, are numbers
        ({"train": [1, "tall"]}, "levels is 'tall'; allowed: a finite number, or a list of them"),
        ({"train": [1, True]}, "levels is 'True'; allowed: a finite number"),
        ({"train": [1, []]}, "levels is '[]'; allowed: a finite number"),
        ({"train": [[1, 2], [3, 4]]}, "value 'levels': lists of 1 and 2 numbers; allowed: as many of each sample"),
        ({"train": [7, 7, 7]}, "value 'levels': is 7 in all 3 samples of train; allowed: values that differ"),
    )):  # fmt: skip
        if "train" in changes:
            shards = packed(tmp_path / f"train-{number}", changes["train"])  # type: ignore[arg-type]
            changes = {"train": shards, "queries": packed(tmp_path / f"val-{number}", [1.0, 2.0])}
        if not words:
            score(data, section(data, **changes), seed=0)
            continue
        with pytest.raises(DataError, match=re.escape(words)):
            score(data, section(data, **changes), seed=0)
