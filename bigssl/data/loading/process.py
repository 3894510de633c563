"""What a recipe says about data and holds for a whole process: limits, and how remote shards are read."""

from __future__ import annotations

from bigssl.config import limits
from bigssl.config.recipe import DataConfig
from bigssl.data.remote import client


def use_data_settings(data: DataConfig) -> None:
    """Sets both for this process and those that it forks, for the probe and the evaluation as for the training data."""
    limits.use_limits(data.limits)
    client.use_remote(data.remote)
