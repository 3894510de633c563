"""What tests of loaders share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import pytest


@pytest.fixture
def started() -> Callable[[], list[BaseProcess]]:
    """The processes that are there and were not when the test began: ranks of other tests may be kept for later."""
    before = set(multiprocessing.active_children())
    return lambda: [child for child in multiprocessing.active_children() if child not in before]
