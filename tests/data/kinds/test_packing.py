"""Every text stands in exactly one row, whole, and the rows are few."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.kinds.packing import best_fit, pack_rows, split_rows
from bigssl.data.loading.collate import Ragged, collate


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Looks at every row for every item."""
    rows: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        left = [capacity - sum(lengths[i] for i in row) for row in rows]
        fits = [(room, number) for number, room in enumerate(left) if room >= lengths[item]]
        if fits:
            rows[min(fits)[1]].append(item)
        else:
            rows.append([item])
    return rows


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))))
def test_best_fit(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    rows = best_fit(lengths, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= capacity for row in rows)
    assert rows == slow_best_fit(lengths, capacity)
    assert len(rows) <= 11 / 9 * np.ceil(sum(lengths) / capacity) * 2 + 1


def test_best_fit_fills_rows_that_can_be_filled() -> None:
    assert best_fit([3, 7, 5, 5], 10) == [[1, 0], [2, 3]]
    assert best_fit([], 10) == []
    with pytest.raises(DataError, match="item 1 has 11 tokens, a row 10"):
        best_fit([1, 11], 10)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=30), st.integers(12, 30))
def test_rows_hold_the_texts(sizes: list[int], length: int) -> None:
    begins = np.cumsum([0, *sizes])
    texts = [
        {"ids": torch.arange(begin, begin + size) + 1, "labels": -torch.arange(begin, begin + size)}
        for begin, size in zip(begins[:-1].tolist(), sizes, strict=True)
    ]
    packed = pack_rows(texts, length, {"ids": 0, "labels": -100})
    assert {(tuple(rows.shape), rows.dtype) for rows in packed.values()} == {
        ((len(packed["ids"]), length), torch.int64)
    }
    found = []
    for row in range(len(packed["ids"])):
        segments = packed["segments"][row]
        for segment in range(1, int(segments.max()) + 1):
            inside = segments == segment
            places = inside.nonzero().squeeze(1)
            assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1))
            assert packed["positions"][row][inside].tolist() == list(range(int(inside.sum())))
            assert torch.equal(packed["labels"][row][inside], 1 - packed["ids"][row][inside])
            found.append(packed["ids"][row][inside].tolist())
        outside = segments == 0
        assert not packed["ids"][row][outside].any() and not packed["positions"][row][outside].any()
        assert (packed["labels"][row][outside] == -100).all()
    assert sorted(found) == [text["ids"].tolist() for text in texts]


def test_no_text_gives_an_empty_row() -> None:
    packed = pack_rows([], 4, {"ids": 7})
    assert packed["ids"].tolist() == [[7] * 4] and not packed["segments"].any()


def test_ragged_fields_come_apart_as_they_were() -> None:
    pieces = [[[1, 2], [3]], [[4, 5, 6]]]
    samples = [
        {
            "ids": Ragged(np.concatenate(document)),
            "twice": Ragged(2 * np.concatenate(document)),
            "sizes": Ragged(np.array([len(piece) for piece in document])),
        }
        for document in pieces
    ]
    found = split_rows(collate(samples), "sizes")
    assert [piece["ids"].tolist() for piece in found] == [[1, 2], [3], [4, 5, 6]]
    assert [piece["twice"].tolist() for piece in found] == [[2, 4], [6], [8, 10, 12]]
