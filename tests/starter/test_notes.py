"""What a first recipe says of its values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bigssl.objectives.base import discover
from bigssl.starter.notes import remarks


def test_a_default_of_ours_is_not_called_a_papers() -> None:
    """The paper of jigsaw puzzles has 1,000 permutations; ours are 100 where nothing is said."""
    parts: Any = SimpleNamespace(look=SimpleNamespace(samples=10))
    found = remarks({"steps": 5, "batch": {"size": 2}, "backbones": {}}, discover()["jigsaw"], parts)
    assert found["objective.permutations"].endswith("; default 100")
    assert not any("paper" in each for key, each in found.items() if key.startswith("objective"))
