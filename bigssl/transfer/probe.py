"""The online probe: evaluations of the live networks during training, and how healthy their features are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from bigssl.config.evaluate import Evaluation
from bigssl.report.metrics import Measure
from bigssl.transfer.bench import Bench
from bigssl.transfer.matrix import Held
from bigssl.transfer.scores import row_of
from bigssl.transfer.subjects import Live
from bigssl.transfer.team import Team


class LiveProbe:
    """Runs evaluations on few samples again and again.

    Attributes:
        measures: {"probe/NAME": its unit}, once it is prepared.
    """

    def __init__(
        self, sections: Mapping[str, Evaluation], subjects: Live, *, team: Team, seed: int,
        device: str | torch.device, folder: Path | None = None,
    ) -> None:  # fmt: skip
        """folder: of the run, where evaluations may leave pictures."""
        self._sections = sections
        fields = sorted({name for section in sections.values() for name in section.metadata()})
        self._bench = Bench(team, Held(), subjects, device, seed=seed, fields=fields, rehearsal=True,
                            out=folder)  # fmt: skip
        self.measures: dict[str, Measure] = {}

    def prepare(self) -> None:
        """Reads and prepares all samples, once, in a rehearsal without a forward pass: what cannot be probed is known
        before the first step. A collective.

        Raises:
            DataError: on every rank, where a section asks for what the shards or networks do not have.
        """
        rows = {name: row_of(score) for name, score in self._bench.rows("probe", self._sections)}
        self.measures = {f"probe/{name}": Measure(row["unit"], "") for name, row in rows.items()}

    def __call__(self, step: int = 0) -> dict[str, float]:
        """Of the networks after a step of the run, the same on every rank: {"probe/NAME": the trained network's mean,
        "health/BACKBONE/MEASURE": see `bigssl.transfer.collapse`}. A collective, once it is prepared.

        The networks are in eval mode inside and in their former mode afterwards.
        """
        bench = self._bench.again(step)
        found = {f"probe/{name}": score.mean("trained") for name, score in bench.rows("probe", self._sections)}
        return found | {
            f"health/{backbone}/{name}": value
            for backbone, health in bench.checkup.health.items()
            for name, value in health["trained"].items()
            if name != "samples"
        }
