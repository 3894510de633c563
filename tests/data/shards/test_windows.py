"""Windows of long series through the index: against slices of the whole array; each once an epoch; few bytes read;
every damage found."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.loading.loader import make_loader
from bigssl.data.npy import npy_bytes
from bigssl.data.order.stream import SampleReader, Stream
from bigssl.data.shards.blocks import PART, PartSums, joined_crc, sums_in
from bigssl.data.shards.index import DatasetIndex, build_index
from bigssl.data.shards.storage import RangeReader
from bigssl.data.shards.windows import WindowIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item, json_bytes
from bigssl.data.tools.verify import verify


def series(rows: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, channels)).astype(np.float32)


def stored(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any] | None = None, **options: Any
           ) -> DatasetIndex:  # fmt: skip
    def item(key: str) -> Item:
        said = {} if facts is None else {"json": json_bytes({**facts, "series": key})}
        return Item(key, key, lambda: {"npy": npy_bytes(arrays[key]), **said})

    return pack(map(item, arrays), folder, name="s", **options)[""]


def read(index: DatasetIndex) -> list[tuple[np.ndarray, dict[str, Any], str]]:
    reader = SampleReader(index)
    found = [reader.read(number) for number in range(len(index))]
    reader.close()
    return [(np.load(io.BytesIO(s.fields["npy"])), json.loads(s.fields["json"]), s.key) for s in found]


@given(st.binary(max_size=5 * PART), st.lists(st.integers(0, 3000), max_size=4))
def test_checksums_of_parts_join_to_that_of_the_whole(data: bytes, cuts: list[int]) -> None:
    sums, begin = PartSums(), 0
    for cut in [*sorted(cuts), len(data)]:  # however it comes
        sums.add(data[begin:cut])
        begin = max(begin, cut)
    parts = sums_in(sums.text()).tolist()
    assert parts == [zlib.crc32(data[at : at + PART]) for at in range(0, len(data), PART)]
    lengths = [len(data[at : at + PART]) for at in range(0, len(data), PART)]
    assert joined_crc(zip(parts, lengths, strict=True)) == zlib.crc32(data)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=4), st.integers(1, 300), st.none() | st.integers(1, 300),
    st.integers(1, 4), st.sampled_from(["<f4", "<f8", "<i2", ">f4"]), st.sampled_from(["drop", "whole"]), st.booleans(),
)  # fmt: skip
def test_windows_are_slices_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, stride: int | None, channels: int,
    dtype: str, short: str, flat: bool,
) -> None:  # fmt: skip
    arrays = {f"k{n}": (series(rows, channels, n) * 100).astype(dtype) for n, rows in enumerate(lengths)}
    arrays = {key: values[:, 0].copy() if flat else values for key, values in arrays.items()}
    base = stored(tmp_path_factory.mktemp("w") / "d", arrays, shard_size=2)
    if short == "drop" and max(lengths) < length:
        with pytest.raises(DataError, match="are shorter than a window"):
            WindowIndex(base, length, stride, short=short)
        return
    index = pickle.loads(pickle.dumps(WindowIndex(base, length, stride, short=short)))
    covered: dict[str, Counter[int]] = {key: Counter() for key in arrays}
    for values, facts, key in read(index):
        rows = range(facts["start"], facts["start"] + facts["rows"])
        assert key == f"{facts['series']}@{facts['start']:06d}" and values.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(values, arrays[facts["series"]][rows.start : rows.stop])
        assert len(values) == min(length, len(arrays[facts["series"]]))
        covered[facts["series"]].update(rows)
    for key, values in arrays.items():
        if (len(values) >= length or short == "whole") and (stride or length) <= length:
            assert set(covered[key]) == set(range(len(values)))
        if len(values) < length:
            assert bool(covered[key]) == (short == "whole")
    assert len({index.row(number)[1].key for number in range(len(index))}) == len(index)


def test_few_bytes_are_read_beside_those_of_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = stored(tmp_path / "d", {"year": series(40_000, 7), "more": series(20_000, 7, 1)})
    taken: list[int] = []
    real = RangeReader.read

    def counted(self: RangeReader, url: str, offset: int, length: int) -> bytes:
        taken.append(length)
        return real(self, url, offset, length)

    monkeypatch.setattr(RangeReader, "read", counted)
    index = WindowIndex(base, 512, 256)
    opening = sum(taken)
    taken.clear()
    needed = sum(values.nbytes for values, _, _ in read(index))
    assert needed == len(index) * 512 * 7 * 4 and len(taken) == len(index)
    assert (sum(taken) + opening) / needed <= 1.05
    taken.clear()
    index = WindowIndex(base, 96, 61)
    read(index)
    assert sum(taken) / (len(index) * 96 * 7 * 4) <= 1.2


def test_an_epoch_is_every_window_once_on_any_ranks_and_workers(tmp_path: Path) -> None:
    index = WindowIndex(stored(tmp_path / "d", {f"k{n}": series(925, 3, n) for n in range(3)}, shard_size=1), 50, 25)
    stream = Stream(index, seed=3, source="s")
    size = 12
    steps = len(index) // size

    def run(world: int, workers: int, start: int = 0) -> list[list[str]]:
        ranks = [
            [batch.keys[""] for batch in make_loader(
                {"": stream}, {"": size}, lambda *_: {"n": 1}, dict, seed=0, rank=rank, world=world, accum=1,
                workers=workers, start_step=start, stop_step=steps, device_pin=False)]
            for rank in range(world)
        ]  # fmt: skip
        return [[key for keys in step for key in keys] for step in zip(*ranks, strict=True)]

    ledger = run(1, 0)
    keys = [key for step in ledger for key in step]
    assert sorted(keys) == sorted(index.row(number)[1].key for number in range(len(index)))
    assert run(3, 2) == ledger and run(2, 0, start=4) == ledger[4:]
    positions = [stream.another(7, np.random.default_rng(n)) for n in range(20)]
    assert 7 not in positions and len({stream.key(position) for position in positions}) > 5
    assert stream.fingerprint != Stream(WindowIndex(index._base, 50, 24), seed=3).fingerprint


def test_a_window_says_where_and_when_it_is(tmp_path: Path) -> None:
    facts = {"time": "2024-02-28T23:00:00Z", "step": 1800, "start": 100, "label": [n % 2 for n in range(10)], "unit": 3}
    index = WindowIndex(stored(tmp_path / "a", {"k": series(10)}, facts), 4, 3)
    said = [facts for _, facts, _ in read(index)]
    assert said[1] == {"series": "k", "start": 103, "rows": 4, "time": "2024-02-29T00:30:00Z", "step": 1800,
                       "label": [1, 0, 1, 0], "unit": 3}  # fmt: skip
    uneven = WindowIndex(stored(tmp_path / "b", {"k": series(10)}, {**facts, "uneven": 2}), 4, 3)
    assert ["time" in facts for _, facts, _ in read(uneven)] == [True, False, False]


def test_every_flipped_byte_is_found_by_the_windows_that_hold_it(tmp_path: Path) -> None:
    base = stored(tmp_path / "d", {"k": series(3000)})
    index = WindowIndex(base, 100)
    tar = Path(base.shards[0].url)
    member = base.row(0)[1].members["npy"]
    data = bytearray(tar.read_bytes())
    data[member.offset + 128 + 1234 * 12] ^= 1
    tar.write_bytes(data)
    reader, bad = SampleReader(index), []
    for number in range(len(index)):
        try:
            reader.read(number)
        except DataError as error:
            bad.append(number)
            assert "sample 'k@001" in str(error) and "differs from its checksum" in str(error)
    assert 12 in bad and set(bad) <= {11, 12, 13}  # a window is read with the rest of the parts at its ends
    tar.write_bytes(data[: member.offset + 20_000])
    with pytest.raises(DataError, match="truncated"):
        SampleReader(index).read(29)
    data[member.offset + 3] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"sample 'k', byte 512: it differs from its checksum"):
        WindowIndex(base, 100)


@pytest.mark.parametrize(
    ("arrays", "facts", "options", "cause"),
    [
        ({"a": series(5), "b": series(50)}, None, {}, "1 of 2 series are shorter than a window of 10 rows, 'a' has 5"),
        ({"a": series(50).reshape(50, 3, 1)}, None, {}, r"series is float32\[50, 3, 1\]"),
        ({"a": np.asfortranarray(series(50))}, None, {}, "stored column by column"),
        ({"a": np.array(["x"] * 50)}, None, {}, "numbers of shape"),
        ({"a": series(50)}, {"label": ["long"] * 200_000}, {}, "its json has 1[0-9]* bytes"),
        ({"a": series(50)}, None, {"compress": True}, "out of a compressed shard; pack it without --compress"),
    ],
)
def test_what_cannot_be_read_by_rows_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any] | None, options: dict[str, Any], cause: str
) -> None:
    base = stored(tmp_path / "d", arrays, facts, **options)
    with pytest.raises(DataError, match=cause):
        WindowIndex(base, 10)


def test_series_of_two_rates_are_refused_unless_they_are_meant(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    parts = [stored(tmp_path / name, {name: series(50)}, {"step": step}) for name, step in (("a", 60), ("b", 3600))]
    tars = []
    for part, index in zip("ab", parts, strict=True):
        tars.append(Path(index.shards[0].url).rename(tmp_path / "d" / f"{part}.tar"))
    both = build_index(tars, tmp_path / "d")
    with pytest.raises(DataError, match="mixed sampling rates: 'a' has a row every 60 s, 'b' every 3600 s"):
        WindowIndex(both, 10)
    assert len(WindowIndex(both, 10, mixed=True)) == 10


def test_an_index_without_sums_of_parts_is_sound_but_has_no_windows(tmp_path: Path) -> None:
    base = stored(tmp_path / "d", {"k": series(3000)})
    sidecar = Path(base.shards[0].index_url)
    head, line = sidecar.read_text().splitlines()
    row = json.loads(line)
    row[4] = {name: values[:3] for name, values in row[4].items()}
    sidecar.write_text(f"{head}\n{json.dumps(row)}\n")
    old = DatasetIndex.load(base.shards[0].url)  # by its sidecar
    assert not list(verify(base.shards[0].url))
    with pytest.raises(DataError, match="without checksums of parts.*run `bigssl shards index"):
        WindowIndex(old, 10)


@pytest.mark.parametrize(("time", "later"), [
    ("2020-12-31T23:00:00+02:00", "2021-01-01T01:00:00+02:00"), ("2020-12-31 23:00", "2021-01-01T01:00:00"),
    ("2020-12-31T23:00:00.5Z", "2021-01-01T01:00:00.5Z"), ("yesterday", None), ("9999-12-31", None),
])  # fmt: skip
def test_times_that_others_wrote_keep_their_offset_or_are_left_out(
    tmp_path: Path, time: str, later: str | None
) -> None:
    base = stored(tmp_path / "d", {"a": series(40)}, {"time": time, "step": 3600 if later else 1e11})
    _, (_, facts, _), *_ = read(WindowIndex(base, 2))
    assert facts.get("time") == later


def test_rates_of_one_key_in_two_shards_are_compared(tmp_path: Path) -> None:
    for step in (1, 60):
        stored(tmp_path / f"{step}", {"a": series(40)}, {"step": step})
    tars = [shutil.move(next((tmp_path / f"{step}").glob("*.tar")), tmp_path / f"{step}.tar") for step in (1, 60)]
    with pytest.raises(DataError, match="mixed sampling rates"):
        WindowIndex(build_index(tars, tmp_path / "both"), 2)
