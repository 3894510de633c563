"""Series of csv files: whole, by a column, in windows; against what numpy reads, with every row in some window."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.sources.rows import from_csv
from bigssl.data.tools.sources.ts import from_series
from bigssl.data.tools.timed.windows import Windows


def array(item: Item) -> np.ndarray:
    fields = item.load()
    assert set(fields) <= {"npy", "json"}
    values = np.load(io.BytesIO(fields["npy"]))
    assert values.dtype == np.float32
    return values


def table(path: Path, values: np.ndarray, head: str = "") -> Path:
    np.savetxt(path, values, delimiter=",", fmt="%.6g", header=head, comments="")
    return path


VALUES = np.random.default_rng(0).normal(size=(11, 3)).round(3)


@pytest.mark.parametrize("head", ["", "time,x,y"])
def test_a_file_is_a_series(tmp_path: Path, head: str) -> None:
    (item,) = from_csv(table(tmp_path / "a.csv", VALUES, head), "sub/a", Windows())
    assert (item.key, item.group) == ("sub/a", "sub/a")
    np.testing.assert_array_equal(array(item), VALUES.astype(np.float32))


def test_columns_are_chosen_and_ordered(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", VALUES, "time,x,y")
    (item,) = from_csv(path, "a", Windows(columns=["y", "x"]))
    np.testing.assert_array_equal(array(item), VALUES[:, [2, 1]].astype(np.float32))
    (item,) = from_csv(table(tmp_path / "b.csv", VALUES), "b", Windows(columns=["1"]))
    np.testing.assert_array_equal(array(item), VALUES[:, [1]].astype(np.float32))


def test_windows(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", VALUES, "a,b,c")
    found = list(from_csv(path, "a", Windows(window=4, stride=3)))
    assert [item.key for item in found] == ["a-000000", "a-000001", "a-000002", "a-000003"]
    assert {item.group for item in found} == {"a"}
    for item, begin in zip(found, (0, 3, 6, 7), strict=True):
        np.testing.assert_array_equal(array(item), VALUES[begin : begin + 4].astype(np.float32))
    (short,) = from_csv(path, "a", Windows(window=20))
    assert (short.key, len(array(short))) == ("a-000000", 11)


@given(st.integers(1, 60), st.integers(1, 20), st.none() | st.integers(1, 20))
def test_windows_leave_no_row_out(rows: int, window: int, stride: int | None) -> None:
    begins = Windows(window=window, stride=stride).begins(rows)
    covered = {row for begin in begins for row in range(begin, min(begin + window, rows))}
    assert begins == sorted(set(begins))
    assert all(begin + window <= rows for begin in begins) or begins == [0]
    if stride is None or stride <= window:
        assert covered == set(range(rows))
    assert max(covered) == rows - 1


def test_series_by_a_column(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_bytes(b'\xef\xbb\xbfwho,t,v\r\np1,0,1\r\np1,1,2\r\n\r\np1,2,3\r\n"p,2",0,?\r\n"p,2",1,5\r\n')
    found = list(from_csv(path, "long", Windows(by="who", columns=["v"])))
    assert [item.key for item in found] == ["long-p1", "long-p,2"]
    np.testing.assert_array_equal(array(found[0]), np.array([[1], [2], [3]], np.float32))
    np.testing.assert_array_equal(array(found[1]), np.array([[np.nan], [5]], np.float32))
    windows = list(from_csv(path, "long", Windows(by="who", window=2)))
    assert [(item.key, item.group) for item in windows] == [
        ("long-p1-000000", "long-p1"),
        ("long-p1-000001", "long-p1"),
        ("long-p,2-000000", "long-p,2"),
    ]
    np.testing.assert_array_equal(array(windows[1]), np.array([[1, 2], [2, 3]], np.float32))


def test_a_column_of_marks_is_a_label_of_the_rows_and_no_channel(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("v,odd\n1,0\n\n2,1\n3,1.0\n")
    (whole,) = from_csv(path, "a", Windows(marks="odd"))
    first, last = from_csv(path, "a", Windows(window=2, marks="odd"))
    np.testing.assert_array_equal(array(whole), np.array([[1], [2], [3]], np.float32))
    assert json.loads(whole.load()["json"]) == {"label": [0, 1, 1]}
    said = [json.loads(item.load()["json"]) for item in (first, last)]
    assert [(each["start"], each["rows"], each["label"]) for each in said] == [(0, 2, [0, 1]), (1, 2, [1, 1])]
    assert first.stamp() != next(iter(from_csv(path, "a", Windows(window=2)))).stamp()
    path.write_text("v,odd\n1,0\n2,maybe\n")
    with pytest.raises(DataError, match=r"long.csv, line 3: could not convert string to float: 'maybe'"):
        next(from_csv(path, "a", Windows(marks="odd"))).load()
    path.write_text("v,odd\n1,0\n2,\n")
    with pytest.raises(DataError, match=r"long.csv, line 3: '' in the column of --label; allowed: 0 and 1"):
        next(from_csv(path, "a", Windows(marks="odd"))).load()
    with pytest.raises(DataError, match="--label odd and the class 'walk' of its folder would both be `label`"):
        next(from_csv(path, "a", Windows(marks="odd"), "walk"))
    with pytest.raises(DataError, match="--label v: is also in --columns or --by"):
        Windows(columns=["v"], marks="v")


@pytest.mark.parametrize(
    ("content", "how", "cause"),
    [
        ("a,b\n1,2\n", Windows(columns=["c"]), "no column 'c'; it has a, b"),
        ("a,b\n1,2\n", Windows(by="c"), "line 2: no column 'c'; columns are a, b"),
        ("a,b\n", Windows(), "no rows, so no series"),
        ("", Windows(), "no rows, so no series"),
        ("a,b\n1,2\n", Windows(marks="c"), "no column 'c'; it has a, b"),
    ],
)
def test_what_cannot_be_a_series_is_named(tmp_path: Path, content: str, how: Windows, cause: str) -> None:
    (tmp_path / "f.csv").write_text(content)
    with pytest.raises(DataError, match=rf"f\.csv.*{cause}"):
        list(from_csv(tmp_path / "f.csv", "f", how))


@pytest.mark.parametrize("row", ["x,2", "1", "1,2,3", "1_0,2", '"1,2', "2020-01-01,3"])
def test_cells_that_are_no_numbers_are_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "f.csv").write_text(f"a,b\n1,2\n{row}\n")
    (item,) = from_csv(tmp_path / "f.csv", "f", Windows())
    with pytest.raises(DataError, match=r"f\.csv, line 3: .*--columns"):
        item.load()


@pytest.mark.parametrize("cell", ['"1\n"', '"\n1"', '"1\n\n"', '"\n \n1"'])
@pytest.mark.parametrize("how", [Windows(), Windows(window=2), Windows(window=3)])
def test_a_cell_with_a_line_break_never_shifts_rows(tmp_path: Path, cell: str, how: Windows) -> None:
    (tmp_path / "f.csv").write_text(f"a,b\n0,0\n{cell},1\n2,2\n3,3\n")
    line = 3 + cell.count("\n")
    message = rf"f\.csv, line [3-{line}]: (a cell holds a line break|unexpected end|.* cells)"
    with pytest.raises(DataError, match=message):
        for item in from_csv(tmp_path / "f.csv", "f", how):
            item.load()


@pytest.mark.parametrize("blank", ["", " ", "\t \t", "\x0b", "\r"])
@pytest.mark.parametrize("columns", [1, 2])
def test_blank_lines_are_no_rows(tmp_path: Path, blank: str, columns: int) -> None:
    rows = [",".join([str(number)] * columns) for number in range(5)]
    (tmp_path / "f.csv").write_bytes("\n".join(["a,b"[: 2 * columns - 1], *rows[:2], blank, *rows[2:], blank]).encode())
    for how, expected in ((Windows(), [range(5)]), (Windows(window=2), [(0, 1), (2, 3), (3, 4)])):
        found = [array(item)[:, 0].tolist() for item in from_csv(tmp_path / "f.csv", "f", how)]
        assert found == [list(part) for part in expected]


def test_bad_windows_are_refused() -> None:
    with pytest.raises(DataError, match="--window 0: 1 or more rows"):
        Windows(window=0)
    with pytest.raises(DataError, match="--stride 2: has no effect without --window"):
        Windows(stride=2)


def test_ts_files_are_read_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text("@classLabel true x\n@data\n1,2:x\n\n3,4:y\n")
    found = list(from_series(tmp_path / "a.ts", "sub/a"))
    assert [item.key for item in found] == ["sub/a-000000", "sub/a-000001"]
    np.testing.assert_array_equal(np.load(io.BytesIO(found[1].load()["npy"])), np.array([[3], [4]], np.float32))
    assert found[0].stamp is not None and found[1].stamp is not None
    assert found[0].stamp() != found[1].stamp()
