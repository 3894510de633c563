"""Long series: put together from windows, marked, scaled, and never judged before what was learnt from."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.data.shards.index import build_index
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.rows import from_csv
from bigssl.data.tools.timed.windows import Windows
from bigssl.transfer.bench import Bench
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.steps.series import (
    LongSeries,
    Scale,
    long_enough,
    long_series_of,
    period_of,
    read_long_series,
    refuse_later,
)
from bigssl.transfer.subjects import Live
from bigssl.transfer.team import AgreedError, Team


def npy(values: Any, kind: Any = np.float32) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, kind))
    return buffer.getvalue()


def sample(fields: dict[str, bytes], **meta: Any) -> Sample:
    return Sample("one", fields | {"json": json.dumps(meta).encode()}, 0, 0, "part-0.tar", "")


def bench(scratch: Scratch) -> Bench:
    return Bench(Team(), scratch, Live([]), "cpu", where="evaluate.mine")


@pytest.mark.parametrize("stride", [3, 7, 10])  # overlapping, at the end too; with rows between that nobody has
def test_windows_of_a_long_series_are_put_together_again(stride: int, tmp_path: Path, scratch: Scratch) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2)).round(3)
    table = tmp_path / "long.csv"
    odd = rows[:, 0] > 1
    table.write_text("a,odd,b\n" + "\n".join(f"{a},{int(mark)},{b}" for (a, b), mark in zip(rows, odd, strict=True)))
    how = Windows(window=7, stride=stride, held_out=0.3, marks="odd")
    pack(from_csv(table, "long", how), tmp_path / "shards", name="x", split=("val", 0.3), shuffle=True)
    found = {part: read_long_series(bench(scratch), str(tmp_path / "shards" / part), limit=None, field=part, channels=2,
                              label="label") for part in ("train", "val")}  # fmt: skip
    held = [row for part in found.values() for line in part for row in range(line.start, line.stop)]
    want = {row for first, stop in ((0, 35), (35, 50)) for begin in how.begins(stop - first)
            for row in range(first + begin, first + begin + 7)}  # fmt: skip
    assert sorted(held) == sorted(want) and (stride > 7 or want == set(range(50)))
    assert [len(part) for part in found.values()] == ([1, 1] if stride <= 7 else [4, 2])
    for line in (line for part in found.values() for line in part):
        np.testing.assert_array_equal(line.values, rows[line.start : line.stop].astype(np.float32))
        assert line.name == "long" and (line.marks == odd[line.start : line.stop]).all()
    refuse_later("evaluate.mine", found["train"], found["val"])
    with pytest.raises(
        AgreedError, match=r"evaluate.mine.queries: rows 0 to \d+ of series 'long', of which rows up to"
    ):
        refuse_later("evaluate.mine", found["val"], found["train"])


def test_samples_that_name_no_series_are_whole_ones_whatever_their_keys(tmp_path: Path, scratch: Scratch) -> None:
    """Two machines that count their files from 0 are not one."""
    made = np.arange(6 * 9, dtype=np.float32).reshape(6, 9, 1)
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        paths = [tmp_path / part / f"{shard}.tar" for shard in (0, 1)]
        for path, group in zip(paths, np.split(made, 2), strict=True):
            with webdataset.TarWriter(str(path), encoder=False) as tar:
                for number, values in enumerate(group):
                    tar.write({"__key__": f"{number:03d}", "npy": npy(values), "json": b"{}"})
        build_index(paths, tmp_path / part)
    train, val = (read_long_series(bench(scratch), str(tmp_path / part), limit=None, field=part, channels=1)
                  for part in ("train", "val"))  # fmt: skip
    np.testing.assert_array_equal([line.values for line in train], made)
    assert len({line.name for line in train}) == 6, "each is a group of its own"
    refuse_later("evaluate.mine", train, val)
    named = LongSeries(train[0].name, 0, made[0])
    refuse_later("evaluate.mine", train, [named])
    refuse_later("evaluate.mine", [named], val)


def test_marks_are_a_list_in_the_json() -> None:
    values = {"npy": npy(np.zeros((4, 1)))}
    found = long_series_of(sample(values, odd=[0, 1, True, 0.0]), 1, "odd")
    assert found.marks is not None and found.marks.tolist() == [False, True, True, False]
    for meta, words in (
        ({"odd": [0]}, "no marks of its steps, label in its json; that has odd"),
        ({"label": [0, 1, 0]}, "label: marks of 3 steps for a series of 4; allowed: one for each step"),
        ({"label": [0, 1, 2, 0]}, "label: a mark is 2; allowed: 0 and 1"),
        ({"label": "Standing"}, "label in its json is 'Standing'; allowed: a list of 0 and 1"),
    ):
        with pytest.raises(DataError, match="part-0.tar, sample 'one': " + re.escape(words)):
            long_series_of(sample(values, **meta), 1, "label")
    with pytest.raises(DataError, match="sample 'one': series of 1 channels; this backbone takes 2"):
        long_series_of(sample(values), 2)


def test_channels_are_scaled_by_what_was_observed() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(400, 3)) * [1, 20, 0] + [0, 1e6, 3]).astype(np.float32)
    values[::7, 0] = np.nan
    lines = [LongSeries("a", 0, values[:150]), LongSeries("b", 0, values[150:])]
    scale = Scale.of("evaluate.mine.train", lines)
    whole = np.concatenate([scale(line) for line in lines])
    np.testing.assert_allclose(np.nanmean(whole, 0), 0, atol=0.02)
    np.testing.assert_allclose(np.nanstd(whole, 0), [1, 1, 0], atol=0.01)  # one that does not vary stays as it is
    values[:, 2] = np.nan
    with pytest.raises(AgreedError, match=r"evaluate.mine.train: channel 2 has no finite value; leave it out"):
        Scale.of("evaluate.mine.train", lines)


def test_short_series_are_counted_and_refused_where_there_are_no_others(scratch: Scratch) -> None:
    at, lines = bench(scratch), [LongSeries("a", 0, np.zeros((9, 1))), LongSeries("b", 0, np.zeros((10, 1)))]
    assert [line.name for line in long_enough(at, lines, 10, field="train", need="8 and 2")] == ["b"]
    assert at.notes == ["evaluate.mine.train: 1 of 2 series are shorter than 10 steps (8 and 2) and are left out."]
    with pytest.raises(
        AgreedError, match=r"queries: 2 series, the longest of 10 steps; allowed: 11 or more \(8 and 3\)"
    ):
        long_enough(at, lines, 11, field="queries", need="8 and 3")


def test_the_period_is_where_a_series_repeats_itself() -> None:
    steps, rng = np.arange(500)[:, None], np.random.default_rng(0)
    noise = rng.normal(size=(500, 2))
    wave = np.sin(2 * np.pi * steps / 24) + 0.5 * np.sin(2 * np.pi * steps / 12) + 0.3 * noise
    wave[5::11, 1] = np.nan
    assert period_of([wave[:200], wave[200:]], 96) == 24
    assert period_of([noise], 96) is None and period_of([np.zeros((30, 1))], 10) is None
    assert period_of([wave], 20) != 24
