"""Mixtures keep the promises of a stream: per dataset exactly once an epoch, one order for every world, O(1) resume."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.loading.loader import make_loader
from bigssl.data.order import lanes as lanes_module
from bigssl.data.order.mixture import Mixture
from bigssl.data.order.rng import sample_rng
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex, ShardInfo

WEIGHTS = {"many": 0.6, "few": 0.3, "one": 0.1}


def paper_index(counts: tuple[int, ...], prefix: str = "s") -> DatasetIndex:
    """An index without files: enough for the order."""
    infos = [ShardInfo(f"{prefix}{i}", "", "", n, 1, f"{prefix}{i}", "", ()) for i, n in enumerate(counts)]
    return DatasetIndex("nowhere", infos)


def paper_mixture(counts: dict[str, tuple[int, ...]], weights: dict[str, float], **options: Any) -> Mixture:
    indexes = {name: paper_index(c, name) for name, c in counts.items()}
    with mock.patch.object(lanes_module, "MIXING", options.pop("least", 1)):  # or small datasets have no windows
        return Mixture(indexes, weights, **{"seed": 0} | options)


@pytest.fixture
def mixture(dataset) -> Mixture:
    """Three real datasets with the same keys in each."""
    indexes = {"many": dataset((7, 4, 9)), "few": dataset((5, 3)), "one": dataset((3,))}
    return Mixture(indexes, WEIGHTS, seed=5, lanes=4, window=3, source="mix")


parts = st.dictionaries(
    st.sampled_from("abcde"),
    st.tuples(st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple), st.integers(1, 20)),
    min_size=1,
)


@settings(max_examples=40, deadline=None)
@given(parts, st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**40))
def test_each_dataset_keeps_its_epochs(drawn: dict[str, Any], lanes: int, window: int, seed: int) -> None:
    counts, weights = {n: c for n, (c, _) in drawn.items()}, {n: w for n, (_, w) in drawn.items()}
    mixture = paper_mixture(counts, weights, lanes=lanes, window=window, seed=seed)
    seen: dict[tuple[int, int], list[int]] = {}
    first = np.cumsum([0, *map(sum, counts.values())])
    for position in range(400):
        epoch, number = mixture.locate(position)
        dataset = int(np.searchsorted(first, number, side="right")) - 1
        seen.setdefault((dataset, epoch), []).append(number)
    for (dataset, epoch), numbers in seen.items():
        whole = list(range(first[dataset], first[dataset + 1]))
        assert set(numbers) <= set(whole) and len(set(numbers)) == len(numbers)
        if (dataset, epoch + 1) in seen:
            assert sorted(numbers) == whole


@settings(max_examples=60, deadline=None)
@given(parts, st.integers(1, 30), st.integers(0, 10**12), st.integers(1, 5))
def test_many_positions_are_located_as_one_is(drawn: dict[str, Any], lanes: int, start: int, window: int) -> None:
    counts, weights = {n: c for n, (c, _) in drawn.items()}, {n: w for n, (_, w) in drawn.items()}
    mixture = paper_mixture(counts, weights, lanes=lanes, window=window)
    positions = np.arange(start, start + 60)
    epochs, numbers = mixture.locate_many(positions[::-1])
    assert list(zip(epochs.tolist(), numbers.tolist(), strict=True)) == [mixture.locate(p) for p in positions[::-1]]


@settings(max_examples=60, deadline=None)
@given(parts, st.integers(1, 64), st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 3]), st.integers(0, 50))
def test_ranks_deal_out_the_global_batch(
    drawn: dict[str, Any], lanes: int, world: int, accum: int, step: int
) -> None:
    counts, weights = {n: c for n, (c, _) in drawn.items()}, {n: w for n, (_, w) in drawn.items()}
    mixture, size = paper_mixture(counts, weights, lanes=lanes), 144
    whole = mixture.global_batch(step, size)
    assert sorted(whole) == list(range(step * size, (step + 1) * size))
    for micro in range(accum):
        dealt = [mixture.micro_batch(step, size, rank, world, micro, accum) for rank in range(world)]
        assert np.concatenate(dealt).tolist() == whole[micro::accum].tolist()


def test_ledger_over_worlds(mixture: Mixture) -> None:
    """Keys that were really read over 20 steps of 24: one order for every world, 60/30/10 of 480 samples."""
    ledgers = []
    for world in (1, 2, 3, 4, 8):
        steps = [np.concatenate([mixture.micro_batch(s, 24, r, world, 0, 1) for r in range(world)]) for s in range(20)]
        ledgers.append([[(int(p), mixture.read(int(p)).key) for p in step] for step in steps])
    assert all(ledger == ledgers[0] for ledger in ledgers)
    keys = [key for step in ledgers[0] for _, key in sorted(step)]
    names = [key.split("/")[0] for key in keys]
    assert {name: names.count(name) for name in WEIGHTS} == {"many": 288, "few": 144, "one": 48}
    for name, stream in mixture.parts.items():
        own = [key for key in keys if key.startswith(name + "/")]
        for begin in range(0, len(own) - len(stream) + 1, len(stream)):
            assert len(set(own[begin : begin + len(stream)])) == len(stream)


def test_a_rank_reads_a_piece_of_every_datasets_lanes() -> None:
    """Also where neither weights, lanes nor batch divide one another: the pieces only touch at their edges."""
    counts = {"a": (1000,) * 30, "b": (300,) * 20}
    mixture, world, size = paper_mixture(counts, {"a": 0.73, "b": 0.27}, least=4096), 8, 424
    parts: dict[tuple[int, int], list[float]] = {}
    for step in range(60):
        for rank in range(world):
            datasets, places = mixture.schedule.deal(mixture.micro_batch(step, size, rank, world, 0, 1))
            for dataset, stream in enumerate(mixture.parts.values()):
                found = stream.lanes_at(places[datasets == dataset]) / stream.lanes * world
                parts.setdefault((rank, dataset), []).extend(found)
                assert abs(len(found) - size / world * (0.73, 0.27)[dataset]) < 8
    for (rank, _), found in parts.items():
        assert min(found) >= rank - 0.2 and max(found) < rank + 1.2


@pytest.mark.parametrize("position", [0, 41, 10**9, 10**15])
def test_resume_needs_the_position_only(mixture: Mixture, position: int) -> None:
    before = [mixture.read(p) for p in range(position, position + 30)]
    indexes = {name: DatasetIndex.load(stream.index.url) for name, stream in mixture.parts.items()}
    fresh = Mixture(indexes, WEIGHTS, seed=5, lanes=4, window=3, source="mix")
    assert [fresh.read(p) for p in reversed(range(position, position + 30))] == before[::-1]
    assert [fresh.key(p) for p in range(position, position + 30)] == [sample.key for sample in before]
    assert pickle.loads(pickle.dumps(mixture)).read(position) == before[0]


def test_a_sample_says_where_it_stands(mixture: Mixture) -> None:
    """The same key in two datasets is two keys, and draws two augmentations."""
    samples = [mixture.read(position) for position in range(400)]
    assert [sample.position for sample in samples] == list(range(400))
    assert {sample.source for sample in samples} == {"mix"}
    twins = {s.key: s for s in samples if s.key.endswith("/s-00001") and s.epoch == 2}
    assert set(twins) == {"many/s-00001", "few/s-00001", "one/s-00001"}
    draws = {sample_rng(0, s.epoch, s.key, s.source).random() for s in twins.values()}
    assert len(draws) == 3


def test_seeds_and_datasets_of_one_shape_have_orders_of_their_own() -> None:
    def numbers(seed: int) -> list[list[int]]:
        mixture = paper_mixture({"a": (40,), "b": (40,)}, {"a": 1, "b": 1}, seed=seed)
        found = [mixture.locate(position)[1] for position in range(80)]
        return [[n for n in found if n < 40], [n - 40 for n in found if n >= 40]]

    assert numbers(0)[0] != numbers(0)[1]
    assert numbers(0) != numbers(1)
    assert numbers(0) == numbers(0)


def test_the_fingerprint_tells_data_and_weights_apart() -> None:
    def fingerprint(weights: dict[str, float], first: int = 4) -> str:
        return paper_mixture({"a": (first,), "b": (6,)}, weights).fingerprint

    same = fingerprint({"a": 1, "b": 2})
    assert same == fingerprint({"a": 0.5, "b": 1.0})
    assert len({same, fingerprint({"a": 1, "b": 3}), fingerprint({"a": 1, "b": 2}, first=5)}) == 3


def test_stand_ins_are_of_the_same_dataset_and_epoch() -> None:
    counts = {"a": (6,), "b": (4, 3)}
    strict = paper_mixture(counts, {"a": 2, "b": 1})
    lenient = paper_mixture(counts, {"a": 2, "b": 1}, on_error="skip")
    for position in range(60):
        epoch, number = lenient.locate(position)
        stand_ins = list(lenient.candidates(position))
        found = [lenient.locate(place) for place in stand_ins]
        assert stand_ins[0] == position and list(strict.candidates(position)) == [position]
        assert {e for e, _ in found} == {epoch}
        assert sorted(n for _, n in found) == (list(range(6)) if number < 6 else list(range(6, 13)))


def number_of(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    if sample.key == "few/s-00002":
        raise DataError("field 'txt' is blank")
    return {"number": decode.meta(sample.fields["json"])["number"]}


def load(mixture: Mixture, **options: Any) -> list[tuple[list[str], list[str]]]:
    defaults = {"seed": 0, "rank": 0, "world": 1, "accum": 1, "workers": 0, "start_step": 0, "stop_step": 6}
    loader = make_loader({"mix": mixture}, {"mix": 12}, number_of, dict, **defaults | options, device_pin=False)
    return [(batch.keys["mix"], batch.errors) for batch in loader]


def test_a_bad_sample_is_replaced_from_its_dataset_in_every_world(mixture: Mixture) -> None:
    mixture.on_error = "skip"
    for stream in mixture.parts.values():
        stream.on_error = "skip"
    whole = load(mixture)
    causes = [bad.cause for _, errors in whole for bad in errors]
    assert causes
    assert all("source 'mix'" in error and "'few/s-00002'" in error for error in causes)
    keys = [key for step, _ in whole for key in step]
    assert "few/s-00002" not in keys
    wanted = [mixture.key(int(p)).split("/")[0] for step in range(6) for p in mixture.global_batch(step, 12)]
    assert [key.split("/")[0] for key in keys] == wanted
    for world, workers in itertools.product((2, 3), (0, 1)):
        ranks = [load(mixture, rank=rank, world=world, workers=workers) for rank in range(world)]
        assert [[k for rank in ranks for k in rank[step][0]] for step in range(6)] == [step for step, _ in whole]
    assert load(mixture, start_step=4) == whole[4:]


def test_without_the_policy_it_stops(mixture: Mixture) -> None:
    with pytest.raises(DataError, match="few/s-00002.*blank"):
        load(mixture)


def test_damage_names_the_shard_of_the_dataset(mixture: Mixture) -> None:
    shard = mixture.parts["one"].index.shards[0]
    Path(shard.url).unlink()
    position = mixture.schedule.position(list(mixture.parts).index("one"), 0)
    with pytest.raises(DataError, match=f"{shard.url}.*bigssl shards verify"):
        mixture.read(position)


def test_bad_arguments_are_named() -> None:
    for names, weights in ((("a/b",), {"a/b": 1}), (("",), {"": 1}), (("a",), {"b": 1}), (("a", "b"), {"a": 1})):
        with pytest.raises(DataError, match="mixture: datasets"):
            paper_mixture(dict.fromkeys(names, (4,)), weights)
    with pytest.raises(DataError, match="mixture: weights"):
        paper_mixture({"a": (4,), "b": (4,)}, {"a": 1, "b": 0})
    with pytest.raises(DataError, match="source 'mix'.*multiple of .* 2 × 2"):
        paper_mixture({"a": (4,)}, {"a": 1}, source="mix").micro_batch(0, 10, 0, 2, 0, 2)
