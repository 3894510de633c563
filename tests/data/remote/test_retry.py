"""Which failures are tried again, how often, and how long that takes, on a clock of the test."""

from __future__ import annotations

import asyncio
import errno
import random
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from bigssl.data.remote.retry import BodyError, FinalError, GaveUp, RetryPolicy, StatusError, is_transient, retrying


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        *[(StatusError(status, ""), True) for status in (408, 425, 429, 500, 502, 503, 504, 599)],
        *[(StatusError(status, ""), False) for status in (400, 401, 403, 404, 410, 412, 416)],
        (TimeoutError(), True),
        (asyncio.TimeoutError(), True),
        (ConnectionResetError(), True),
        (BrokenPipeError(), True),
        (BodyError("short"), True),
        (OSError(errno.EIO, "input/output"), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (aiohttp.ClientPayloadError(), True),
        (aiohttp.ServerDisconnectedError(), True),
        (FinalError("no"), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ssl.SSLCertVerificationError(), False),
        (OSError(errno.EINVAL, "range"), False),
        (ValueError("bad URL"), False),
        (TypeError("bad argument"), False),
        (aiohttp.InvalidURL("x"), False),
    ],
)
def test_what_is_transient(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_what_clients_of_buckets_raise() -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    for name in ("ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError", "ConnectionClosedError"):
        assert is_transient(getattr(exceptions, name)(endpoint_url="x", error="y"))
    assert not is_transient(exceptions.NoCredentialsError())
    assert is_transient(pytest.importorskip("gcsfs.retry").HttpError({"code": 503}))
    assert not is_transient(pytest.importorskip("gcsfs.retry").HttpError({"code": 403}))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits take no time but are written down; the clock is their sum."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("bigssl.data.remote.retry.asyncio.sleep", sleep)
    monkeypatch.setattr("bigssl.data.remote.retry.time.monotonic", lambda: 1000 + sum(waits))
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    return waits


def run(failures: list[Exception], policy: RetryPolicy) -> Any:
    left = iter(failures)

    async def attempt() -> str:
        error = next(left, None)
        if error is not None:
            raise error
        return "done"

    async def main() -> str:
        return await retrying(attempt, policy, asyncio.Semaphore(1))

    return asyncio.run(main())


def test_backoff_doubles_up_to_its_cap(clock: list[float]) -> None:
    assert run([TimeoutError()] * 6, RetryPolicy(attempts=7, base=1, cap=10)) == "done"
    assert clock == [1, 2, 4, 8, 10, 10]


@pytest.mark.parametrize(
    ("failures", "policy", "message"),
    [
        ([TimeoutError()] * 9, RetryPolicy(attempts=3, base=1), r"no answer in time; 3 attempts in 3\.0 s"),
        ([TimeoutError()] * 9, RetryPolicy(attempts=9, base=1, deadline=10), r"4 attempts in 7\.0 s"),
        ([StatusError(403, "Forbidden")], RetryPolicy(), r"HTTP 403 Forbidden; 1 attempt in 0\.0 s"),
        ([StatusError(429, "", 50)], RetryPolicy(deadline=40), r"HTTP 429; 1 attempt in"),
        ([ValueError("x")], RetryPolicy(), "ValueError: x; 1 attempt"),
    ],
)
def test_giving_up(clock: list[float], failures: list[Exception], policy: RetryPolicy, message: str) -> None:
    with pytest.raises(GaveUp, match=message):
        run(failures, policy)


def test_waits_are_drawn_from_the_whole_interval_and_come_on_top_of_what_a_server_asks_for(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who were sent away with one Retry-After would else come back at once."""
    drawn = []
    monkeypatch.setattr(random, "uniform", lambda low, high: drawn.append((low, high)) or high / 2)
    assert run([StatusError(503, "", 17), TimeoutError()], RetryPolicy(base=1)) == "done"
    assert clock == [17.5, 1]
    assert drawn == [(0, 1), (0, 2)]


def test_waits_hold_no_slot() -> None:
    """One slot: a read that waits for its next attempt lets another one pass."""
    order: list[str] = []

    def attempts(name: str, failures: int) -> Callable[[], Any]:
        left = [failures]

        async def attempt() -> None:
            order.append(name)
            left[0] -= 1
            if left[0] >= 0:
                raise TimeoutError

        return attempt

    async def main() -> None:
        slots, policy = asyncio.Semaphore(1), RetryPolicy(base=0.05)
        await asyncio.gather(*(retrying(attempts(n, f), policy, slots) for n, f in (("a", 1), ("b", 0))))

    asyncio.run(main())
    assert order == ["a", "b", "a"]


def test_queueing_for_a_slot_takes_nothing_from_the_deadline() -> None:
    async def main() -> str:
        slots = asyncio.Semaphore(0)
        failures = iter([TimeoutError()])

        async def attempt() -> str:
            for error in failures:
                raise error
            return "done"

        asyncio.get_running_loop().call_later(0.3, slots.release)
        return await retrying(attempt, RetryPolicy(deadline=0.2, base=0.001), slots)

    assert asyncio.run(main()) == "done"
