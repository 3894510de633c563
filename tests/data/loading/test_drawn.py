"""`more`: another sample of the same dataset, never the sample itself, the same wherever a sample is prepared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.loading.ledger import StepKeys
from bigssl.data.loading.loader import Batch, Loader, MicroBatches, make_loader
from bigssl.data.order.mixture import Mixture
from bigssl.data.order.order import Order, position_beside
from bigssl.data.order.rng import sample_rng
from bigssl.data.order.sequential import SequentialIndex, SequentialStream
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex

COUNTS = (5, 1, 13, 2, 8, 8)


def with_negatives(sample: Sample, rng: np.random.Generator, more: Any) -> dict[str, Any]:
    """Two draws, the second after another number and through `use`."""
    first = more(rng)
    return {"itself": sample.key, "at": rng.random(), "first": first.key, "first_epoch": first.epoch,
            "second": more(rng, lambda drawn: decode.text(drawn.fields["txt"]))}  # fmt: skip


def loader(stream: Order, prepare: Any = with_negatives, size: int = 12, **options: Any) -> Loader:
    given = {"rank": 0, "world": 1, "accum": 1, "workers": 0, "start_step": 0, "stop_step": 7, **options}
    return make_loader({"": stream}, {"": size}, prepare, dict, seed=0, device_pin=False, **given)


def rows(batches: Iterator[Batch] | Loader) -> list[tuple[Any, ...]]:
    """Prepared samples one by one: the fields of `with_negatives` in their order."""
    found: list[tuple[Any, ...]] = []
    for batch in batches:
        columns = [batch.data[""][name] for name in ("itself", "at", "first", "first_epoch", "second")]
        found += zip(*(column.tolist() if isinstance(column, Tensor) else column for column in columns), strict=True)
        assert [row[0] for row in found[-len(columns[0]) :]] == batch.keys[""]
    return found


def mixed(dataset: Any, **options: Any) -> Mixture:
    indexes = {"many": dataset((7, 4, 9)), "few": dataset((5, 3)), "two": dataset((2,))}
    return Mixture(indexes, {"many": 0.6, "few": 0.3, "two": 0.1}, seed=5, lanes=4, window=3, source="mix", **options)


def beside(order: Order, position: int, until: int) -> list[int]:
    """By looking at every position: those of the same dataset and epoch, rising."""

    def dataset(place: int) -> str:
        return order.key(place).rpartition("/")[0]

    mine = dataset(position), order.locate(position)[0]
    return [p for p in range(until) if p != position and (dataset(p), order.locate(p)[0]) == mine]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100), st.sets(st.integers(0, 29), max_size=8), st.integers(0, 2**32))
def test_a_place_is_drawn_from_the_list_of_those_that_are_left(
    size: int, position: int, taken: set[int], seed: int
) -> None:
    first = position - position % size
    without = {first + place for place in taken if place < size}
    left = [place for place in range(first, first + size) if place != position and place not in without]
    if not left:
        with pytest.raises(DataError, match=f"holds {size} samples, of which none is left"):
            position_beside(position, size, np.random.default_rng(seed), without)
        return
    drawn = position_beside(position, size, np.random.default_rng(seed), without)
    assert drawn == left[int(np.random.default_rng(seed).integers(len(left)))]


def test_every_other_sample_of_the_epoch_is_as_likely_and_the_sample_itself_never_comes(dataset) -> None:
    stream, rng = Stream(dataset((5, 1, 3)), seed=2), np.random.default_rng(0)
    for position in (0, 4, 8, 9, 22):
        counts = Counter(stream.key(stream.another(position, rng)) for _ in range(800))
        assert counts.keys() == {f"s-{i:05d}" for i in range(9)} - {stream.key(position)}
        assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 30  # chi² of 7 degrees: 1 in 10,000


def test_batches_are_those_of_a_dict_of_samples(dataset) -> None:
    """The slow truth: all positions in a list, all samples in a dict; over epochs, and for a mixture."""
    index = dataset(COUNTS)
    for order, until in ((Stream(index, seed=3, lanes=4, window=3, source="s"), 111), (mixed(dataset), 400)):
        keys = {position: order.key(position) for position in range(until)}
        expected = []
        for position in np.concatenate([order.global_batch(step, 12) for step in range(7)]).tolist():
            epoch = order.locate(position)[0]
            rng = sample_rng(0, epoch, keys[position], order.source)
            others = beside(order, position, until)
            first = keys[others[int(rng.integers(len(others)))]]
            at = float(np.float32(rng.random()))
            second = keys[others[int(rng.integers(len(others)))]]
            expected.append((keys[position], at, first, epoch, f"text of {second.rpartition('/')[2]}"))
        assert rows(loader(order)) == expected
        assert all(key != first for key, _, first, _, _ in expected)


@pytest.mark.parametrize("kind", ["stream", "mixture"])
def test_ranks_workers_passes_and_resumes_see_the_same(dataset, kind: str) -> None:
    order = Stream(dataset(COUNTS), seed=3, lanes=4, window=3) if kind == "stream" else mixed(dataset)
    whole = rows(loader(order))
    assert rows(loader(order, workers=2)) == whole
    assert rows(loader(order, start_step=3)) == whole[36:]
    ranks = [rows(loader(order, rank=rank, world=2, workers=rank)) for rank in (0, 1)]
    assert [row for step in range(7) for rank in ranks for row in rank[6 * step : 6 * step + 6]] == whole
    assert sorted(rows(loader(order, accum=3))) == sorted(whole)


def damage(index: DatasetIndex, *numbers: int) -> list[str]:
    """Change a byte of the text of these samples; their keys."""
    keys = []
    for number in numbers:
        shard, key, members = index.entry(number)
        content = bytearray(Path(shard.url).read_bytes())
        content[members["txt"].offset] ^= 1
        Path(shard.url).write_bytes(content)
        keys.append(key)
    return keys


def test_another_is_drawn_for_a_bad_one_which_is_counted(dataset) -> None:
    index = dataset((4, 5))
    bad = damage(index, 1, 6)
    stream = Stream(index, seed=3, source="img", on_error="skip")
    batches = list(loader(stream, size=9, stop_step=20))
    seen = rows(batches)
    assert len(seen) == 180 and not {name for row in seen for name in row} & {*bad, *(f"text of {key}" for key in bad)}
    assert all(key != first and second != f"text of {key}" for key, _, first, _, second in seen)
    found = {(error.source, error.sample) for batch in batches for error in batch.errors}
    assert found == {("", "1"), ("", "6")}  # by number: the same whether a batch met it or a sample drew it
    # Each epoch meets the two once as samples of its own. What comes on top was drawn:
    assert sum(len(batch.errors) for batch in batches) > 2 * 20
    again = list(loader(stream, size=9, stop_step=20, workers=2))
    assert rows(again) == seen and [batch.errors for batch in again] == [batch.errors for batch in batches]


def test_the_error_names_the_sample_and_what_it_drew(dataset) -> None:
    index = dataset((4, 5))
    (bad,) = damage(index, 6)
    stream = Stream(index, seed=3, source="img")
    places = [p for p in range(9) if stream.key(p) != bad]
    for place in places:
        sample = stream.read(place)
        batches = MicroBatches({"": stream}, {"": 1}, drawing(bad, stream), dict, 0, 0, 1, 1)
        with pytest.raises(DataError) as caught:
            batches.samples(place, 0)
        assert re.match(
            rf"source 'img', shard {sample.shard}, sample '{sample.key}': it drew shard \S*{index.entry(6)[0].name}, "
            rf"sample '{bad}', byte \d+: field 'txt' differs from its checksum.*; run `bigssl shards verify",
            str(caught.value),
        )


class Chosen(np.random.Generator):
    """A generator whose next whole number is chosen."""

    number = 0

    def integers(self, *_: Any, **__: Any) -> Any:
        return self.number


def drawing(key: str, stream: Stream, use: Any = None) -> Any:
    """A prepare that draws the sample `key` (what it draws then, where it may not have that, is the next one)."""

    def prepare(sample: Sample, rng: np.random.Generator, more: Any) -> dict[str, Any]:
        chosen = Chosen(np.random.PCG64(0))
        first = sample.position - sample.position % len(stream)
        place = next(p for p in range(first, first + len(stream)) if stream.key(p) == key)
        chosen.number = min(place - first - (place > sample.position), len(stream) - 3)
        return {"drew": more(chosen, use).key if use else more(chosen).key}

    return prepare


def test_what_cannot_be_used_is_the_fault_of_the_drawn_sample(dataset) -> None:
    """Of `use`; what a task decodes by itself is blamed on the sample that drew, whose error names the other."""

    def fussy(sample: Sample) -> Sample:
        if sample.key == "s-00003":
            raise DataError("field 'txt' is blank")
        return sample

    stream = Stream(dataset((9,)), seed=3, source="img", on_error="skip")
    where = next(p for p in range(9) if stream.key(p) == "s-00003")
    place = (where + 4) % 9
    batches = MicroBatches({"": stream}, {"": 1}, drawing("s-00003", stream, fussy), dict, 0, 0, 1, 1)
    samples, errors = batches.samples(place, 0)
    assert samples[""][0][0] == stream.key(place) and samples[""][0][1]["drew"] not in ("s-00003", stream.key(place))
    assert [error.sample for error in errors] == ["3"] and "sample 's-00003': field 'txt' is blank" in errors[0].cause

    def careless(sample: Sample, rng: np.random.Generator, more: Any) -> dict[str, Any]:
        if sample.position == place:
            assert drawing("s-00003", stream)(sample, rng, more)["drew"] == "s-00003"
            fussy(stream.read(where))
        return {}

    _, errors = MicroBatches({"": stream}, {"": 1}, careless, dict, 0, 0, 1, 1).samples(place, 0)
    drew = r"which drew shard shard-000.tar, sample 's-00003': field 'txt' is blank$"
    assert re.search(f"sample '{stream.key(place)}', {drew}", errors[0].cause)


def test_where_nothing_is_left_to_draw_the_run_ends(dataset) -> None:
    """It is no fault of the sample: none stands in for it, whatever the policy."""
    index = dataset((3,))
    damage(index, 1, 2)
    for on_error, most, words in (
        ("skip", 100, "the dataset holds 3 samples, of which none is left; the last bad one: .*sample 's-0000[12]'"),
        ("skip", 0, "1 that it drew are bad, data.max_errors allows 0"),
        ("raise", 0, "it drew .*sample 's-0000[12]'"),
    ):
        stream = Stream(index, seed=3, source="img", on_error=on_error, max_errors=most)
        place = next(p for p in range(3) if stream.key(p) == "s-00000")
        batches = MicroBatches({"": stream}, {"": 1}, with_negatives, dict, 0, 0, 1, 1)
        with pytest.raises(DataError, match=rf"^source 'img', shard shard-000.tar, sample 's-00000': .*{words}"):
            batches.samples(place, 0)


def test_one_sample_and_a_source_without_an_index_are_refused(dataset, tmp_path: Path) -> None:
    one = Stream(dataset((1,)), seed=0, source="img", on_error="skip")
    with pytest.raises(DataError, match="sample 's-00000': no further sample can be drawn: the dataset holds 1 sample"):
        list(loader(one, size=1, stop_step=1))
    index = dataset((4,))
    (tar,) = Path(index.url).glob("*.tar")
    passing = SequentialStream(SequentialIndex(str(tar), 4), seed=0, source="img")
    with pytest.raises(DataError, match=r"source 'img'.*\.tar is read from front to back, .*run `bigssl shards index`"):
        list(loader(passing, size=2, stop_step=1))


def test_a_replay_skips_what_the_run_skips(dataset) -> None:
    index = dataset((4, 5))
    damage(index, 1, 6)
    stream = Stream(index, seed=3, source="img", on_error="skip")
    replayed = StepKeys(MicroBatches({"": stream}, {"": 4}, with_negatives, dict, 0, 0, 2, 1), check=True)
    for rank in (0, 1):
        for step, batch in enumerate(loader(stream, size=4, rank=rank, world=2)):
            again = replayed(2 * step + rank)
            assert isinstance(again, Batch) and (again.keys, again.errors) == (batch.keys, batch.errors)


def test_a_wait_for_a_drawn_sample_is_named(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(dataset(COUNTS), seed=3, source="img")
    told = loader(stream, size=1, stop_step=1)
    stages, said, read = told.stages, list[str](), stream.read

    def reading(position: int) -> Sample:
        said.append(stages.describe(0))
        return read(position)

    def prepare(sample: Sample, rng: np.random.Generator, more: Any) -> dict[str, Any]:
        drawn = more(rng)
        said.append(f"{drawn.shard} {stages.describe(0)}")
        return {}

    monkeypatch.setattr(stream, "read", reading)
    told.batch.__self__.prepare = prepare  # type: ignore[attr-defined]
    list(told)
    assert said[0].startswith("reading shard ")
    drawn = said[2].split()[0]
    assert re.fullmatch(rf"reading a drawn sample of shard \S*{drawn} of source '' for 0 s", said[1])
    assert re.match(r"\S+ preparing sample 's-\d+' of shard ", said[2])
