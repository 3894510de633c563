"""`bigssl.pretrain` and `bigssl.load`, as the README has them."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigssl
from bigssl import api, train
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
    monkeypatch.setattr(api, "_train", lambda words: ranks(as_rank, 1, words[0], words[1:])[0])
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
    monkeypatch.setattr(api, "_train", lambda words: 2)
    with pytest.raises(RunError, match="exit status 2"):
        bigssl.pretrain("photos", steps=61)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        bigssl.lode  # noqa: B018


def test_an_interrupted_cell_stops_the_training_and_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m bigssl train` saves, which takes a while, and ends with 75; a second interrupt does not end it."""
    command, ready = tmp_path / "python", tmp_path / "ready"
    command.write_text(f"#!/bin/sh\ntrap 'sleep 0.5; echo \"$@\" >{ready}; exit 75' INT\n"
                       f"touch {ready}\nwhile :; do sleep 0.05; done\n")
    command.chmod(0o755)
    monkeypatch.setattr(api.sys, "executable", str(command))

    def interrupt() -> None:
        while not ready.exists():
            time.sleep(0.01)
        for _ in range(2):
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=interrupt)
    thread.start()
    assert api._train(["recipe.yaml", "steps=5"]) == 75
    thread.join()
    assert ready.read_text() == "-m bigssl train recipe.yaml steps=5\n"
