"""Copies in a thread: the same batches in order, exceptions in their turn, an early end that closes the source."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from bigssl.data.loading.pinning import AHEAD, in_thread


def source(count: int, log: list[str]) -> Generator[int, None, None]:
    try:
        yield from range(count)
        log.append("exhausted")
    finally:
        log.append("closed")


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_batches_keep_their_order(count: int) -> None:
    log, before = list[str](), threading.active_count()
    assert list(in_thread(source(count, log), lambda n: n * n)) == [n * n for n in range(count)]
    assert log == ["exhausted", "closed"] and threading.active_count() == before


def test_an_exception_comes_in_its_turn() -> None:
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise KeyError("three")
        return number

    log: list[str] = []
    batches, seen = in_thread(source(9, log), fail_at_three), []
    with pytest.raises(KeyError, match="three"):
        for batch in batches:
            seen.append(batch)
    assert seen == [0, 1, 2] and log == ["closed"]


def test_an_early_end_closes_the_source() -> None:
    log, taken, before = list[str](), list[int](), threading.active_count()

    def take(number: int) -> int:
        taken.append(number)
        return number

    batches = in_thread(source(10**9, log), take)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    batches.close()
    assert log == ["closed"] and threading.active_count() == before
    assert len(taken) <= 3 + AHEAD + 1


def test_the_source_starts_in_the_calling_thread() -> None:
    """It may fork, which only the caller's thread should."""

    def names() -> Generator[str, None, None]:
        yield threading.current_thread().name
        yield threading.current_thread().name

    first, second = in_thread(names(), str)
    assert first == threading.current_thread().name != second
