"""Packing: sources, keys, splits, equal bytes, all or nothing; and that webdataset reads what we write."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from written import fill

from bigssl.data.errors import DataError
from bigssl.data.kinds.series import series
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards import tarwalk
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack, split_by_key
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.sources.folder import from_folder
from bigssl.data.tools.sources.tables import Table, from_table
from bigssl.data.tools.sources.ts import from_series, parse_series
from bigssl.data.tools.timed.grid import Regular
from bigssl.data.tools.timed.tally import SeriesCount

# webdataset leaves the files that it has read to the garbage collector
unclosed = pytest.mark.filterwarnings("ignore::ResourceWarning")


def items(fields: dict[str, dict[str, bytes]]) -> list[Item]:
    return [Item(key, key, lambda value=value: value) for key, value in fields.items()]  # type: ignore[misc]


def content(index: DatasetIndex) -> dict[str, dict[str, bytes]]:
    return {sample.key: sample.fields for sample in read_in_order(index)}


def by_webdataset(index: DatasetIndex) -> dict[str, dict[str, bytes]]:
    urls = [shard.url for shard in index.shards]
    reader = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    return {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("__")} for s in reader}


keys = st.from_regex(r"([a-zé]{1,4}/)?[A-Za-zü_ -][A-Za-z0-9ü_ -]{0,8}", fullmatch=True).filter(lambda k: "__" not in k)
samples = st.dictionaries(st.sampled_from(["txt", "jpg", "seg.png"]), st.binary(max_size=1200), min_size=1)


@unclosed
@settings(max_examples=40, deadline=None)
@given(st.dictionaries(keys, samples, min_size=1, max_size=9), st.integers(1, 5), st.booleans())
def test_webdataset_reads_the_same(tmp_path_factory, data: dict, size: int, compress: bool) -> None:
    folder = tmp_path_factory.mktemp("pack") / "x"
    index = pack(items(data), folder, name="x", shard_size=size, compress=compress)[""]
    assert content(index) == by_webdataset(index) == data
    sizes = [min(size, len(data) - begin) for begin in range(0, len(data), size)]
    assert [shard.samples for shard in index.shards] == sizes


@pytest.mark.parametrize("compress", [False, True])
def test_equal_samples_equal_bytes(tmp_path: Path, compress: bool) -> None:
    data = {f"k{i}": {"txt": bytes([i]) * 100} for i in range(20)}
    for name in "ab":
        pack(
            items(data),
            tmp_path / name / "x",
            name="x",
            shard_size=7,
            split=("val", 0.3),
            shuffle=True,
            compress=compress,
        )
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert len(files) > 6
    assert all((tmp_path / "b" / name).read_bytes() == data for name, data in files.items())


def test_tar_headers_are_fixed(tmp_path: Path) -> None:
    index = pack(items({"a": {"txt": b"1"}}), tmp_path / "x", name="x")[""]
    with tarfile.open(index.shards[0].url) as tar:
        (info,) = tar.getmembers()
    assert (info.name, info.mtime, info.uname, info.gname, info.uid) == ("a.txt", 0, "bigssl", "bigssl", 0)


def test_shuffle_is_by_key_and_seed(tmp_path: Path) -> None:
    data = {f"k{i:02d}": {"txt": b""} for i in range(30)}
    order = [
        list(content(pack(items(source), tmp_path / str(n), name="x", shuffle=True, seed=seed)[""]))
        for n, (source, seed) in enumerate([(data, 0), (dict(reversed(data.items())), 0), (data, 1)])
    ]
    assert order[0] == order[1] != order[2]
    assert sorted(order[0]) == sorted(order[2]) == list(data) != order[0]


def test_split_is_a_property_of_the_key() -> None:
    keys = [f"key-{i}" for i in range(20_000)]
    val = {key for key in keys if split_by_key(key, 0.2)}
    assert abs(len(val) / 20_000 - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5
    assert val < {key for key in keys if split_by_key(key, 0.3)}  # growing the share moves none back
    assert val != {key for key in keys if split_by_key(key, 0.2, seed=1)}


def test_groups_stay_together(tmp_path: Path) -> None:
    members = [Item(f"{g}-{v}", f"{g}", lambda: {"txt": b""}) for g in range(100) for v in "ab"]
    parts = {
        name: set(content(index)) for name, index in pack(members, tmp_path / "x", name="x", split=("val", 0.2)).items()
    }
    groups = {name: {key.split("-")[0] for key in keys} for name, keys in parts.items()}
    assert not groups["train"] & groups["val"]
    assert len(parts["train"]) + len(parts["val"]) == 200
    assert 5 < len(groups["val"]) < 40


@pytest.mark.parametrize("key", ["a.b", "", "/a", "../a", "a/../b", "a//b", "__a__/b", "a/", "a/."])
def test_unusable_keys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="cannot name a sample"):
        pack(items({key: {"txt": b""}}), tmp_path / "x", name="x")
    assert not list(tmp_path.iterdir())


def test_repeated_keys_and_empty_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' occurs twice"):
        pack(items({"a": {"txt": b""}}) * 2, tmp_path / "x", name="x")
    with pytest.raises(DataError, match="no samples"):
        pack([], tmp_path / "x", name="x")
    with pytest.raises(DataError, match="no samples for 'val'"):
        pack(items({"a": {"txt": b""}}), tmp_path / "x", name="x", split=("val", 1e-9))
    with pytest.raises(DataError, match="shard size 0"):
        pack(items({"a": {"txt": b""}}), tmp_path / "x", name="x", shard_size=0)


def test_packing_is_all_or_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, bytes]:
        raise OSError(5, "Input/output error", "a.jpg")

    good = items({"a": {"txt": b"1"}})
    index = pack(good, tmp_path / "x", name="x")[""]
    with pytest.raises(DataError, match="exists; .*--overwrite"):
        pack(good, tmp_path / "x", name="x")
    with pytest.raises(DataError, match="'b': a.jpg cannot be read"):
        pack([*good, Item("b", "b", fail)], tmp_path / "x", name="x", overwrite=True)
    assert content(DatasetIndex.load(tmp_path / "x")) == content(index)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    replaced = pack(items({"c": {"txt": b"3"}}), tmp_path / "x", name="x", overwrite=True)[""]
    assert list(content(replaced)) == ["c"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def loaded(found: Sequence[Item]) -> dict[str, dict[str, bytes]]:
    return {item.key: item.load() for item in found}


def test_folders_with_a_pattern(tmp_path: Path) -> None:
    root = fill(tmp_path, {"1945_harry_t.dem.txt": b"speech", "1946_x.rep.txt": b"other"})
    found = loaded(list(from_folder(root, r"(?P<key>(?P<year>\d+)_(?P<name>\w+?)(_t)?)\.(?P<party>\w+)")))
    assert found["1945_harry_t"]["txt"] == b"speech"
    assert json.loads(found["1945_harry_t"]["json"]) == {"year": 1945, "name": "harry", "party": "dem"}
    with pytest.raises(DataError, match=r"1945_harry_t\.dem\.txt' does not match --pattern"):
        list(from_folder(root, r"(?P<key>x)"))
    with pytest.raises(DataError, match="group named `key`"):
        list(from_folder(root, r".*"))


TABLE = Table(
    {"g": "i/{code}.g.jpg", "t": "i/{code}.t.jpg"}, "{code}-{variant}", "{cap}: {tags}", "{code}", ["code"], "design"
)


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_tables_of_pictures_and_captions(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path, {f"i/{c}.{v}.jpg": f"{c}{v}".encode() for c in "ab" for v in "gt"})
    rows = [("code", "cap", "tags"), ("a", 'say "hi"', "x, y"), ("b", "größer", "")]
    table = tmp_path / f"captions{suffix}"
    quote = (lambda v: v) if suffix == ".tsv" else (lambda v: '"' + v.replace('"', '""') + '"')
    table.write_text("\n".join(("\t" if suffix == ".tsv" else ",").join(map(quote, row)) for row in rows) + "\n")
    found = list(from_table(table, tmp_path, TABLE))
    assert [(item.key, item.group) for item in found] == [("a-g", "a"), ("a-t", "a"), ("b-g", "b"), ("b-t", "b")]
    assert found[1].load() == {
        "jpg": b"at",
        "txt": b'say "hi": x, y',
        "json": b'{"code":"a","design":"t"}',
    }
    assert found[2].load()["txt"] == "größer: ".encode()


def test_tables_name_what_is_wrong(tmp_path: Path) -> None:
    table = fill(tmp_path, {"c.tsv": b"code\tcap\na\tb\n"}) / "c.tsv"
    with pytest.raises(DataError, match=r"c\.tsv: no column 'tags'; it has cap, code"):
        list(from_table(table, tmp_path, TABLE))
    with pytest.raises(DataError, match="'a.svg' is no picture"):
        list(from_table(table, tmp_path, Table({"": "{code}.svg"}, "{code}", "", "{code}")))
    (item,) = from_table(table, tmp_path, Table({"": "{code}.jpg"}, "{code}", "", "{code}"))
    with pytest.raises(DataError, match=r"'a': .*a\.jpg cannot be read \(No such file"):
        pack([item], tmp_path / "x", name="x")


def test_series(tmp_path: Path) -> None:
    lines = "#note\n@problemName X\n@classLabel true a b\n@data\n1,2,3:4,5,?:a\n-1e2,0,1:1,1,1:b\n"
    (tmp_path / "X_TRAIN.ts").write_text(lines)
    found = loaded(list(from_series(tmp_path / "X_TRAIN.ts")))
    assert list(found) == ["X_TRAIN-000000", "X_TRAIN-000001"]
    array = series(found["X_TRAIN-000000"]["npy"], non_finite="keep")
    assert (array.dtype, array.shape) == (np.float32, (3, 2))
    np.testing.assert_array_equal(array, np.array([[1, 4], [2, 5], [3, np.nan]], np.float32))
    assert json.loads(found["X_TRAIN-000001"]["json"]) == {"label": "b"}
    assert not np.load(io.BytesIO(found["X_TRAIN-000001"]["npy"])).flags.f_contiguous
    count = SeriesCount()
    (tmp_path / "Z.ts").write_text(lines + "7:?:a\n")
    assert len(list(from_series(tmp_path / "Z.ts", seen=count))) == 3
    assert list(count.lines(Regular())) == ["lengths: 1 to 3 steps, as they are",
                                            "missing: 2 values are NaN, of channel 1 (2)"]  # fmt: skip
    (tmp_path / "Y.ts").write_text("@classLabel false\n@data\n1,2\n")
    assert [set(fields) for fields in loaded(list(from_series(tmp_path / "Y.ts"))).values()] == [{"npy"}]


def test_bad_series_are_named() -> None:
    with pytest.raises(DataError, match=r"f\.ts, line 3: channels of lengths \[1, 2\]"):
        parse_series("f.ts, line 3", "1,2:3:a", True)
    with pytest.raises(DataError, match="line 4: could not convert string to float: 'x'"):
        parse_series("f.ts, line 4", "1,x:a", True)


def test_names_follow_webdatasets_rule() -> None:
    names = ["a.jpg", "a.b.JPG", "x.y/a.jpg", "a/b/c.txt", "README", "a/b", ".hidden", "a/.b", "a.", "x.y/z"]
    for name in names:
        ours = tarwalk.split_name(name)
        key, field = webdataset.tariterators.base_plus_ext(name)
        assert ours == (None if key is None else (key, field.lower())), name
