"""Worker processes that compute items in order, and whose death is an error and never a hang.

Each worker has a socket of its own: item numbers go in, results come back (see `messages`). Nothing is shared between
workers, no queue and no lock, so that one killed at any instruction cannot block another or the main process: its
socket closes, its exit is seen. Item n is computed by worker n mod K, so results arrive in order without a buffer.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch

from bigssl.data.errors import DataError
from bigssl.data.loading.messages import Message, Receiver, become_sender
from bigssl.data.loading.watchdog import Stages, Watchdog

AHEAD = 2  # items that a worker has in hand: one that is done waits while the next is computed
GRACE = 5.0  # seconds after which a worker that was asked to end is killed
# what stops a run: the main process decides what that means for its workers
_HELD = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
_TASK = struct.Struct("<qB")  # the item, slots of memory that may be used again
_HEADER = struct.Struct("<QbB")  # bytes of the pickle, slot of the tensors' memory, whether its descriptor comes along


class WorkerError(DataError):
    """A worker process ended or failed; the message says how and at what."""


@dataclass
class _Failure:
    """An exception in a worker, as text: its type may not travel."""

    text: str


class _Worker:
    """The main process's side of one worker."""

    def __init__(self, number: int, function: Callable[[int], Any], stages: Stages, others: Sequence[_Worker]) -> None:
        self.number = number
        self.socket, theirs = socket.socketpair()
        inherited = [self.socket, *(other.socket for other in others)]
        self.process = multiprocessing.get_context("fork").Process(
            target=_work, args=(number, function, stages, theirs, inherited), daemon=True
        )
        self.process.start()
        theirs.close()
        self.socket.setblocking(False)
        self._data, self._descriptors, self._messages = bytearray(), list[int](), Receiver()

    def ask(self, item: int) -> None:
        # Never blocks: AHEAD tasks fit into any socket buffer. A worker that is gone is reported by `receive`, with
        # what it did last.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(_TASK.pack(item, self._messages.released()))

    def receive(self) -> tuple[bool, Any]:
        """(True, result) when one is complete. Raises EOFError when the worker closed its end."""
        if self._complete():
            return True, self._take()
        try:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False, None
        except ConnectionResetError:
            raise EOFError from None
        if not data:
            raise EOFError
        self._data += data
        self._descriptors += descriptors
        return (True, self._take()) if self._complete() else (False, None)

    def _complete(self) -> bool:
        return len(self._data) >= _HEADER.size and len(self._data) >= self._length()

    def _length(self) -> int:
        return _HEADER.size + int(_HEADER.unpack_from(self._data)[0])

    def _take(self) -> Any:
        end, (_, slot, has_descriptor) = self._length(), _HEADER.unpack_from(self._data)
        payload = bytes(self._data[_HEADER.size : end])
        del self._data[:end]
        return self._messages.unpack(Message(payload, slot, self._descriptors.pop(0) if has_descriptor else None))

    def end(self, deadline: float) -> None:
        self.socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.process.join(max(0.0, deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(GRACE)  # one that hangs in the kernel, in a read of a dead file server, stays


def computed_in_order(
    function: Callable[[int], Any], items: Sequence[int], workers: int, stages: Stages, watchdog: Watchdog
) -> Generator[Any, None, None]:
    """function(item) for each of `items`, in order, computed by `workers` forked processes.

    The processes start at the first `next` and end with the generator. Raises WorkerError when one dies or its
    function raises, and what `watchdog` raises.
    """
    crew: list[_Worker] = []
    try:
        with _signals_held():
            for number in range(workers):
                crew.append(_Worker(number, function, stages, crew))
        ahead = workers * AHEAD
        for n, item in enumerate(items[:ahead]):
            crew[n % workers].ask(item)
        for n in range(len(items)):
            result = _await(crew[n % workers], crew, stages, watchdog)
            if n + ahead < len(items):
                crew[n % workers].ask(items[n + ahead])
            yield result
    finally:
        for worker in crew:
            worker.process.terminate()
        deadline = time.monotonic() + GRACE
        for worker in crew:
            worker.end(deadline)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Workers are forked with signals held back until each has arranged how to take them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _await(worker: _Worker, crew: list[_Worker], stages: Stages, watchdog: Watchdog) -> Any:
    sentinels = {other.process.sentinel: other for other in crew}
    with watchdog.waiting(worker.number) as patience:
        while True:
            try:
                complete, result = worker.receive()
            except EOFError:
                raise _died(worker, stages) from None
            if complete:
                break
            ready = wait([worker.socket, *sentinels], timeout=patience())
            if ready and worker.socket not in ready:
                raise _died(sentinels[next(r for r in ready if isinstance(r, int))], stages)
    if isinstance(result, _Failure):
        raise WorkerError(f"data worker {worker.number} failed:\n{result.text}")
    return result


def _died(worker: _Worker, stages: Stages) -> WorkerError:
    worker.process.join(GRACE)
    code = worker.process.exitcode
    if code is None:
        how = "closed its connection and does not end"
    else:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    last = stages.describe(worker.number)
    return WorkerError(
        f"data worker {worker.number} (pid {worker.process.pid}) {how} while {last}; "
        f"if memory ran out (see `dmesg`), lower data.workers, then start again: the run resumes"
    )


def _work(
    number: int, function: Callable[[int], Any], stages: Stages, pipe: socket.socket, inherited: list[socket.socket]
) -> None:
    """A worker's life: items in, results out, until the main process closes the socket."""
    for other in inherited:  # a copy of these would keep a sibling from noticing that the main process is gone
        other.close()
    _obey_only_the_parent()
    stages.take(number)
    messages = become_sender()
    while task := _read_task(pipe):
        item, released = _TASK.unpack(task)
        messages.release(released)
        try:
            message = messages.pack(function(item))
        except Exception:
            message = messages.pack(_Failure(traceback.format_exc()))
        try:
            _send(pipe, message)
        except (BrokenPipeError, ConnectionResetError):
            return
        stages.publish("idle")


def _read_task(pipe: socket.socket) -> bytes:
    data = b""
    while len(data) < _TASK.size:
        try:
            part = pipe.recv(_TASK.size - len(data))
        except ConnectionResetError:
            return b""
        if not part:
            return b""
        data += part
    return data


def _send(pipe: socket.socket, message: Message) -> None:
    payload, slot, descriptor = message
    data = _HEADER.pack(len(payload), slot, descriptor is not None) + payload
    try:
        sent = socket.send_fds(pipe, [data], [] if descriptor is None else [descriptor])
    finally:
        if descriptor is not None:
            os.close(descriptor)
    pipe.sendall(data[sent:])


def _obey_only_the_parent() -> None:
    """One thread per worker, and no answer to signals that a terminal or scheduler sends to the whole process group.

    The main process decides when to stop: it may first finish its step and write a checkpoint, for which its workers
    must live. SIGTERM therefore counts only when the parent itself sent it.
    """
    torch.set_num_threads(1)
    signal.set_wakeup_fd(-1)  # a pipe of the main process, which is not told what its workers are
    for number in _HELD - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    threading.Thread(target=_listen, args=(parent.pid if parent else None,), daemon=True).start()


def _listen(parent: int | None) -> None:
    """Ends this process when its parent says so, or is gone (killed, it says nothing)."""
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 2.0)
        if received is not None and received.si_pid in (parent, 0):
            break
    os._exit(0)
