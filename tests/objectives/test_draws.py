"""A task whose `prepare` asks for further samples says so: its sources are checked by that before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigssl.data.order.stream import SampleReader
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.objectives.base import Objective, discover

DEMO = Path(__file__).parents[2] / "bigssl" / "demo"


@pytest.mark.parametrize("name", sorted(discover()))
def test_a_task_that_draws_says_so(name: str, objective: Any) -> None:
    kind, asked = discover()[name], list[int]()
    task = objective(kind, name)
    reader = SampleReader(DatasetIndex.load(str(DEMO / kind.preset.get("data", "emoji/train"))))

    def more(rng: np.random.Generator, use: Any = lambda sample: sample) -> Any:
        asked.append(1)
        return use(reader.read(int(rng.integers(1, 60)), source="emoji"))

    for number in range(8):  # a task may draw for some samples only
        sample: Sample = reader.read(number, source="emoji")
        task.prepare(sample, np.random.default_rng(number), more)
    says = any(part.draws_more for part in task.modules() if isinstance(part, Objective))
    assert bool(asked) == says
