"""A value with tensors as one message between processes: a pickle, and the tensors in anonymous memory.

Tensors lie one after the other in a memfd whose descriptor travels with the message; the receiver maps it, so they are
copied once, in the sender. Nothing has a name: no file in /dev/shm (whose size containers limit), no socket in /tmp,
and nothing to clean up however either side ends.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
from typing import Any

import torch

ALIGNMENT = 64  # bytes; a cache line, and enough for every dtype


class _Pickler(pickle.Pickler):
    """Leaves plain CPU tensors out of the pickle and collects them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []
        self.size = 0

    def persistent_id(self, value: Any) -> tuple[torch.dtype, tuple[int, ...], int] | None:
        if type(value) is not torch.Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return None
        offset, tensor = self.size, value.detach().contiguous()
        self.tensors.append(tensor)
        self.size = _aligned(offset + tensor.nbytes)
        return tensor.dtype, tuple(tensor.shape), offset


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, memory: mmap.mmap | None) -> None:
        super().__init__(io.BytesIO(data))
        self._memory = memory

    def persistent_load(self, place: tuple[torch.dtype, tuple[int, ...], int]) -> torch.Tensor:
        dtype, shape, offset = place
        count = math.prod(shape)
        if self._memory is None or not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=offset).view(shape)


def pack(value: Any) -> tuple[bytes, int | None]:
    """(pickle, descriptor of the tensors' memory or None); the caller closes the descriptor when it is sent.

    Tensors arrive contiguous and without gradient. Raises OSError where there is no memory.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    if not pickler.size:
        return file.getvalue(), None
    descriptor = os.memfd_create("bigssl-batch", os.MFD_CLOEXEC)
    try:
        _write(descriptor, pickler.tensors, pickler.size)
    except BaseException:
        os.close(descriptor)
        raise
    return file.getvalue(), descriptor


def unpack(data: bytes, descriptor: int | None) -> Any:
    """The value of `pack`; its tensors are writable and hold the memory. Closes `descriptor`."""
    if descriptor is None:
        return _Unpickler(data, None).load()
    try:
        memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
    finally:
        os.close(descriptor)
    return _Unpickler(data, memory).load()


def _write(descriptor: int, tensors: list[torch.Tensor], size: int) -> None:
    """Written, not mapped: a page fault for each page would cost more than the copy."""
    os.ftruncate(descriptor, size)
    offset = 0
    for tensor in tensors:
        view = memoryview(tensor.view(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(b"")
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], offset + done)
        offset = _aligned(offset + tensor.nbytes)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
