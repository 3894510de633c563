"""Shards that are judged hours after the start are looked into before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources import Item
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union

ROOT = Path(__file__).parents[3]
GOOD = {"jpg": b"not looked at", "txt": b"a cat", "json": b'{"label": 1, "text": "a cat"}'}
DAMAGE: dict[str, tuple[dict[str, bytes], str]] = {
    "no json": ({"json": b""} | {k: v for k, v in GOOD.items() if k != "json"}, "metadata is not JSON"),
    "no metadata": ({k: v for k, v in GOOD.items() if k != "json"}, "no field json; it has jpg, txt"),
    "a number": (GOOD | {"json": b"7"}, "metadata"),
}


def shards(folder: Path, fields: dict[str, bytes]) -> Path:
    pack([Item(f"k{i}", f"k{i}", lambda: fields) for i in range(2)], folder, name="x")
    return folder


def error_of(override: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("launch/recipes/demo.yaml", ["out=no/run/there", override], recipe_model(config_union()))
    with pytest.raises(ConfigError) as caught:
        preflight.plan(recipe, 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_metadata_that_cannot_be_read_is_an_error_of_its_field(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, cause = DAMAGE[damage]
    folder = shards(tmp_path / "x", fields)
    for field in ("probe.queries", "evaluate.zero_shot.captions"):
        message = error_of(f"{field}={folder}", monkeypatch)
        assert f"{field}: value '{folder}': " in message and cause in message


def test_shards_that_cannot_be_read_are_an_error_of_their_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards(tmp_path / "x", GOOD)
    (tar,) = folder.glob("*.tar")
    tar.write_bytes(tar.read_bytes().replace(b"a cat", b"a dog"))
    for field in ("probe.queries", "evaluate.language.queries"):
        message = error_of(f"{field}={folder}", monkeypatch)
        assert f"{field}: value '{folder}': shard " in message and "bigssl shards verify" in message
    tar.unlink()
    assert f"evaluate.text.queries: value '{folder}': " in error_of(f"evaluate.text.queries={folder}", monkeypatch)
