"""The one exception of the data package, and how a shard is written in a message."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"\?[^\s]*$")


class DataError(RuntimeError):
    """Bad, missing or changed data. The message says what, where, why, and what to run next.

    `key`, `offset` (byte of the tar) and `cause` are set where one sample or shard is at fault.
    """

    def __init__(self, message: str, *, key: str | None = None, offset: int | None = None, cause: str = "") -> None:
        super().__init__(message)
        self.key, self.offset, self.cause = key, offset, cause

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (str(self), self.key, self.offset, self.cause)  # crosses from a worker process


def _rebuild(message: str, key: str | None, offset: int | None, cause: str) -> DataError:
    return DataError(message, key=key, offset=offset, cause=cause)


def display(url: str) -> str:
    """`url` as it may appear in messages and logs: without user, password or signed query."""
    if "://" not in url:
        return url
    return _QUERY.sub("?…", _CREDENTIALS.sub("", url))


def damaged(url: str, *, key: str | None, offset: int | None, cause: str, dataset: str | None = None) -> DataError:
    """The error of data that cannot be read: shard URL, key, byte offset, cause and the command that looks closer."""
    where = f"shard {display(url)}"
    where += "" if key is None else f", sample {key!r}"
    where += "" if offset is None else f", byte {offset}"
    message = f"{where}: {cause}; run `bigssl shards verify {display(dataset or url)}`"
    return DataError(message, key=key, offset=offset, cause=cause)
