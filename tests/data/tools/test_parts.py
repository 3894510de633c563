"""Splits by time: brute force over rows says that none is on both sides, and that none is left out that need not be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.tools.parts import by_time, equal_together
from bigssl.data.tools.sources.base import Item, Stretch
from bigssl.data.tools.timed.windows import Windows

FRACTIONS = st.sampled_from([0.05, 0.1, 0.2, 1 / 3, 0.5, 0.75, 0.9])


def items(series: str, pieces: list[tuple[int, int]]) -> list[Item]:
    return [Item(f"{series}-{n}", series, dict, stretch=Stretch(series, *piece)) for n, piece in enumerate(pieces)]


def rows(found: list[Item]) -> set[int]:
    return {row for item in found if item.stretch for row in range(item.stretch.start, item.stretch.stop)}


def grid(how: Windows, length: int) -> list[tuple[int, int]]:
    """Windows that were cut before anybody thought of a split."""
    return [(begin, min(how.window or length, length - begin)) for begin in how.begins(length)]


@given(st.integers(1, 120), st.integers(1, 30), st.none() | st.integers(1, 40), FRACTIONS)
@example(100, 10, 1, 0.1)
def test_windows_that_are_cut_for_a_split_use_every_row(length, window, stride, fraction) -> None:
    """Both sides hold what windows of a series that ends there would hold."""
    how = Windows(window=window, stride=stride, held_out=fraction)
    held = min(round(length * fraction), length - 1)
    assume(min(held, length - held) >= window)
    train, val = by_time(items("x", how.pieces(length)), "val", fraction).parts.values()
    assert not rows(train) & rows(val)
    assert max(rows(train)) == length - held - 1 and max(rows(val)) == length - 1 and min(rows(val)) == length - held
    assert {item.stretch.rows for item in (*train, *val) if item.stretch} == {window}
    if stride is None or stride <= window:
        assert rows(train) | rows(val) == set(range(length))


@given(st.integers(1, 120), st.integers(1, 30), st.none() | st.integers(1, 40), FRACTIONS)
@example(100, 10, 1, 0.1)
@example(100, 40, None, 0.7)
def test_windows_that_are_there_are_parted_without_a_row_on_both_sides(length, window, stride, fraction) -> None:
    """Nothing is left out but windows that begin too early to be held out and share rows with those that are."""
    found = items("x", grid(Windows(window=window, stride=stride), length))
    last = [item for item in found if item.stretch and item.stretch.start >= length - held_out(length, fraction)]
    before = rows(last)
    sound = [item for item in found if item not in last and not rows([item]) & before
             and item.stretch and item.stretch.stop <= min(before)] if last else []  # fmt: skip
    if not last or not sound:
        with pytest.raises(DataError, match=r"fewer than a window of \d+; choose"):
            by_time(found, "val", fraction)
        return
    divided = by_time(found, "val", fraction)
    assert divided.parts == {"train": sound, "val": last}
    across = len(found) - len(sound) - len(last)
    assert (f"left out: {across} samples with rows of both sides" in divided.said) == (across > 0)
    for item in found:
        if item not in sound and item not in last:
            assert rows([item]) & rows(last)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=3), st.none() | st.integers(1, 8),
    st.integers(1, 9), st.integers(0, 8), FRACTIONS, st.booleans(),
)  # fmt: skip
@example([(7, 1)], 2, 1, 3, 0.5, False)  # the side before the margin would hold no window
@example([(2, 1), (9, 2), (5, 1)], 2, 2, 6, 0.8, True)
def test_a_margin_lies_between_the_sides_whatever_was_left_out(lengths, window, stride, margin, fraction, drop) -> None:
    stretches, at = [], 0
    for rows_, gap in lengths:
        stretches.append((at, at + rows_))
        at += rows_ + gap
    how = Windows(window=window, stride=stride if window else None, held_out=fraction, margin=margin)
    pieces = how.pieces(stretches)
    pieces = [each for each in pieces if not drop or each[1] >= (window or 1)]
    assume(pieces)
    try:
        parts = by_time([replace(item, margin=margin) for item in items("x", pieces)], "val", fraction).parts
    except DataError:
        return
    assert not parts["train"] or max(rows(parts["train"])) + margin < min(rows(parts["val"]))


def held_out(length: int, fraction: float) -> int:
    return min(round(length * fraction), length - 1)


def test_each_series_is_parted_by_its_own_time_and_short_ones_are_trained_on() -> None:
    how = Windows(window=10, held_out=0.2)
    found = [*items("long", how.pieces(100)), *items("short", how.pieces(25)), *items("other", how.pieces(50))]
    divided = by_time(found, "val", 0.2)
    held = [(item.stretch.series, item.stretch.start) for item in divided.parts["val"] if item.stretch]
    assert held == [("long", 80), ("long", 90), ("other", 40)]
    assert divided.parts["train"] == [item for item in found if item not in divided.parts["val"]]
    assert "last 0.2 of 2 series, no row on both sides; 1 more, too short for both sides, are in train" in divided.said


@pytest.mark.parametrize(
    ("length", "fraction", "message"),
    [
        (100, 0.05, "val=0.05: of 'x', the longest series, it is 5 of 100 rows, fewer than a window of 10; "
                    "choose val=0.1 or more, or parts made of whole series"),
        (15, 0.9, "what it leaves is 1 of 15 rows, fewer than a window of 10; choose a smaller --window"),
        (8, 0.5, "it is 4 of 8 rows, fewer than a window of 8; choose a smaller --window"),
    ],
)  # fmt: skip
def test_a_series_that_is_too_short_says_what_would_do(length: int, fraction: float, message: str) -> None:
    how = Windows(window=10, held_out=fraction)
    with pytest.raises(DataError) as raised:
        by_time(items("x", how.pieces(length)), "val", fraction)
    assert message in str(raised.value)


@given(st.integers(20, 5000), st.integers(1, 400))
def test_the_fraction_that_is_advised_does(length: int, window: int) -> None:
    assume(window * 2 <= length)
    with pytest.raises(DataError) as raised:
        by_time(items("x", Windows(window=window, held_out=1e-6).pieces(length)), "val", 1e-6)
    advised = float(str(raised.value).partition("choose val=")[2].partition(" ")[0])
    assume(advised < 0.5)
    divided = by_time(items("x", Windows(window=window, held_out=advised).pieces(length)), "val", advised)
    assert divided.parts["val"] and not rows(divided.parts["train"]) & rows(divided.parts["val"])


def groups(*samples: tuple[str, str, dict[str, bytes]]) -> dict[str, str]:
    items = [Item(key, group, lambda fields=fields: fields) for key, group, fields in samples]
    forth, back = ({item.key: item.group for item in equal_together(each)} for each in (items, items[::-1]))
    assert forth == back
    return forth


def test_equal_pictures_are_one_group_whatever_is_said_of_them_and_groups_stay_whole() -> None:
    found = groups(
        ("a", "a", {"jpg": b"1", "txt": b"one"}), ("b", "b", {"png": b"1", "json": b"{}", "mask.png": b"4"}),
        ("c", "C", {"jpg": b"2"}), ("d", "C", {"jpg": b"1"}), ("e", "e", {"jpg": b"3", "txt": b"one"}),
        ("f", "f", {"txt": b"one", "json": b"1"}), ("g", "g", {"txt": b"one"}),
    )  # fmt: skip
    assert found == dict.fromkeys("abcd", "C") | {"e": "e", "f": "f", "g": "f"}
