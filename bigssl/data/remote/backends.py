"""One attempt at a byte range of a remote file, through the clients of fsspec.

http(s) is spoken here in person, with fsspec's session: its own reader takes a server that ignores `Range` at its
word and loads whole shards, and drops the header that says how large the file is.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

import fsspec
from fsspec.asyn import AsyncFileSystem

from bigssl.data.errors import DataError, display
from bigssl.data.remote.retry import BodyError, FinalError, StatusError

EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_SECRET_NAME = re.compile(r"key|secret|token|passw|credential|auth|sas", re.IGNORECASE)
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_PIECE = 1 << 20


class RangeIgnored(FinalError):
    """The server sends the whole file whatever range is asked for."""


class Backend(Protocol):
    """One server or bucket. Every method is one attempt; it raises what the client raises."""

    async def get(self, url: str, start: int, stop: int) -> tuple[bytes, int | None]:
        """Bytes [start, stop) and, where the server says it, the size of the file."""

    async def size(self, url: str) -> int:
        """Bytes of the file."""

    async def whole(self, url: str) -> bytes:
        """All bytes."""

    def pieces(self, url: str) -> AsyncIterator[bytes]:
        """All bytes in pieces, front to back, in one request."""

    async def names(self, url: str) -> list[str]:
        """What lies in the folder `url`."""

    async def put(self, url: str, data: bytes) -> None:
        """Write a file, whole or not at all."""

    async def close(self) -> None:
        """Close connections."""


def protocol_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return url.split("://", 1)[0]


def open_backend(url: str, options: Mapping[str, Any]) -> Backend:
    """The backend that reads `url`. Call it where an event loop runs. Raises DataError naming what to install."""
    protocol = protocol_of(url)
    if "::" in url.split("://", 1)[0]:
        raise DataError(f"{display(url)}: chained URLs are not read; for a local copy set data.remote.cache=FOLDER")
    try:
        cls = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        install = f"pip install 'bigssl[{extra}]'" if extra else str(error)
        raise DataError(f"{display(url)}: no client for {protocol}:// is installed; run `{install}`") from None
    except ValueError:
        allowed = "a path, file://, http(s)://, s3://, gs:// or another protocol of fsspec"
        raise DataError(f"{display(url)}: unknown protocol {protocol!r}; allowed: {allowed}") from None
    settings = {**_defaults(protocol), **cls._get_kwargs_from_urls(url), **options}
    if protocol in ("http", "https"):
        return HttpBackend(cls(asynchronous=True, skip_instance_cache=True, **settings))
    if issubclass(cls, AsyncFileSystem):
        fs = cls(asynchronous=True, skip_instance_cache=True, **settings)
        if protocol in ("s3", "s3a"):
            fs.retries = 1
        return AsyncBackend(fs)
    return SyncBackend(cls(**settings))


def _defaults(protocol: str) -> dict[str, Any]:
    """Options unless others are given: s3 repeats nothing by itself, as attempts are counted and bounded here; http
    heeds ~/.netrc and the proxies of the environment."""
    if protocol in ("s3", "s3a"):
        return {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
    return {"client_kwargs": {"trust_env": True}} if protocol in ("http", "https") else {}


def secrets_of(url: str, options: Mapping[str, Any]) -> set[str]:
    """Everything in a URL, its options and the environment that must not be printed."""
    login = url.partition("://")[2].partition("/")[0].rpartition("@")[0]  # by hand: the URL need not be valid
    query = url.partition("?")[2]
    found = {value for _, value in parse_qsl(query)} | {query}
    found |= {form for part in login.split(":") for form in (part, unquote(part))}
    found |= {os.environ[name] for name in _AWS if name in os.environ}
    return found | set(_secret_values(options))


def _secret_values(options: Mapping[str, Any]) -> list[str]:
    values = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            values += _secret_values(value)
        elif isinstance(value, str) and is_secret(name, value):
            values.append(value)
    return values


def is_secret(name: str, value: Any) -> bool:
    """True when a client option called `name` holds a credential rather than the name of a way to get one."""
    return isinstance(value, str) and bool(_SECRET_NAME.search(name)) and value not in ("anon", "cloud", "cache")


class HttpBackend:
    """http and https."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    async def _open(self, url: str, **headers: str) -> Any:
        session = await self._fs.set_session()
        given = {**self._fs.kwargs.get("headers", {}), "Accept-Encoding": "identity", **headers}
        return session.get(self._fs.encode_url(url), **{**self._fs.kwargs, "headers": given})

    async def get(self, url: str, start: int, stop: int) -> tuple[bytes, int | None]:
        """One range request; refuses an answer that is not that range before reading it."""
        async with await self._open(url, Range=f"bytes={start}-{stop - 1}") as answer:
            if answer.status == 200 and (start, stop) != (0, answer.content_length):
                answer.close()
                raise RangeIgnored("the server ignores byte ranges (HTTP 200 to a Range request)")
            total = _total(answer, start, stop)
            return await _body(answer, stop - start), total

    async def size(self, url: str) -> int:
        """Asked with the first byte: not every server answers HEAD."""
        async with await self._open(url, Range="bytes=0-0") as answer:
            found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            total = int(found[3]) if found and found[3] != "*" else None
            if answer.status == 200:
                total = answer.content_length
            elif answer.status != 206 and not (answer.status == 416 and total == 0):
                raise _status(answer)
            answer.close()
        if total is None:
            raise FinalError("the server does not say how large the file is (no Content-Length)")
        return total

    async def whole(self, url: str) -> bytes:
        """One plain request."""
        async with await self._open(url) as answer:
            if answer.status != 200:
                raise _status(answer)
            return bytes(await answer.read())

    async def pieces(self, url: str) -> AsyncIterator[bytes]:
        """One plain request, read piece by piece."""
        async with await self._open(url) as answer:
            if answer.status != 200:
                raise _status(answer)
            async for piece in answer.content.iter_chunked(_PIECE):
                yield piece

    async def names(self, url: str) -> list[str]:
        """The links of a listing."""
        return list(await self._fs._ls(url, detail=False))

    async def put(self, url: str, data: bytes) -> None:
        """Not over http."""
        raise FinalError("http(s) is read here, not written")

    async def close(self) -> None:
        """Close the session."""
        await (await self._fs.set_session()).close()


def _status(answer: Any) -> StatusError:
    seconds = answer.headers.get("Retry-After", "")
    return StatusError(answer.status, answer.reason or "", float(seconds) if seconds.isdigit() else 0.0)


def _total(answer: Any, start: int, stop: int) -> int | None:
    """Size of the file by the headers of a range request. Raises OSError for any other answer."""
    found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
    if answer.status == 416 and found and found[3] != "*":
        raise FinalError(f"HTTP 416: the file has {found[3]} bytes, asked for {start} to {stop}")
    if answer.status not in (200, 206):
        raise _status(answer)
    if answer.status == 200:
        return int(answer.content_length)
    if found is None or found[1] is None:
        raise BodyError("HTTP 206 without a Content-Range")
    if int(found[1]) != start:
        raise BodyError(f"the server sent bytes from {found[1]}, asked for {start}")
    return None if found[3] == "*" else int(found[3])


async def _body(answer: Any, length: int) -> bytes:
    parts, have = [], 0
    while have <= length and (part := await answer.content.read(min(_PIECE, length + 1 - have))):
        parts.append(part)
        have += len(part)
    if have > length:
        answer.close()
        raise BodyError(f"the answer has more than the {length} bytes asked for")
    return b"".join(parts)


class AsyncBackend:
    """s3, gs and every other asynchronous file system of fsspec."""

    def __init__(self, fs: AsyncFileSystem) -> None:
        self._fs = fs

    async def get(self, url: str, start: int, stop: int) -> tuple[bytes, int | None]:
        """One ranged read."""
        return await self._fs._cat_file(self._fs._strip_protocol(url), start=start, end=stop), None

    async def size(self, url: str) -> int:
        """From the metadata of the object."""
        return int((await self._fs._info(self._fs._strip_protocol(url)))["size"])

    async def whole(self, url: str) -> bytes:
        """One read without a range."""
        return bytes(await self._fs._cat_file(self._fs._strip_protocol(url)))

    async def pieces(self, url: str) -> AsyncIterator[bytes]:
        """In one piece: object stores have ranges, so nobody needs this for a shard."""
        yield await self.whole(url)

    async def names(self, url: str) -> list[str]:
        """Keys below a prefix."""
        return list(await self._fs._ls(self._fs._strip_protocol(url), detail=False))

    async def put(self, url: str, data: bytes) -> None:
        """One write."""
        await self._fs._pipe_file(self._fs._strip_protocol(url), data)

    async def close(self) -> None:
        """Close the session, under whichever name the file system has it."""
        opened = getattr(self._fs, "set_session", None) or getattr(self._fs, "_set_session", None)
        if opened is not None:
            await (await opened()).close()


class SyncBackend:
    """File systems without coroutines, in the loop's threads."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    async def _call(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, function, *args)

    async def get(self, url: str, start: int, stop: int) -> tuple[bytes, int | None]:
        """One ranged read."""
        return await self._call(self._fs.cat_file, self._fs._strip_protocol(url), start, stop), None

    async def size(self, url: str) -> int:
        """From the metadata of the file."""
        return int(await self._call(self._fs.size, self._fs._strip_protocol(url)))

    async def whole(self, url: str) -> bytes:
        """One read without a range."""
        return bytes(await self._call(self._fs.cat_file, self._fs._strip_protocol(url)))

    async def pieces(self, url: str) -> AsyncIterator[bytes]:
        """In one piece."""
        yield await self.whole(url)

    async def names(self, url: str) -> list[str]:
        """Files of a folder."""
        return list(await self._call(lambda: self._fs.ls(self._fs._strip_protocol(url), detail=False)))

    async def put(self, url: str, data: bytes) -> None:
        """One write."""
        await self._call(self._fs.pipe_file, self._fs._strip_protocol(url), data)

    async def close(self) -> None:
        """Nothing is held open."""
