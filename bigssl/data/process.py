"""What a recipe says about data and holds for a whole process: limits, and how remote shards are read."""

from __future__ import annotations

from bigssl import limits
from bigssl.config import DataConfig
from bigssl.data import remote


def use(data: DataConfig) -> None:
    """Sets both for this process and those that it forks, for the probe and the evaluation as for the training data."""
    limits.use(data.limits)
    remote.use(data.remote)
