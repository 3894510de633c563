"""Blocks of the Triton kernels: shipped, fallback, tuned winners on disk."""

import json

import pytest
import torch

from bigssl_kernels import configs
from bigssl_kernels.configs import FALLBACK, SHIPPED, Block


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGSSL_KERNELS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuned.json"


DATA = torch.zeros(10, 100)


def test_every_architecture_has_every_block():
    kinds = {(kernel, width, bucket) for _, kernel, width, bucket in SHIPPED}
    assert len(SHIPPED) == len(kinds) * len(configs.ARCHITECTURES) and len(kinds) == 16


@pytest.mark.parametrize(("features", "bucket"), [(1, 64), (64, 64), (65, 128), (129, 256), (257, 512), (5000, 512)])
def test_features_share_blocks(features, bucket):
    assert configs.bucket(features) == bucket


def test_an_unknown_card_gets_the_fallback(cache):
    assert configs.shipped("sm_70", "reduce", 2, 128) == FALLBACK
    assert configs.choose("reduce", DATA) == FALLBACK and not cache.exists()


def test_the_tuned_winner_is_kept(cache, monkeypatch):
    monkeypatch.setenv("BIGSSL_KERNELS_TUNE", "1")
    timed = []

    def time(block):
        timed.append(block)
        return abs(block.features - 32) + block.stages

    best = configs.choose("gradient", DATA, time)
    assert best.features == 32 and len(timed) > 2
    assert configs.choose("gradient", DATA, time) == best and len(timed) == len(set(timed))
    assert Block(**json.loads(cache.read_text())["cpu/gradient/torch.float32/128"]) == best
    configs._winners.cache_clear()  # a new process
    monkeypatch.delenv("BIGSSL_KERNELS_TUNE")
    assert configs.choose("gradient", DATA) == best


@pytest.mark.parametrize("content", ["", "[]", "{", '{"cpu/reduce/torch.float32/128": {"rows": 1}}', '{"a": 3}'])
def test_a_damaged_cache_is_ignored(cache, content):
    cache.parent.mkdir()
    cache.write_text(content)
    configs._winners.cache_clear()
    assert configs.choose("reduce", DATA) == FALLBACK


def test_a_block_that_does_not_fit_loses(cache, monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("BIGSSL_KERNELS_TUNE", "1")

    def time(block):
        if block != FALLBACK:
            raise triton.runtime.errors.OutOfResources(10, 1, "shared memory")
        return 1.0

    assert configs.choose("reduce", DATA, time) == FALLBACK
    with pytest.raises(RuntimeError, match="a fault"):
        configs.choose("gradient", DATA, _fault)


def _fault(block):
    raise RuntimeError("a fault of another kind is not hidden")
