"""Page-locked copies of batches, made in a thread beside the training step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import torch

AHEAD = 2  # batches that are ready before they are asked for
GRACE = 5.0  # seconds for the thread to end; one that hangs in a read ends with the process
_END = object()

Batches = Generator[Any, None, None]


def in_thread(batches: Batches, function: Callable[[Any], Any]) -> Batches:
    """function(batch) of each of `batches`, in order, computed in a thread; exceptions are raised here in their turn.

    `batches` is closed with this generator. It starts in the caller's thread, from which it may fork.
    """
    done: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(AHEAD)
    stop = threading.Event()
    first = next(batches, _END)
    if first is _END:
        return
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    thread = threading.Thread(target=_work, args=(first, batches, function, device, done, stop), daemon=True)
    thread.start()
    try:
        while True:
            batch, error = done.get()
            if error is not None:
                raise error
            if batch is _END:
                return
            yield batch
    finally:
        stop.set()
        thread.join(GRACE)


def _work(
    first: Any, batches: Batches, function: Callable[[Any], Any], device: int | None,
    done: queue.Queue[tuple[Any, BaseException | None]], stop: threading.Event,
) -> None:  # fmt: skip
    if device is not None:
        torch.cuda.set_device(device)  # a new thread begins at device 0, where pinning would make a context
    try:
        _put(done, stop, function(first))
        for batch in batches:
            if not _put(done, stop, function(batch)):
                break
        _put(done, stop, _END)
    except BaseException as error:
        _put(done, stop, None, error)
    finally:
        batches.close()


def _put(
    done: queue.Queue[tuple[Any, BaseException | None]], stop: threading.Event, batch: Any,
    error: BaseException | None = None,
) -> bool:  # fmt: skip
    """False when nobody takes batches any more."""
    while not stop.is_set():
        try:
            done.put((batch, error), timeout=0.2)
            return True
        except queue.Full:
            continue
    return False
