"""Which failures of a read pass by themselves, and when to stop waiting for that; tenacity does the waiting.

Exponential backoff with full jitter, beyond what the server asks for: the wait after failure n is uniform in
[0, min(cap, base · 2^(n-1))], so that a thousand ranks that lost one server do not come back to it in step.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity
from tenacity.wait import wait_base

Result = TypeVar("Result")

_FINAL_ERRNOS = {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOSYS, getattr(errno, "EREMCHG", -1)}
_CLIENT_ERRORS = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "botocore.exceptions": ("HTTPClientError", "ConnectionError", "IncompleteReadError"),
    "requests.exceptions": ("ConnectionError", "Timeout", "ChunkedEncodingError"),
}


class StatusError(OSError):
    """An HTTP answer that is no content. retry_after: seconds the server asked to wait."""

    def __init__(self, status: int, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(f"HTTP {status} {reason}".strip())
        self.status, self.retry_after = status, retry_after


class BodyError(OSError):
    """An answer with more or fewer bytes than asked for."""


class FinalError(OSError):
    """What no further attempt can change."""


_FINAL_TYPES = (
    FinalError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ssl.CertificateError,
)  # fmt: skip


class GaveUp(OSError):
    """The last failure, with the number of attempts and the seconds they took; `final` if another was pointless."""

    def __init__(self, error: BaseException, attempts: int, seconds: float, final: bool) -> None:
        tried = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"{_words(error)}; {tried} in {seconds:.1f} s")
        self.error, self.attempts, self.final = error, attempts, final


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return str(error) or "no answer in time"
    own = isinstance(error, StatusError | BodyError | FinalError)
    return str(error) if own else f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@dataclass(frozen=True)
class RetryPolicy:
    """attempts ≥ 1; seconds: `timeout` of one attempt, `deadline` of all, `base` and `cap` of the waits."""

    attempts: int = 7
    timeout: float = 60.0
    deadline: float = 600.0
    base: float = 0.2
    cap: float = 30.0

    @property
    def waits(self) -> wait_base:
        """Seconds from a failure to the next attempt."""
        asked = tenacity.wait_exception(lambda error: getattr(error, "retry_after", 0.0))
        return tenacity.wait_random_exponential(self.base, self.cap) + asked


def is_transient(error: BaseException) -> bool:
    """True for timeouts, cut connections, 408, 425, 429 and 5xx, and bodies of a wrong length; False for what stays
    (403, 404, 416, bad arguments, certificates)."""
    if isinstance(error, _FINAL_TYPES):
        return False
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if str(status).isdigit():
        return int(str(status)) in (408, 425, 429) or int(str(status)) >= 500
    if isinstance(error, BodyError | TimeoutError | asyncio.TimeoutError | EOFError):
        return True
    if isinstance(error, OSError):
        return error.errno not in _FINAL_ERRNOS
    return isinstance(error, _connection_errors())


def _connection_errors() -> tuple[type[BaseException], ...]:
    """The classes that clients raise for cut connections; a client that is not imported has raised nothing."""
    loaded = [(sys.modules[name], types) for name, types in _CLIENT_ERRORS.items() if name in sys.modules]
    return tuple(getattr(module, name) for module, types in loaded for name in types if hasattr(module, name))


async def retrying(
    attempt: Callable[[], Awaitable[Result]], policy: RetryPolicy, slots: asyncio.Semaphore
) -> Result:
    """The result of `attempt()`, called again after transient failures. Raises GaveUp.

    An attempt holds one of `slots`, a wait does not; time spent queueing for the first slot is not the server's.
    """
    begin = 0.0

    async def once() -> Result:
        nonlocal begin
        async with slots:
            begin = begin or time.monotonic()
            left = begin + policy.deadline - time.monotonic()
            return await asyncio.wait_for(attempt(), min(policy.timeout, left))

    def is_over(state: tenacity.RetryCallState) -> bool:
        late = time.monotonic() + state.upcoming_sleep >= begin + policy.deadline
        return late or state.attempt_number >= policy.attempts

    retry = tenacity.retry_if_exception(is_transient)
    again = tenacity.AsyncRetrying(asyncio.sleep, is_over, policy.waits, retry, reraise=True)
    try:
        return await again(once)
    except Exception as error:
        attempts = again.statistics["attempt_number"]
        raise GaveUp(error, attempts, time.monotonic() - begin, not is_transient(error)) from None
