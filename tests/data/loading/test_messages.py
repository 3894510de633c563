"""Tensors arrive as they were sent, and memory is used again only when nothing refers to them any more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.loading import messages
from bigssl.data.loading.collate import collate
from bigssl.data.loading.messages import NONE, ONCE, SLOTS, Receiver, Sender

DTYPES = (torch.uint8, torch.bool, torch.int64, torch.float32, torch.bfloat16, torch.float64)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@pytest.fixture
def sender() -> Iterator[Sender]:
    yield messages.become_sender()
    messages._sender = None


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=4), min_size=1, max_size=9))
def test_values_arrive(rounds: list[list[tuple[tuple[int, ...], torch.dtype]]]) -> None:
    sending, receiving = Sender(), Receiver()
    for seed, kinds in enumerate(rounds):
        value = {"tensors": [tensor(shape, dtype, seed) for shape, dtype in kinds], "text": f"number {seed}"}
        sending.release(receiving.released())
        arrived = receiving.unpack(sending.pack(value))
        assert arrived["text"] == value["text"]
        for sent, got in zip(value["tensors"], arrived["tensors"], strict=True):
            assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
            assert torch.equal(got, sent)


def test_memory_in_use_is_never_written(sender: Sender) -> None:
    """Whatever subset of earlier batches is kept, by a view or an array, they stay as they were."""
    receiving, draw = Receiver(), np.random.default_rng(0)
    kept: dict[int, torch.Tensor | np.ndarray] = {}
    slots = set()
    for number in range(200):
        sender.release(receiving.released())
        message = sender.pack(collate([{"x": np.full((3, 4), number)} for _ in range(int(draw.integers(1, 5)))]))
        slots.add(message.slot)
        arrived = receiving.unpack(message)["x"]
        kept[number] = arrived[-1:, 1] if number % 2 else arrived.numpy()[-1]
        del arrived, message
        for old in draw.permutation(list(kept))[: int(draw.integers(3))]:
            del kept[int(old)]
        assert all((np.asarray(value) == n).all() for n, value in kept.items())
    assert slots == {ONCE, *range(SLOTS)}


def test_memory_is_used_again(sender: Sender) -> None:
    receiving = Receiver()
    for number in range(20):
        sender.release(receiving.released())
        message = sender.pack({"x": torch.full((1000,), number)})
        assert message.slot == 0
        assert (message.descriptor is None) == (number > 0)
        arrived = receiving.unpack(message)
        del arrived


def test_samples_are_stacked_where_they_are_sent_from(sender: Sender) -> None:
    receiving, items = Receiver(), [{"a": np.arange(6.0), "b": np.uint8(3)} for _ in range(5)]
    receiving.unpack(sender.pack(collate(items)))
    sender.release(receiving.released())
    batch = collate(items)
    room = sender._memory[0]
    for value in batch.values():
        assert 0 <= value.data_ptr() - room.data_ptr() < len(room)
    arrived = receiving.unpack(sender.pack({**batch, "part": batch["a"][1:, 2], "new": torch.ones(3)}))
    assert torch.equal(arrived["a"], torch.arange(6.0, dtype=torch.float64).expand(5, 6))
    assert arrived["b"].tolist() == [3] * 5
    assert arrived["part"].tolist() == [2.0] * 4
    assert arrived["new"].tolist() == [1.0] * 3


def test_a_batch_that_outgrows_its_memory(sender: Sender) -> None:
    receiving = Receiver()
    for side in (10, 1000, 20, 2000):
        sender.release(receiving.released())
        batch = collate([np.full((side, side), 7, dtype=np.uint8), np.zeros((side, side), dtype=np.uint8)])
        arrived = receiving.unpack(sender.pack({"x": batch, "y": batch + 1}))
        assert arrived["x"].sum(dim=(1, 2)).tolist() == [side * side * 7, 0]
        assert arrived["y"][1].unique().tolist() == [1]
        del arrived


def test_no_tensors_need_no_memory() -> None:
    message = Sender().pack({"text": "a", "empty": torch.ones(0, 3)})
    assert (message.slot, message.descriptor) == (NONE, None)
    assert Receiver().unpack(message)["empty"].shape == (0, 3)


def test_descriptors_are_closed() -> None:
    sending, receiving = Sender(), Receiver()
    before, held = len(os.listdir("/proc/self/fd")), []
    for number in range(50):
        held.append(receiving.unpack(sending.pack(torch.full((10,), number))))
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * SLOTS  # Python's mmap has one on each side
    assert [int(value[9]) for value in held] == list(range(50))
