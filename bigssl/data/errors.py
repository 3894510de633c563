"""The one exception of the data package, and how a shard is written in a message."""

from __future__ import annotations

import re
from collections.abc import Iterable

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_QUERY = re.compile(r"\?.*$", re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_PLACE = re.compile(r"^(\.{0,2}/|.*://|.*\.(tar|tgz|tar\.gz)$)")
_SHORTEST_SECRET = 4  # shorter ones would blank out half of a message


class DataError(RuntimeError):
    """Bad, missing or changed data. The message says what, where, why, and what to run next.

    `key`, `offset` (byte of the tar) and `cause` are set where one sample or shard is at fault; `advice` where
    something else than `bigssl shards verify` helps.
    """

    def __init__(
        self, message: str, *, key: str | None = None, offset: int | None = None, cause: str = "", advice: str = ""
    ) -> None:
        super().__init__(message)
        self.key, self.offset, self.cause, self.advice = key, offset, cause, advice

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (str(self), self.key, self.offset, self.cause, self.advice)  # crosses from a worker process


def _rebuild(message: str, key: str | None, offset: int | None, cause: str, advice: str) -> DataError:
    return DataError(message, key=key, offset=offset, cause=cause, advice=advice)


def display(url: str) -> str:
    """`url` as it may appear in messages and logs: without user, password or signed query.

    Of a `pipe:` command it shows the program and what look like paths and URLs; the rest may be a token.
    """
    if url.startswith("pipe:"):
        return "pipe:" + " ".join(_words(url.removeprefix("pipe:").split()))
    if "://" not in url:
        return url
    return _QUERY.sub("?…", _CREDENTIALS.sub("", url))


def _words(words: list[str]) -> Iterable[str]:
    program = next((word for word in words if "=" not in word), "")
    for word in words:
        yield display(word) if word == program or (_PLACE.match(word) and "=" not in display(word)) else "…"


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` of a third party (an exception, a log) with every URL in it shown by `display`, and no `secrets`."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "…")
    return _URL.sub(lambda found: display(found.group()), text)


def damaged(
    url: str, *, key: str | None, offset: int | None, cause: str, dataset: str | None = None, advice: str = ""
) -> DataError:
    """The error of data that cannot be read: shard URL, key, byte offset, cause, and what to run: `advice`, or the
    command that looks closer."""
    where = f"shard {display(url)}"
    where += "" if key is None else f", sample {key!r}"
    where += "" if offset is None else f", byte {offset}"
    run = advice or f"run `bigssl shards verify {display(dataset or url)}`"
    return DataError(f"{where}: {cause}; {run}", key=key, offset=offset, cause=cause, advice=advice)
