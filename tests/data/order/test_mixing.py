"""A batch is a fair sample of the data, however it was packed: a promise with a number, on class-sorted data."""

from __future__ import annotations

import math
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.order import lanes
from bigssl.data.order.mixing import (
    PROMISED,
    drawn,
    entropies,
    labelled,
    mixing,
    packed,
    random_entropy,
    sampled_steps,
    worst_mixing,
)
from bigssl.data.order.mixture import Mixture
from bigssl.data.order.order import Order
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex, ShardInfo


def paper_index(counts: list[int], prefix: str = "s") -> DatasetIndex:
    """An index without files: enough for the order."""
    infos = [ShardInfo(f"{prefix}{i}", "", "", n, 1, f"{prefix}{i}", "", ()) for i, n in enumerate(counts)]
    return DatasetIndex("nowhere", infos)


def cut(samples: int, shards: int) -> list[int]:
    """`samples` in that many shards, two sizes of them."""
    return np.diff(np.linspace(0, samples, shards + 1).astype(int)).tolist()


def layouts(counts: list[int], kinds: int) -> dict[str, np.ndarray]:
    """Classes of samples that were packed class by class (equal or unequal ones), in turn, or sorted in each shard."""
    total, sizes = sum(counts), np.repeat(counts, counts)
    numbers = np.arange(total)
    inside = numbers - np.repeat(np.cumsum(counts) - counts, counts)
    rare = (np.arange(1, kinds + 1) ** -1.2).cumsum()
    return {
        "sorted": numbers * kinds // total,
        "unequal": np.searchsorted(rare / rare[-1] * total, numbers, side="right"),
        "in turn": numbers % kinds,
        "sorted shards": inside * kinds // sizes,
    }


def seams(order: Order, size: int) -> np.ndarray:
    """Steps that hold the end of an epoch and the beginning of the next."""
    return np.array([epoch * len(order) // size for epoch in range(1, 4 + 4096 // size)])


@settings(max_examples=12, deadline=None)
@given(
    st.floats(math.log(500), math.log(1_000_000)), st.floats(math.log(16), math.log(4096)), st.integers(1, 300),
    st.sampled_from([2, 3, 10, 100, 1000]), st.sampled_from([1, 2, 7, 24, 100, 256, 1000, 4096, 5000, 6144, 10**6]),
    st.sampled_from([1, 3, 64, 1024, 10**6]), st.integers(0, 2**40),
)  # fmt: skip
def test_batches_are_as_mixed_as_random_ones(
    samples: float, size: float, shards: int, kinds: int, lanes: int, window: int, seed: int
) -> None:
    """On average over epochs, and over the batches that hold the end of one and the beginning of the next."""
    total = round(math.exp(samples))
    counts, batch = cut(total, min(shards, total)), min(round(math.exp(size)), total // 2)
    order = Stream(paper_index(counts), seed=seed, lanes=lanes, window=window)
    for steps in (sampled_steps(order, batch), seams(order, batch)):
        batches = drawn(order, batch, steps)
        for name, classes in layouts(counts, min(kinds, total // 4)).items():
            found = mixing(order, batches, labelled(order, classes))
            assert found >= PROMISED, (name, found, len(steps))


@pytest.mark.parametrize(
    ("total", "kinds", "batch"), [(533, 3, 24), (3000, 10, 16), (3000, 10, 64), (50_000, 100, 64), (10**6, 1000, 4096)]
)
@pytest.mark.parametrize("shards", [1, 40])
def test_data_sorted_by_class_is_stratified(total: int, kinds: int, batch: int, shards: int) -> None:
    """What the first version gave: .57, .30, .72, .86 and less; a batch of it was a contiguous part of the list."""
    order = Stream(paper_index(cut(total, shards)), seed=0)
    classes = np.arange(total) * kinds // total
    batches = drawn(order, batch, sampled_steps(order, batch))
    assert mixing(order, batches, labelled(order, classes)) > 0.995
    if kinds < batch:
        assert (entropies(classes[batches]) > 0.7 * math.log(kinds)).all()  # each batch, not only their mean


@pytest.mark.parametrize("batch", [16, 100, 1024])
def test_mixtures_of_sorted_datasets_are_mixed(batch: int) -> None:
    """Each dataset by itself: their shares are those of the weights."""
    counts = {"a": cut(20_000, 30), "b": cut(3000, 7), "c": [900]}
    indexes = {name: paper_index(c, name) for name, c in counts.items()}
    order = Mixture(indexes, {"a": 0.6, "b": 0.3, "c": 0.1}, seed=4, lanes=16, window=5)
    classes = np.concatenate([np.arange(sum(c)) * 10 // sum(c) + 10 * i for i, c in enumerate(counts.values())])
    assert mixing(order, drawn(order, batch, sampled_steps(order, batch)), labelled(order, classes)) >= PROMISED
    assert worst_mixing(order, batch) >= PROMISED


@pytest.mark.parametrize("fault", ["contiguous lanes", "no coins", "two lanes", "lanes in step"])
def test_the_number_sees_what_would_spoil_it(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Each part of the order is needed: without it, one of the layouts is badly mixed."""
    window = 1024
    if fault == "contiguous lanes":
        monkeypatch.setattr(lanes, "spread_lanes", lambda lanes, *_: np.arange(lanes))
    elif fault == "no coins":
        monkeypatch.setattr(lanes.rng, "words", lambda key, numbers: np.zeros(np.shape(numbers), np.uint64))
    elif fault == "two lanes":
        monkeypatch.setattr(lanes, "MIXING", 2)
    else:
        words = lanes.rng.words
        monkeypatch.setattr(lanes.rng, "words", lambda key, n: words(key, n) * np.uint64(len(n) != 4096))
        window = 1
    counts = [409_600 // 64] * 64
    order = Stream(paper_index(counts), seed=0, lanes=2, window=window)
    batches = drawn(order, 64, sampled_steps(order, 64))
    found = {name: mixing(order, batches, labelled(order, c)) for name, c in layouts(counts, 10).items()}
    assert min(found.values()) < 0.9, found


def test_plain_reading_is_seen_to_be_unmixed() -> None:
    order = Stream(paper_index([1000] * 8), seed=0)
    found = np.arange(8000).reshape(-1, 40)
    assert mixing(order, found, labelled(order, np.arange(8000) // 800)) < 0.05
    assert min(mixing(order, found, classes) for classes in packed(order)) < 0.05


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(lambda c: sum(c) > 1), st.integers(1, 40))
def test_the_entropy_of_random_batches_is_exact(sizes: list[int], size: int) -> None:
    """Against 3,000 random batches; beyond the samples, each comes once before any comes twice."""
    members, random = np.repeat(np.arange(len(sizes)), sizes), np.random.default_rng(0)
    whole, rest = divmod(size, len(members))
    batches = np.stack([np.concatenate([*[members] * whole, random.permutation(members)[:rest]]) for _ in range(3000)])
    found = entropies(batches)
    assert random_entropy(np.array(sizes), size, size) == pytest.approx(found.mean(), abs=5 * found.std() / 50 + 1e-9)


def test_entropies_are_those_of_a_counter() -> None:
    batches = np.random.default_rng(1).integers(0, 5, (20, 17))
    slow = [-sum(n / 17 * math.log(n / 17) for n in Counter(row).values()) for row in batches.tolist()]
    assert entropies(batches) == pytest.approx(slow)


def test_packed_classes_are_counted() -> None:
    """Sizes of the assumed classes are those that their samples have, also with empty shards and small datasets."""
    indexes: dict[str, Any] = {"a": paper_index([0, 70, 0, 3], "a"), "b": paper_index([30], "b")}
    order = Mixture(indexes, {"a": 1, "b": 1}, seed=0)
    for classes in packed(order):
        found = np.bincount(classes.of(np.arange(103)), minlength=sum(map(len, classes.sizes)))
        assert found.tolist() == np.concatenate(classes.sizes).tolist()


def test_the_table_is_printed_by_a_command_that_can_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mixing.py", "--batch", "64"])
    command = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks/mixing.py"))
    command["DATASETS"][2:] = []
    assert command["main"]() == 0
    assert "kept" in capsys.readouterr().out
    command["main"].__globals__["PROMISED"] = 1.5
    assert command["main"]() == 1
    assert "BROKEN" in capsys.readouterr().out
