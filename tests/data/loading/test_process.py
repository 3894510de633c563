"""A recipe's settings of data reach everything that reads shards in its process."""

from __future__ import annotations

from pathlib import Path

from bigssl.config import limits
from bigssl.config.limits import Limits
from bigssl.config.recipe import DataConfig, RemoteConfig
from bigssl.data.loading import process
from bigssl.data.shards.index import DatasetIndex

DEMO = Path(__file__).parents[3] / "bigssl" / "demo" / "emoji" / "val"


def test_probe_and_evaluation_read_as_the_recipe_says() -> None:
    data = DataConfig(sources={}, remote=RemoteConfig(retries=1, timeout=2.5), limits=Limits(ratio=7))
    process.use_data_settings(data)
    assert DatasetIndex.load(DEMO).remote.config == data.remote and limits.current() == data.limits
    assert DatasetIndex.load(DEMO, RemoteConfig(retries=3)).remote.config.retries == 3


def test_settings_of_one_test_are_not_those_of_the_next() -> None:
    assert limits.current() == Limits() and DatasetIndex.load(DEMO).remote.config == RemoteConfig()
