"""Stored series cut in two, and windows drawn from either side through the index: no row on both."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.cli.main import main
from bigssl.data.errors import DataError
from bigssl.data.npy import npy_bytes
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.windows import WindowIndex
from bigssl.data.tools.clean import split
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item, json_bytes


def stored(folder: Path, lengths: list[int], facts: dict[str, Any] | None = None) -> DatasetIndex:
    def item(number: int, rows: int) -> Item:
        values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2) + 10_000 * number
        said = {} if facts is None else {"json": json_bytes(facts)}
        return Item(f"k{number}", f"k{number}", lambda: {"npy": npy_bytes(values), **said})

    return pack([item(number, rows) for number, rows in enumerate(lengths)], folder, name="s")[""]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=3), st.integers(1, 60), st.integers(1, 60), st.integers(0, 40),
    st.sampled_from([0.1, 0.25, 0.5]),
)  # fmt: skip
def test_windows_of_two_sides_share_no_row(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], window: int, stride: int, margin: int, share: float
) -> None:
    root = tmp_path_factory.mktemp("h")
    base = stored(root / "d", lengths)
    try:
        parts = split(base, root / "o", ("val", share), cut=True, margin=margin, name="x")
    except DataError as error:
        assert all(rows - round(rows * share) <= margin or round(rows * share) < 1 for rows in lengths), error
        return
    seen: dict[str, dict[str, set[int]]] = {"train": {}, "val": {}}
    for part, index in parts.items():
        for sample in read_in_order(WindowIndex(index, window, stride, short="whole")):
            facts = json.loads(sample.fields["json"])
            values = np.load(io.BytesIO(sample.fields["npy"]))
            rows = values[:, 0].astype(int) % 10_000 // 2  # what it holds, whatever it says
            assert rows.tolist() == list(range(facts["start"], facts["start"] + facts["rows"]))
            seen[part].setdefault(facts["series"], set()).update(rows.tolist())
    assert seen["val"] and seen["train"]
    for series, held in seen["val"].items():
        assert max(seen["train"][series]) + margin < min(held)


def test_the_command_says_when_each_side_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"time": "2024-01-01T00:00:00", "step": 3600, "label": [n % 2 for n in range(100)]}
    stored(tmp_path / "d", [100], facts)
    words = ["shards", "split", str(tmp_path / "d"), str(tmp_path / "o"), "--part", "val=0.2"]
    assert main([*words, "--cut", "--margin", "10"]) == 0
    assert "split by time: val is the last 0.2 of 1 series (from row 80), no row on both" in capsys.readouterr().err
    train, val = (next(read_in_order(DatasetIndex.load(tmp_path / "o" / part))) for part in ("train", "val"))
    assert json.loads(val.fields["json"]) == {
        "series": "k0", "start": 80, "rows": 20, "time": "2024-01-04T08:00:00", "step": 3600,
        "label": [n % 2 for n in range(20)]}  # fmt: skip
    assert np.load(io.BytesIO(train.fields["npy"])).shape == (70, 2)
    assert main([*words[:2], str(tmp_path / "o" / "train"), str(tmp_path / "p"), "--cut"]) == 2
    assert "its samples are pieces of series already" in capsys.readouterr().err
    assert main([*words, "--margin", "10"]) == 2 and "--margin needs --cut" in capsys.readouterr().err


def test_what_is_no_series_is_not_cut(tmp_path: Path) -> None:
    fields = {"npy": npy_bytes(np.zeros((50, 1))), "txt": b"a"}
    for drop, cause in (("npy", "has txt"), ("", "has txt, which no row says"), ("txt", "")):
        items = [Item(f"k{n}", f"k{n}", lambda d=drop: {k: v for k, v in fields.items() if k != d})  # type: ignore[misc]
                 for n in range(2)]  # fmt: skip
        base = pack(items, tmp_path / f"d{drop}", name="s")[""]
        if cause:
            with pytest.raises(DataError, match=f"sample 'k0': --cut needs series, this one {cause}"):
                split(base, tmp_path / "o", ("val", 0.2), cut=True, name="x")
