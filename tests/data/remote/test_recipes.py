"""Remote and sequential sources in a recipe: what is checked before a run, and what is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl.cli import main

DEMO = Path(__file__).parents[3] / "bigssl" / "demo" / "emoji" / "train"
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "steps": 2,
    "precision": "fp32",
    "objective": {"name": "simclr", "source": "emoji", "hidden": 16, "dim": 8},
    "backbones": {
        "image": {
            "type": "resnet",
            "size": 16,
            "config": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        }
    },
    "batch": {"size": 8},
    "optim": {"schedule": "constant"},
}
Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Check:
    """`check(source, remote)` -> exit status and everything printed by `bigssl config check`."""

    def run(source: dict[str, Any], on_error: str = "raise", **remote: Any) -> tuple[int, str]:
        data = {"workers": 0, "on_error": on_error, "sources": {"emoji": source}, "remote": {"retries": 0, **remote}}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, "out": str(tmp_path / "run"), "data": data}))
        status = main.main(["config", "check", str(path), "--resolved"])
        return status, "".join(capfd.readouterr())

    return run


def test_remote_sources_are_checked_with_their_options(serve, check: Check, tmp_path: Path) -> None:
    server = serve(DEMO)
    assert check({"url": server.url}, cache=str(tmp_path / "cache"))[0] == 0
    (tmp_path / "file").touch()
    status, said = check({"url": server.url}, cache=str(tmp_path / "file" / "x"))
    assert (status, "data.remote.cache: folder" in said) == (2, True)
    status, said = check({"url": server.url}, cache=str(tmp_path / "cache"), cache_gb=0.001)
    assert (status, "data.remote.cache_gb: value 0.001" in said) == (2, True)


def test_a_look_at_a_remote_dataset_is_one_sidecar_and_one_range(
    serve, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each dataset: four samples beside each other, in a shard of seven; nothing of the others."""
    server = serve(DEMO)
    monkeypatch.setitem(RECIPE, "steps", 300)  # samples that a run does not come to are not looked at
    mix = {name: {"url": server.url, "weight": 1} for name in ("a", "b")}
    for source, datasets in (({"url": server.url}, 1), ({"mix": mix}, 2)):
        before = len(server.log()["requests"])
        assert check(source)[0] == 0
        asked = [path.rpartition(".")[2] for path, _ in server.log()["requests"][before:] if path != "/_log"]
        assert sorted(asked) == sorted(["json", "idx", "gz"] * datasets)
    widths = [stop - start for start, stop in server.ranges(".tar.gz")]
    assert len(widths) == 3 and max(widths) < 60_000


def test_a_shard_that_is_gone_is_passed_over_where_its_samples_may_be(
    serve, check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The four samples beside each other are all of one shard; others are asked before a no."""
    monkeypatch.setitem(RECIPE, "steps", 300)
    server = serve(Path(shutil.copytree(DEMO, tmp_path / "copy")))
    assert check({"url": server.url})[0] == 0
    (looked,) = {path for path, _ in server.log()["requests"] if path.endswith(".tar.gz")}
    (tmp_path / "copy" / looked.strip("/")).unlink()
    assert check({"url": server.url})[0] == 2
    assert check({"url": server.url}, "skip")[0] == 0


def test_failures_name_the_field_without_credentials(serve, check: Check) -> None:
    server = serve(DEMO)
    host = server.url.removeprefix("http://")
    server.set(login="user:s3cret-word", token="t0ken-word")
    status, said = check({"url": f"http://user:s3cret-word@{host}?token=t0ken-word"})
    assert (status, f"url: http://{host}?…" in said) == (0, True)
    assert "s3cret-word" not in said and "t0ken-word" not in said
    status, said = check({"url": f"http://user:s3cret-word@{host}/none?token=t0ken-word"})
    assert status == 2
    assert "data.sources.emoji.url" in said and "HTTP 404" in said and "bigssl shards index" in said
    assert "s3cret-word" not in said and "t0ken-word" not in said


def test_credentials_in_a_recipe_are_refused(check: Check) -> None:
    options = {"s3": {"client_kwargs": {"aws_secret_access_key": "wJalrXUtnFEMI"}}}
    status, said = check({"url": "s3://bucket/x"}, storage=options)
    assert status == 2
    assert "data.remote.storage.s3.client_kwargs.aws_secret_access_key: a credential" in said
    assert "wJalrXUtnFEMI" not in said


def test_sequential_is_declared_with_a_count(check: Check, tmp_path: Path) -> None:
    shards = tmp_path / "bare"
    shards.mkdir()
    for path in DEMO.glob("*.tar.gz"):
        shutil.copy(path, shards)
    assert "bigssl shards index" in check({"url": str(shards)})[1]
    for wrong, words in (({"sequential": True}, "needs url and samples"), ({"samples": 5}, "sequential sources only")):
        status, said = check({"url": str(shards), **wrong})
        assert (status, "data.sources.emoji" in said, words in said) == (2, True, True)
    status, said = check({"url": str(shards), "sequential": True, "samples": 3000})
    assert status == 0
    assert said.count("is read sequentially") == 1
    status, said = check({"url": f"pipe:cat {shards}/*.gz", "sequential": True, "samples": 3000})
    assert (status, said.count("Not promised")) == (0, 1)


def test_sequential_over_http(serve, tmp_path: Path) -> None:
    from bigssl.data.order.sequential import SequentialIndex, SequentialStream
    from bigssl.data.order.stream import read_in_order
    from bigssl.data.shards.index import DatasetIndex

    server = serve(DEMO)
    count = len(DatasetIndex.load(DEMO))
    here, there = (SequentialStream(SequentialIndex(str(url), count), seed=0) for url in (DEMO, server.url + "/"))
    server.set(faults=[{"kind": "cut", "times": 2, "path": ".gz"}])
    keys = [there.read(p).key for p in range(count)]
    assert keys == [here.read(p).key for p in range(count)]
    assert sorted(keys) == sorted(s.key for s in read_in_order(DatasetIndex.load(DEMO)))
    here.close()
    there.close()
