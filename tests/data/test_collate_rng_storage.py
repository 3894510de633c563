"""Stacking, keyed randomness, byte ranges."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from bigssl.data.errors import DataError, damaged
from bigssl.data.loading.collate import collate
from bigssl.data.order.rng import offset, permutation, sample_rng, seeds
from bigssl.data.shards.storage import RangeReader, exists, join, read_whole


def test_collate_stacks_nested_samples() -> None:
    samples = [
        {
            "image": np.full((3, 2), i, np.uint8),
            "text": {"ids": torch.arange(3) + i},
            "n": i,
            "x": i / 2,
            "b": i > 0,
            "k": f"{i}",
        }
        for i in range(2)
    ]
    batch = collate(samples)
    assert batch["image"].shape == (2, 3, 2)
    assert batch["text"]["ids"].tolist() == [[0, 1, 2], [1, 2, 3]]
    kinds = {name: batch[name].dtype for name in ("image", "n", "x", "b")}
    assert kinds == {"image": torch.uint8, "n": torch.int64, "x": torch.float32, "b": torch.bool}
    assert batch["x"].tolist() == [0, 0.5]
    assert batch["k"] == ["0", "1"]
    assert collate([np.float32(1), np.float32(2)]).dtype == torch.float32


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [{"a": {"b": np.zeros(2)}}, {"a": {"b": np.zeros(3)}}],
            r"sample\.a\.b differs .*float64\[2\] and float64\[3\]",
        ),
        ([np.zeros(2, np.float32), np.zeros(2, np.int64)], r"float32\[2\] and int64\[2\]"),
        ([torch.zeros(2), torch.zeros(2, 1)], r"float32\[2\] and float32\[2, 1\]"),
        ([{"a": 1}, {"b": 1}], r"different fields .*\['a'\] and \['b'\]"),
        ([{"a": None}, {"a": None}], r"sample\.a is a NoneType"),
    ],
)
def test_collate_names_what_differs(items: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collate(items)


def test_generators_are_keyed_by_everything() -> None:
    base = (1, 2, "key", "salt")
    draws = {
        sample_rng(*args).random()
        for args in (base, (2, 2, "key", "salt"), (1, 3, "key", "salt"), (1, 2, "kez", "salt"), (1, 2, "key", ""))
    }
    assert len(draws) == 5
    assert sample_rng(*base).random(5).tolist() == sample_rng(*base).random(5).tolist()
    assert sample_rng(1, 2, "x", "y").random() != sample_rng(1, 2, "y", "x").random()


def test_permutations_are_permutations_and_stay() -> None:
    for size in (0, 1, 7, 1000):
        assert sorted(permutation(size, "a", 1)) == list(range(size))
    assert permutation(8, "a", 1).tolist() == [1, 4, 2, 7, 3, 5, 0, 6]
    first = [permutation(4, seed)[0] for seed in range(4000)]
    assert np.abs(np.bincount(first) / 4000 - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 4000)
    assert {offset(3, seed) for seed in range(100)} == {0, 1, 2}


def test_ranges(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}" for i in range(5)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]) * 100)
    reader = RangeReader(limit=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for i, file in enumerate(files):
            assert reader.read(str(file), 90, 20) == bytes([i]) * 10
            assert reader.read(f"file://{file}", 0, 1) == bytes([i])
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert pickle.loads(pickle.dumps(reader)).read(str(files[1]), 0, 2) == b"\1\1"
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FileNotFoundError):
        reader.read(str(tmp_path / "none"), 0, 1)


def test_a_reader_lives_with_the_descriptors_that_are_left(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}" for i in range(20)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]))
    readers = RangeReader(), RangeReader()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    try:
        for reader in readers * 2:
            assert [reader.read(str(file), 0, 1) for file in files] == [bytes([i]) for i in range(20)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_urls(tmp_path: Path) -> None:
    assert join("/a/b", "c.tar") == "/a/b/c.tar"
    assert join("s3://a/b/", "c.tar") == "s3://a/b/c.tar"
    assert join("/a", "s3://x/c.tar") == "s3://x/c.tar"
    assert join("/a", "/b/c.tar") == "/b/c.tar"
    (tmp_path / "x").write_bytes(b"1")
    assert exists(f"file://{tmp_path}/x")
    assert not exists(str(tmp_path / "y"))
    assert read_whole(str(tmp_path / "x")) == b"1"


def test_errors_cross_processes() -> None:
    error = damaged("https://u:p@h/x.tar", key="k", offset=7, cause="bad", dataset="d")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "shard https://h/x.tar, sample 'k', byte 7: bad; run `bigssl shards verify d`"
    assert (again.key, again.offset, again.cause) == ("k", 7, "bad")


def test_generators_are_philox_with_the_hash_as_key() -> None:
    """A change here changes every augmentation of runs that were started with an earlier version."""
    key = np.frombuffer(hashlib.blake2b(b"sample\x1f1\x1f2\x1fy\x1fx", digest_size=16).digest(), dtype="<u8")
    expected = np.random.Generator(np.random.Philox(key=key)).random(9)
    assert sample_rng(1, 2, "x", "y").random(9).tolist() == expected.tolist()


def test_seeds_of_positions_stay() -> None:
    """A change here changes the dropout of runs that were started with an earlier version."""
    expected = [3451981812934758190, 1000869415286312183, 8351576148750700904]
    assert seeds(np.array([0, 5, 10**9]), 7, "img").tolist() == expected
