"""What is said of a task inside a joint one names the fields that the recipe has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from contract_runs import validated

from bigssl.config.changes import never
from bigssl.config.errors import ConfigError
from bigssl.engine.plan.changes import adjustable_fields
from bigssl.engine.stepping.split import check_passes, notes_of_queue
from bigssl.objectives.base import discover

MOCO = {"name": "moco", "hidden": 16, "dim": 8, "queue": 12}
SWAV = {"name": "swav", "prototypes": 8, "hidden": 16, "dim": 8, "queue": 12}


@pytest.fixture
def task(objective: Any) -> Any:
    return objective(discover()["joint"], "joint", parts={"views": MOCO, "crops": SWAV})


def test_a_mistake_in_a_part_names_its_fields(objective: Any) -> None:
    with pytest.raises(ConfigError, match=r"^objective\.parts\.views\.freeze_patches: value true") as caught:
        objective(discover()["joint"], "joint", parts={"views": MOCO | {"freeze_patches": True}})
    assert "objective.freeze" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^objective\.parts\.views\.backbone: "):
        objective(discover()["joint"], "joint", parts={"views": MOCO | {"backbone": "text"}})


def test_a_queue_that_is_too_short_or_too_long_is_named_where_it_is(task: Any) -> None:
    """Longer than the data: of a task whose negatives are in it, not of SwAV, which has none."""
    recipe: Any = SimpleNamespace(batch=SimpleNamespace(cached=False))
    with pytest.raises(ConfigError, match=r"allowed: <= 12, or a longer objective\.parts\.(views|crops)\.queue$"):
        check_passes(recipe, task, {"emoji": 16}, 1)
    order: Any = SimpleNamespace(indexes={"emoji": range(10)})
    (note,) = notes_of_queue(task, {"emoji": order})
    assert note == ("data.sources.emoji: 10 samples, and moco remembers 12: earlier keys of a sample are among its own "
                    "negatives; better: objective.parts.views.queue=5 or less")  # fmt: skip


def test_fewer_passes_are_allowed_only_where_there_are_some(task: Any) -> None:
    recipe: Any = SimpleNamespace(batch=SimpleNamespace(cached=False))
    for accum, end in ((1, r"allowed: >= 2$"), (4, r"allowed: >= 8, or a smaller batch\.accum$")):
        with pytest.raises(ConfigError, match=end):
            check_passes(recipe, task, {"emoji": accum}, accum)


def test_a_learned_temperature_never_changes_on_purpose(recipe: Any) -> None:
    """What it has become is in the checkpoint, and the field would do nothing."""
    for learned, word in ((False, ""), (True, "where a learned one began")):
        own = {"name": "simclr", "source": "shards", "learn_temperature": learned}
        of_parts = {"name": "joint", "parts": {"views": own}}
        for section, field in ((own, "objective.temperature"), (of_parts, "objective.parts.views.temperature")):
            allowed = adjustable_fields(validated(recipe("simclr", objective=section)))
            assert word in never(field, allowed, "adamw") and bool(never(field, allowed, "adamw")) == learned
        assert "objective.augment" in adjustable_fields(validated(recipe("simclr", objective=own)))
