"""What crosses from a worker arrives as it was, in memory of its own."""

from __future__ import annotations

import os
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from bigssl.data.messages import pack, unpack

Pair = namedtuple("Pair", "left right")


def there_and_back(value: Any) -> Any:
    return unpack(*pack(value))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool,
              torch.complex64],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5), (2, 0), (2, 3, 1, 7)])
def test_tensors_arrive_as_they_were(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    (got, other) = there_and_back([tensor, torch.arange(3)])
    assert got.dtype == dtype and got.shape == shape and torch.equal(got, tensor)
    assert torch.equal(other, torch.arange(3))


def test_nested_values_and_strides() -> None:
    value = {"a": Pair(torch.arange(12).view(3, 4).t(), "text"), "b": [np.arange(3), None, {"c": torch.ones(2)[1:]}]}
    got = there_and_back(value)
    assert isinstance(got, dict) and isinstance(got["a"], Pair)
    assert torch.equal(got["a"].left, torch.arange(12).view(3, 4).t()) and got["a"].right == "text"
    assert got["b"][0].tolist() == [0, 1, 2] and got["b"][1] is None and torch.equal(got["b"][2]["c"], torch.ones(1))


def test_tensors_are_writable_and_their_own() -> None:
    sent = torch.zeros(4, 4)
    (first, second) = there_and_back([sent, sent])
    first += 1
    assert sent.sum() == 0 and second.sum() == 0 and first.sum() == 16


def test_no_descriptor_is_left() -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for _ in range(5):
        got = there_and_back(torch.ones(1000))
    assert opened() <= before + 1  # the mapping of the last one
    del got
    assert opened() == before
    data, descriptor = pack({"keys": ["a"]})
    assert descriptor is None and unpack(data, None) == {"keys": ["a"]}


def test_what_cannot_travel_is_refused_and_frees_its_memory() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((AttributeError, TypeError)):
        pack({"x": torch.ones(5), "f": lambda: None})
    assert len(os.listdir("/proc/self/fd")) == before
