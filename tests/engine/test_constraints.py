"""Constraints that cannot hold are refused before a run, on paper as in the run."""

from __future__ import annotations

from typing import Any

import pytest

from bigssl.config.errors import ConfigError
from bigssl.engine.plan import preflight
from bigssl.engine.plan.checks import draft
from bigssl.nets.constraint import Constraint
from bigssl.objectives.simclr import Simclr


@pytest.mark.parametrize(("frozen", "times", "words"), [(True, 1, "is frozen"), (False, 2, "is constrained twice")])
def test_they_are_refused(frozen: bool, times: int, words: str, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def constraints(self: Simclr) -> list[Constraint]:
        weight = next(self.head.parameters()).requires_grad_(not frozen)
        return [Constraint([weight], lambda value: value)] * times

    monkeypatch.setattr(Simclr, "constraints", constraints)
    with pytest.raises(ConfigError, match=rf"constraints\(\) of simclr: head.*{words}") as caught:
        preflight.plan(recipe(), 1)
    assert str(caught.value) in draft(recipe(), 1, per_node=1, device_bytes=None).failures
