"""A recipe's settings of data reach everything that reads shards in its process."""

from __future__ import annotations

from pathlib import Path

from bigssl import limits
from bigssl.config import DataConfig, RemoteConfig
from bigssl.data import process
from bigssl.data.index import DatasetIndex
from bigssl.limits import Limits

DEMO = Path(__file__).parents[2] / "bigssl" / "demo" / "emoji" / "val"


def test_probe_and_evaluation_read_as_the_recipe_says() -> None:
    data = DataConfig(sources={}, remote=RemoteConfig(retries=1, timeout=2.5), limits=Limits(ratio=7))
    process.use(data)
    assert DatasetIndex.load(DEMO).remote.config == data.remote and limits.current() == data.limits
    assert DatasetIndex.load(DEMO, RemoteConfig(retries=3)).remote.config.retries == 3


def test_settings_of_one_test_are_not_those_of_the_next() -> None:
    assert limits.current() == Limits() and DatasetIndex.load(DEMO).remote.config == RemoteConfig()
