"""Remote files for synchronous code: an event loop in a thread of its own, retries, and errors without credentials.

The thread starts with the first read and ends with `close`, so that a process can read a manifest, close, and fork its
workers; each worker has its own thread, connections and clients.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from bigssl.config.recipe import RemoteConfig
from bigssl.data.errors import DataError, redact
from bigssl.data.remote.backends import Backend, RangeIgnored, open_backend, protocol_of, secrets_of
from bigssl.data.remote.retry import BodyError, FinalError, GaveUp, RetryPolicy, is_transient, retrying

Result = TypeVar("Result")
_INHERITED: list[object] = []  # of a parent process, never to be finalized here


class RemoteError(OSError):
    """A read that failed for good. The message says why and after how many attempts, and holds no credentials.

    url: of the file, as it is. ranges: False when the server cannot send parts of a file. missing: True when there is
    no such file.
    """

    def __init__(self, message: str, *, url: str = "", ranges: bool = True, missing: bool = False) -> None:
        super().__init__(message)
        self.url, self.ranges, self.missing = url, ranges, missing


_current = RemoteConfig()


def use_remote(config: RemoteConfig) -> None:
    """Sets the options of every `Remote` of this process that is made without its own."""
    global _current
    _current = config


class Remote:
    """Reads whole files and byte ranges of any URL that fsspec has a client for. Safe to fork when closed.

    config: by default what `use` set.
    """

    def __init__(self, config: RemoteConfig | None = None) -> None:
        self.config = config or _current
        self.policy = RetryPolicy(self.config.retries + 1, self.config.timeout, self.config.deadline)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def running(self) -> bool:
        """True from the first read of this process to `close`."""
        return self._loop is not None and self._pid == os.getpid()

    def start(self) -> asyncio.AbstractEventLoop:
        """The running loop of this process."""
        if self._loop is None or not self.running:
            self._pid = os.getpid()
            self._loop = asyncio.new_event_loop()
            self._backends: dict[str, Backend] = {}
            self._slots = asyncio.Semaphore(self.config.connections)
            thread = threading.Thread(target=self._loop.run_forever, name="bigssl-remote", daemon=True)
            thread.start()
            self._stop = weakref.finalize(self, _stop, self._loop, thread, self._backends, self._pid)
        return self._loop

    def close(self) -> None:
        """Cancel what is under way, close connections and end the thread; a later read starts anew."""
        if self.running:
            self._stop()
        self._loop = None

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "policy": self.policy, "_loop": None}

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.start())

    def read(self, url: str, start: int, stop: int, size: int | None = None) -> bytes:
        """Bytes [start, stop) of `url`. Raises RemoteError, also when the file has not `size` bytes."""
        return self.submit(self.get(url, start, stop, size)).result()

    def read_whole(self, url: str) -> bytes:
        """All bytes of `url`. Raises RemoteError."""
        return self.read_all([url])[0]

    def read_all(self, urls: Sequence[str]) -> list[bytes]:
        """All bytes of each of `urls`, fetched at the same time. Raises RemoteError."""

        async def whole(url: str) -> bytes:
            return await self._retrying(url, lambda backend: backend.whole(url))

        async def gather() -> list[bytes]:
            return await asyncio.gather(*map(whole, urls))

        return self.submit(gather()).result()

    def size(self, url: str) -> int:
        """Bytes of the file at `url`. Raises RemoteError."""
        return self.submit(self._retrying(url, lambda backend: backend.size(url))).result()

    def names(self, url: str) -> list[str]:
        """Paths of what lies in the folder `url`. Raises RemoteError."""
        return self.submit(self._retrying(url, lambda backend: backend.names(url))).result()

    def write(self, url: str, data: bytes) -> None:
        """Write `data` to `url`. Raises RemoteError."""
        self.submit(self._retrying(url, lambda backend: backend.put(url, data))).result()

    def check_size(self, url: str, size: int) -> None:
        """One attempt to see that the file still has `size` bytes. Raises RemoteError."""

        async def check() -> None:
            try:
                await _check_size(self._backend(url), url, size)
            except Exception as error:
                raise self._redacted(url, GaveUp(error, 1, 0.0, True)) from None

        self.submit(asyncio.wait_for(check(), self.policy.timeout)).result()

    async def get(self, url: str, start: int, stop: int, size: int | None = None) -> bytes:
        """As `read`, on the loop."""
        if start == stop:
            return b""

        async def attempt(backend: Backend) -> bytes:
            try:
                data, total = await backend.get(url, start, stop)
            except Exception as error:
                if size is not None and not isinstance(error, RangeIgnored) and not is_transient(error):
                    await _check_size(backend, url, size)
                raise
            if size is not None and total is not None:
                _compare(total, size)
            if len(data) != stop - start:
                if size is not None and total is None:
                    await _check_size(backend, url, size)
                raise BodyError(f"the answer has {len(data)} of the {stop - start} bytes asked for")
            return data

        return await self._retrying(url, attempt)

    async def pieces(self, url: str) -> AsyncGenerator[bytes, None]:
        """All bytes of `url` in one request that passes over each byte once. Not retried. Raises RemoteError."""
        try:
            async for piece in self._backend(url).pieces(url):
                yield piece
        except Exception as error:
            raise self._redacted(url, GaveUp(error, 1, 0.0, False)) from None

    async def _retrying(self, url: str, attempt: Callable[[Backend], Coroutine[Any, Any, Result]]) -> Result:
        backend = self._backend(url)
        try:
            return await retrying(lambda: attempt(backend), self.policy, self._slots)
        except GaveUp as error:
            raise self._redacted(url, error) from None

    def _backend(self, url: str) -> Backend:
        root = url[: url.find("/", url.find("://") + 3)]  # protocol and host or bucket
        if root not in self._backends:
            try:
                self._backends[root] = open_backend(url, self.config.storage.get(protocol_of(url), {}))
            except DataError:
                raise
            except Exception as error:  # whatever a client says about its own options
                raise self._redacted(url, GaveUp(error, 1, 0.0, True)) from None
        return self._backends[root]

    def _redacted(self, url: str, error: GaveUp) -> RemoteError:
        text = redact(str(error), secrets_of(url, self.config.storage))
        ranges = not isinstance(error.error, RangeIgnored)
        missing = isinstance(error.error, FileNotFoundError) or getattr(error.error, "status", None) == 404
        return RemoteError(text, url=url, ranges=ranges, missing=missing)


async def _check_size(backend: Backend, url: str, size: int) -> None:
    _compare(await backend.size(url), size)


def _compare(now: int, then: int) -> None:
    if now != then:
        raise FinalError(f"the file changed after it was indexed: it has {now} bytes now, {then} then")


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, backends: dict[str, Backend], pid: int) -> None:
    if pid != os.getpid():  # a fork: to close these would end the parent's connections
        _INHERITED.append((loop, backends))
        return
    asyncio.run_coroutine_threadsafe(_finish(backends), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _finish(backends: dict[str, Backend]) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for backend in backends.values():
        with suppress(Exception):  # a connection that breaks while it is closed is closed
            await backend.close()
    backends.clear()
    await asyncio.sleep(0)
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.get_running_loop().shutdown_default_executor()
