"""A bench on the export of the folder above."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bigssl.transfer.bench import Bench
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.subjects import Exported
from bigssl.transfer.team import Team


@pytest.fixture
def bench(run: Path, shards: Path) -> Iterator[Bench]:
    with Scratch(run, Team()) as scratch:
        subjects = Exported(run / "export", 0, {"image": [str(shards / "train")]})
        yield Bench(Team(), scratch, subjects, "cpu", where="evaluate.mine", batch=32, out=run)
