"""A value with tensors as one message between processes: a pickle, and the tensors in anonymous memory.

Tensors lie one after the other in a memfd that both sides map. Its descriptor travels with the first message in it.
When nothing in the receiver refers to those tensors any more the memory is used again: to allocate, clear and map the
pages of a batch takes tens of times as long as to fill them. Samples are stacked there in the first place (`empty`),
so a batch is not copied at all. Nothing has a name: no file in /dev/shm (whose size containers limit), no socket in
/tmp, and nothing to clean up however either side ends.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch

ALIGNMENT = 64  # bytes; a cache line, and enough for every dtype
SLOTS = 4  # memories of a sender that are used again: two results ahead, one in use, one about to be released
NONE, ONCE = -1, -2  # instead of a slot: the message has no tensors; its memory is not used again
_GRAIN = 1 << 20  # bytes; batches of about the same size find room in the same memory
_NOWHERE = torch.empty(0, dtype=torch.uint8)


class Message(NamedTuple):
    """The pickle, the slot of the tensors' memory, and its descriptor (the reader closes it) where it is new."""

    data: bytes
    slot: int
    descriptor: int | None


class _Pickler(pickle.Pickler):
    """Leaves plain CPU tensors out of the pickle and collects them.

    room: memory of which `used` bytes are taken; tensors that lie there stay where they are.
    """

    def __init__(self, file: io.BytesIO, room: torch.Tensor, used: int) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[tuple[int, torch.Tensor]] = []
        self.size, self._start, self._stop = used, room.data_ptr(), room.data_ptr() + used

    def persistent_id(self, value: Any) -> tuple[torch.dtype, tuple[int, ...], int] | None:
        if type(value) is not torch.Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return None
        tensor = value.detach().contiguous()
        inside = self._start <= tensor.data_ptr() < self._stop
        offset = tensor.data_ptr() - self._start if inside else self.size
        self.tensors.append((offset, tensor))
        self.size = self.size if inside else _aligned(offset + tensor.nbytes)
        return tensor.dtype, tuple(tensor.shape), offset


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, memory: np.ndarray | None) -> None:
        super().__init__(io.BytesIO(data))
        self._memory = memory

    def persistent_load(self, place: tuple[torch.dtype, tuple[int, ...], int]) -> torch.Tensor:
        dtype, shape, offset = place
        count = math.prod(shape)
        if self._memory is None or not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=offset).view(shape)


class Sender:
    """Packs values; at most SLOTS memories are kept for the values to come."""

    def __init__(self) -> None:
        self._memory: dict[int, torch.Tensor] = {}  # uint8
        self._free = set(range(SLOTS))
        self._used = 0

    def release(self, slots: int) -> None:
        """What `Receiver.released` returned: these memories may be written again."""
        self._free |= {slot for slot in range(SLOTS) if slots >> slot & 1}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array to be filled and packed: in the memory of the next message, if there is room. Its content is valid
        until that message is packed."""
        room, size = self._memory.get(self._next(), _NOWHERE), math.prod(shape) * dtype.itemsize
        if self._used + size > len(room):
            return np.empty(shape, dtype)
        array = room[self._used : self._used + size].numpy().view(dtype).reshape(shape)
        self._used = _aligned(self._used + size)
        return array

    def pack(self, value: Any) -> Message:
        """Tensors arrive contiguous and without gradient. Raises OSError where there is no memory."""
        slot, file = self._next(), io.BytesIO()
        room, descriptor = self._memory.get(slot, _NOWHERE), None
        pickler = _Pickler(file, room, self._used)
        self._used = 0
        pickler.dump(value)
        if not pickler.size:
            return Message(file.getvalue(), NONE, None)
        if pickler.size > len(room):
            room, descriptor = self._more(slot, pickler.size)
        for offset, tensor in pickler.tensors:
            if tensor.data_ptr() != room.data_ptr() + offset:
                room[offset : offset + tensor.nbytes] = tensor.view(-1).view(torch.uint8)
        self._free.discard(slot)
        return Message(file.getvalue(), slot, descriptor)

    def _next(self) -> int:
        return min(self._free, default=ONCE)

    def _more(self, slot: int, size: int) -> tuple[torch.Tensor, int]:
        """Memory of `size` bytes at least for a slot, and its descriptor."""
        descriptor = os.memfd_create("bigssl-batch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, -(-size // _GRAIN) * _GRAIN)
            room = torch.frombuffer(_map(descriptor), dtype=torch.uint8)
        except BaseException:
            os.close(descriptor)
            raise
        if slot != ONCE:
            self._memory[slot] = room
        return room, descriptor


_sender: Sender | None = None


def become_sender() -> Sender:
    """The one sender of this process, which `empty` then serves."""
    global _sender
    _sender = Sender()
    return _sender


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`Sender.empty` in a worker, elsewhere an array of its own."""
    return np.empty(shape, dtype) if _sender is None else _sender.empty(shape, dtype)


class Receiver:
    """Unpacks the messages of one sender."""

    def __init__(self) -> None:
        self._memory: dict[int, mmap.mmap] = {}
        self._leases: dict[int, weakref.ref[np.ndarray]] = {}

    def unpack(self, message: Message) -> Any:
        """The value; its tensors are writable and hold the memory. Closes the descriptor."""
        data, slot, descriptor = message
        if slot == NONE:
            return _Unpickler(data, None).load()
        memory = self._memory[slot] if descriptor is None else _take(descriptor)
        lease = np.frombuffer(memory, dtype=np.uint8)  # each of the tensors refers to it
        if slot == ONCE:
            lease = lease.copy()  # a map has a file descriptor, of which someone who keeps batches would run out
        else:
            self._memory[slot], self._leases[slot] = memory, weakref.ref(lease)
        return _Unpickler(data, lease).load()

    def released(self) -> int:
        """Slots, as bits, whose tensors have gone since the last call."""
        gone = [slot for slot, lease in self._leases.items() if lease() is None]
        for slot in gone:
            del self._leases[slot]
        return sum(1 << slot for slot in gone)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _take(descriptor: int) -> mmap.mmap:
    try:
        return _map(descriptor)
    finally:
        os.close(descriptor)


def _map(descriptor: int) -> mmap.mmap:
    """Populated at once: a page fault for each page would cost more than the copy."""
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
