"""`data.max_errors` is a number for the run: over ranks, workers, epochs and resumes."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigssl import distributed
from bigssl.config.recipe import dump_recipe
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine import guards
from bigssl.engine.plan.sources import source_order
from bigssl.train import main

ROOT = Path(__file__).parents[2]
TOTAL, BATCH, WORLD = 48, 8, 2
BAD = (8, 13, 18, 32, 37)


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(folder: Path, bad: Any = BAD) -> str:
    def fields(number: int) -> dict[str, bytes]:
        return {"png": b"no picture" if number in bad else picture(number)}

    items = [Item(f"s-{n:02d}", f"s-{n:02d}", lambda n=n: fields(n)) for n in range(TOTAL)]  # type: ignore[misc]
    return pack(items, folder, name="x", shard_size=16)[""].url


def settings(url: str, allowed: int, steps: int = 20) -> dict[str, Any]:
    data = {"workers": 2, "sources": {"emoji": {"url": url}}, "on_error": "skip", "max_errors": allowed}
    return {"data": data, "steps": steps, "optim": {"schedule": "constant"}, "checkpoint": {"every": 1000}}


def met(recipe: Any) -> list[list[list[str]]]:
    """Keys of the bad samples that each rank meets in each step, by hand."""
    order, bad = source_order(recipe, "emoji", BATCH, WORLD), {f"s-{n:02d}" for n in BAD}

    def of(place: int) -> list[str]:
        keys = map(order.key, order.candidates(place))
        return list(itertools.takewhile(bad.__contains__, keys))

    return [
        [sum(map(of, order.micro_batch(step, BATCH, rank, WORLD, 0, 1).tolist()), []) for rank in range(WORLD)]
        for step in range(recipe.steps)
    ]


def attempt(train: Any, recipe: Any) -> tuple[str, str]:
    try:
        train(recipe)
    except guards.Agreed as error:
        return type(error).__name__, str(error)
    finally:
        assert not distributed.active()
    return "", ""


@pytest.mark.distributed
def test_the_limit_is_the_sum_over_ranks_and_resumes(
    tmp_path: Path, ranks: Any, recipe: Any, train: Any, curve: Any
) -> None:
    url, out = dataset(tmp_path / "data"), tmp_path / "run"
    limited = recipe(out, **settings(url, 3))
    steps = met(limited)
    sums = [len(set().union(*(keys for step in steps[: n + 1] for keys in step))) for n in range(len(steps))]
    last = next(step for step, found in enumerate(sums) if found > 3)
    alone = [len(set().union(*(step[rank] for step in steps[: last + 1]))) for rank in range(WORLD)]
    assert max(alone) <= 3 < sums[last]  # neither rank would stop by what it met itself
    told = ranks(attempt, WORLD, train, limited)
    assert told[0] == told[1] and told[0][0] == "TooManyBadSamples"
    message = told[0][1]
    assert f"{sums[last]} bad samples, data.max_errors allows 3" in message and "\n" not in message
    assert "undecodable image" in message and f"goes on after step {last + 1}" in message
    assert [row["step"] for row in curve(out)] == list(range(1, last + 2))
    assert [int(row["data/errors"]) for row in curve(out)] == sums[: last + 1]

    again = ranks(attempt, WORLD, train, limited)  # it has not forgotten: no further step
    assert again == told and len(curve(out)) == last + 1
    raised = recipe(out, **settings(url, len(BAD)))
    assert ranks(attempt, WORLD, train, raised) == [("", "")] * WORLD
    rows = curve(out)
    assert [int(row["data/errors"]) for row in rows] == sums  # of three epochs: a bad sample counts once
    assert [int(row["data/skipped"]) for row in rows] == [sum(map(len, step)) for step in steps]
    assert sum(row["data/skipped"] for row in rows) > sums[-1] == len(BAD)
    noted = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert len(noted) == len({row["sample"] for row in noted}) == len(BAD)


def launched(path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The real thing: the launcher, two ranks with two workers each."""
    ports = str(31500 + os.getpid() % 2000)
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(WORLD), "--master_port", ports]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, "bigssl/train.py", "--config", str(path), *overrides], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.distributed
def test_a_run_over_the_limit_ends_with_one_line_and_code_1(tmp_path: Path, recipe: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe(tmp_path / "run", **settings(dataset(tmp_path / "data"), 3))))
    done = launched(path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bigssl:")]
    assert "bad samples, data.max_errors allows 3" in line and "Traceback" not in done.stderr


def test_a_dataset_of_bad_samples_only_is_not_begun(tmp_path: Path, recipe: Any, capsys: Any) -> None:
    """What becomes of one whose first samples are good: tests/data/loading/test_loader.py."""
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe(tmp_path / "run", **settings(dataset(tmp_path / "data", range(TOTAL)), 100))))
    assert main(["--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bigssl: data.sources.emoji.url: value ") and "undecodable image" in line
    assert not (tmp_path / "run").exists()
