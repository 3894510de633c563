"""A remote file from front to back: what indexing and sequential sources read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterator
from concurrent.futures import Future
from contextlib import suppress

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from bigssl.data.remote.client import Remote, RemoteError

CHUNK = 8 << 20
_AHEAD = 2


class RemoteFile:
    """`read(size)` over a remote file, large ranges fetched ahead. Every failure is an OSError; a file that ends early
    does not look like one that ends."""

    def __init__(self, url: str, remote: Remote | None = None, chunk: int = CHUNK) -> None:
        self._own = remote is None
        self._remote = remote or Remote()
        self._pieces = pieces(self._remote, url, chunk)
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes (all that is left for a negative one), none at the end."""
        if size < 0:
            rest, self._rest = self._rest, memoryview(b"")
            return bytes(rest) + b"".join(self._pieces)
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

    def close(self) -> None:
        """Stop reading ahead."""
        self._pieces.close()
        if self._own:
            self._remote.close()

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pieces(remote: Remote, url: str, chunk: int = CHUNK) -> Generator[bytes, None, None]:
    """The bytes of `url` in order: by range where the server can, else in one request that is begun again (and passed
    over as far as it was read) when it breaks. Raises RemoteError."""
    size = remote.size(url)
    try:
        yield from _ranges(remote, url, size, chunk)
        return
    except RemoteError as error:
        if error.ranges:
            raise
    yield from _restarting(remote, url, size)


def _ranges(remote: Remote, url: str, size: int, chunk: int) -> Iterator[bytes]:
    flying: deque[Future[bytes]] = deque()
    starts = iter(range(0, size, chunk))
    try:
        while True:
            while len(flying) <= _AHEAD and (start := next(starts, None)) is not None:
                flying.append(remote.submit(remote.get(url, start, min(start + chunk, size), size)))
            if not flying:
                return
            yield flying.popleft().result()
    finally:
        for future in flying:
            future.cancel()


def _restarting(remote: Remote, url: str, size: int) -> Iterator[bytes]:
    """As many attempts at every piece as the policy allows."""
    passed, whole = 0, _from(remote, url, 0)

    def piece() -> bytes:
        nonlocal whole
        try:
            if found := next(whole, b""):
                return found
            if passed != size:
                raise RemoteError(f"the answer has {passed} of {size} bytes")
        except RemoteError:
            whole = _from(remote, url, passed)
            raise
        return b""

    stop, retry = stop_after_attempt(remote.policy.attempts), retry_if_exception_type(RemoteError)
    again = Retrying(stop=stop, wait=remote.policy.waits, retry=retry, reraise=True)
    while found := again(piece):
        passed += len(found)
        yield found


def _from(remote: Remote, url: str, passed: int) -> Iterator[bytes]:
    """Pieces of one request, without the first `passed` bytes."""
    whole = remote.pieces(url)
    try:
        while (piece := remote.submit(_next(whole, remote.policy.timeout)).result()) is not None:
            skipped = min(passed, len(piece))
            passed -= skipped
            if skipped < len(piece):
                yield piece[skipped:]
    finally:
        if remote.running:
            with suppress(RuntimeError):  # it is still running when the wait for it was interrupted
                remote.submit(_close(whole)).result()


async def _next(whole: AsyncGenerator[bytes, None], seconds: float) -> bytes | None:
    try:
        return await asyncio.wait_for(anext(whole), seconds)
    except StopAsyncIteration:
        return None
    except asyncio.TimeoutError:
        raise RemoteError(f"no byte within {seconds} s") from None


async def _close(whole: AsyncGenerator[bytes, None]) -> None:
    await whole.aclose()
