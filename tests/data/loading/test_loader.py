"""Micro-batches do not depend on workers or history; bad samples follow the policy; workers end with the run."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from typing import Any

import numpy as np
import pytest
import torch

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.loading.loader import Batch, Loader, make_loader
from bigssl.data.order.order import More
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample

COUNTS = (5, 1, 13, 2, 8, 8)
AUGMENT = SimClrAugment(16)


def two_views(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    image = decode.picture_array(sample.fields["jpg"])
    return {"a": AUGMENT(image, rng), "b": AUGMENT(image, rng), "at": sample.position, "draw": float(rng.random())}


def numbers(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    return {"number": decode.meta(sample.fields["json"])["number"], "draw": rng.random()}


def fussy(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    if sample.key in ("s-00003", "s-00004", "s-00020"):
        raise DataError("field 'jpg' is blank")
    return numbers(sample, rng, more)


def make(streams: Any, size: int, prepare: Any = numbers, **options: Any) -> Loader:
    streams = streams if isinstance(streams, dict) else {"": streams}
    defaults: dict[str, Any] = {
        "seed": 0,
        "rank": 0,
        "world": 1,
        "accum": 1,
        "workers": 0,
        "start_step": 0,
        "stop_step": 4,
    }
    sizes = dict.fromkeys(streams, size)
    return make_loader(streams, sizes, prepare, dict, **defaults | {"device_pin": False} | options)


def flat(batches: Any) -> list[Any]:
    return [
        (batch.keys, batch.errors, {s: {k: v.tolist() for k, v in d.items()} for s, d in batch.data.items()})
        for batch in batches
    ]


def test_workers_give_identical_tensors(dataset) -> None:
    stream = Stream(dataset(COUNTS, pictures=True), seed=2, lanes=8, source="img")
    runs = [flat(make({"img": stream}, 12, two_views, workers=workers, accum=2, stop_step=3)) for workers in (0, 1, 3)]
    assert len(runs[0]) == 6
    assert runs[0] == runs[1] == runs[2]
    views = runs[0][0][2]["img"]
    assert np.shape(views["a"]) == (6, 3, 16, 16)
    assert views["a"] != views["b"]


def test_resume_gives_the_rest(dataset) -> None:
    stream = Stream(dataset(COUNTS), seed=2)
    whole = flat(make(stream, 12, accum=2, stop_step=8))
    for start in range(9):
        assert flat(make(stream, 12, accum=2, start_step=start, stop_step=8)) == whole[2 * start :]
    assert flat(make(stream, 12, accum=2, start_step=5, stop_step=8, workers=3)) == whole[10:]


def test_randomness_belongs_to_the_sample(dataset) -> None:
    """The draw of a sample in an epoch is the same on any rank and batch size, and differs between epochs and seeds."""
    stream = Stream(dataset((8,)), seed=1)

    def draws(size: int, steps: int, seed: int = 0) -> dict[tuple[int, int], float]:
        found = {}
        for step, batch in enumerate(make(stream, size, seed=seed, stop_step=steps)):
            for number, draw in zip(batch.data[""]["number"], batch.data[""]["draw"], strict=True):
                found[(step * size // 8, int(number))] = float(draw)
        return found

    small = draws(2, 8)
    assert small == draws(4, 4) == draws(8, 2)
    assert len(set(small.values())) == 16
    assert small != draws(8, 2, seed=1)


def test_sources_keep_their_own_epochs(dataset) -> None:
    streams = {"a": Stream(dataset((4,)), seed=0, source="a"), "b": Stream(dataset((6,)), seed=0, source="b")}
    batches = list(make_loader(streams, {"a": 4, "b": 2}, numbers, dict, seed=0, rank=0, world=1, accum=1, workers=0,
                               start_step=0, stop_step=3, device_pin=False))  # fmt: skip
    assert all(sorted(batch.data["a"]["number"].tolist()) == [0, 1, 2, 3] for batch in batches)
    assert sorted(n for batch in batches for n in batch.data["b"]["number"].tolist()) == list(range(6))


def test_skipping_is_deterministic_and_counted(dataset) -> None:
    stream = Stream(dataset(COUNTS), seed=3, lanes=4, on_error="skip", max_errors=5)
    runs = [flat(make(stream, 12, fussy, workers=workers, stop_step=3)) for workers in (0, 2)]
    assert runs[0] == runs[1]
    errors = [bad.cause for _, errors, _ in runs[0] for bad in errors]
    assert {error.split("sample ")[1].split(":")[0] for error in errors} <= {"'s-00003'", "'s-00004'", "'s-00020'"}
    assert all("shard-" in error and "field 'jpg' is blank" in error for error in errors)
    good = [stream.read(p) for p in range(37)]
    bad = [p for p, sample in enumerate(good) if sample.key in ("s-00003", "s-00004", "s-00020")]
    shown = dict(zip(np.concatenate([stream.global_batch(s, 12) for s in range(3)]).tolist(),
                     [key for keys, _, _ in runs[0] for key in keys[""]], strict=True))  # fmt: skip
    for place in (p for p in bad if p < 36):
        stand_in = next(p for p in stream.candidates(place) if p not in bad)
        assert shown[place] == good[stand_in].key
    assert all(shown[p] == good[p].key for p in range(36) if p not in bad)


def test_raise_names_the_sample(dataset, started) -> None:
    stream = Stream(dataset(COUNTS), seed=3, source="img")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^source 'img', shard shard-00\d.tar, sample 's-000\d\d': .* is blank$"):
            list(make(stream, 37, fussy, workers=workers, stop_step=1))
    assert not started()


def test_a_bad_sample_is_the_same_one_in_every_epoch(dataset) -> None:
    stream = Stream(dataset(COUNTS), seed=3, on_error="skip")
    met = [bad for batch in make(stream, 37, fussy, workers=2, stop_step=4) for bad in batch.errors]
    assert len(met) >= 4 * 3 and len({(bad.source, bad.sample) for bad in met}) == 3


def test_nothing_good_is_an_error(dataset) -> None:
    def hopeless(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
        raise DataError("no")

    stream = Stream(dataset((3,)), seed=0, on_error="skip")
    with pytest.raises(DataError, match="no good sample in the place of position"):
        list(make(stream, 1, hopeless))


def test_indivisible_batches_are_refused_at_once(dataset) -> None:
    with pytest.raises(DataError, match="global batch of 9"):
        make(Stream(dataset((3,)), seed=0), 9, world=2, workers=1)


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch({"x": torch.ones(2), "y": [torch.zeros(1)], "t": "text"}, {"": ["k"]}, ["e"])
    moved = batch.to("meta")
    assert moved.data["x"].device.type == moved.data["y"][0].device.type == "meta"
    assert (moved.data["t"], moved.keys, moved.errors) == ("text", {"": ["k"]}, ["e"])


def test_workers_outlive_signals_to_the_group_and_end_with_the_loader(dataset, gone, started) -> None:
    """And what they are told does not count for the main process, whose handlers they are forked with."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    loader = make(Stream(dataset(COUNTS), seed=0), 4, workers=2, stop_step=40)
    batches = iter(loader)
    next(batches)
    pids = [child.pid for child in started() if child.pid]
    assert len(pids) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        subprocess.run(["kill", f"-{int(number)}", *map(str, pids)], check=True)  # not from the parent itself
    assert len(list(batches)) == 39
    del loader, batches
    assert gone(pids)
    signal.set_wakeup_fd(before)
    assert not select.select([reader], [], [], 0)[0]
    os.close(reader)
    os.close(writer)


def test_a_worker_obeys_its_parent(dataset, gone, started) -> None:
    loader = make(Stream(dataset((8,)), seed=0), 4, workers=1, stop_step=40)
    batches = iter(loader)
    next(batches)
    (pid,) = [child.pid for child in started() if child.pid]
    os.kill(pid, signal.SIGTERM)
    assert gone([pid])


def slow(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    time.sleep(0.05)
    return {"draw": rng.random()}


def test_a_killed_worker_is_reported(dataset, started) -> None:
    loader = make(Stream(dataset(COUNTS), seed=0), 4, slow, workers=1, stop_step=2000)
    batches = iter(loader)
    next(batches)
    (child,) = started()
    while loader.stages.read(0).name != "preparing":
        time.sleep(0.002)
    os.kill(child.pid or 0, signal.SIGKILL)
    where = r"preparing sample 's-000\d\d' of shard .*shard-00\d\.tar of source ''"
    with pytest.raises(RuntimeError, match=rf"data worker 0 \(pid {child.pid}\) was killed by SIGKILL while {where}"):
        list(batches)


def test_samples_know_how_much_of_the_run_is_done(dataset) -> None:
    """So do those that they draw, on any rank, in any pass, after a resume and with workers."""
    stream = Stream(dataset(COUNTS), seed=2)

    def done(sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        return {"done": np.array([sample.done, more(rng).done])}

    def found(**options: Any) -> list[list[list[float]]]:
        return [batch.data[""]["done"].tolist() for batch in make(stream, 4, done, stop_step=4, **options)]

    whole = [[[step / 4] * 2] * 4 for step in range(4)]
    assert found() == whole and found(start_step=3, workers=1) == whole[3:]
    assert found(rank=1, world=2, accum=2) == [[rows[0]] for rows in whole for _ in range(2)]
