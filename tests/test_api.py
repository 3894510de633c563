"""`bigssl.pretrain` and `bigssl.load`, as the README has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigssl
from bigssl import train
from bigssl.api import RunError
from bigssl.config.errors import ConfigError

README = (Path(__file__).parents[1] / "README.md").read_text()


def as_rank(recipe: str, fields: list[str]) -> int:
    """What `bigssl train` has each rank do."""
    return train.main(["--config", recipe, *fields])


def test_the_example_of_the_readme_goes_from_pictures_to_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Any
) -> None:
    """As it is written, with a forked rank in place of the launcher, which starts the same in
    tests/test_first_hour.py. Another recipe in its place, and a run that fails, are errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bigssl.cli.train.train",
                        lambda recipe, *fields, **_: ranks(as_rank, 1, str(recipe), list(fields))[0])
    rng = np.random.default_rng(0)
    for kind, colour in (("cats", 60), ("dogs", 180)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(14):
            values = rng.integers(colour - 50, colour + 50, (24, 24, 3), np.uint8)
            Image.fromarray(values).save(tmp_path / "photos" / kind / f"{number}.png")
    (example,) = re.findall(r"^```python\n(import bigssl\n.*?)^```", README, flags=re.M | re.S)
    assert len(example.splitlines()) == 5
    names: dict[str, Any] = {}
    exec(example, names)
    run = names["run"]
    assert names["vectors"].shape[0] == 2 and names["vectors"].dtype == np.float32
    assert (run.folder / "report.html").is_file() and run.scorecard["verdicts"]
    with pytest.raises(ConfigError, match="was not made by `bigssl init byol photos`"):
        bigssl.pretrain("photos", objective="byol", out=run.folder)
    monkeypatch.setattr("bigssl.cli.train.train", lambda *_, **__: 2)
    with pytest.raises(RunError, match="exit status 2"):
        bigssl.pretrain("photos", steps=61)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        bigssl.lode  # noqa: B018
