"""`bigssl.pretrain` and `bigssl.load`, as the README has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigssl
from bigssl.api import RunError
from bigssl.config.errors import ConfigError

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_of_the_readme_goes_from_pictures_to_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is written; the same call again gives the finished run. Other data, or a run that fails, are errors."""
    monkeypatch.chdir(tmp_path)
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
    with pytest.raises(RunError, match="exit status 2"):
        bigssl.pretrain("photos", steps=-1)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        bigssl.lode  # noqa: B018
