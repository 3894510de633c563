"""How far a run has come: what schedules inside a network or a loss are functions of."""

from __future__ import annotations

from typing import NamedTuple


class Progress(NamedTuple):
    """The same on every rank and after a resume.

    Attributes:
        step: optimizer steps done before this one, 0 at the start.
        steps: of the whole run.
    """

    step: int
    steps: int
