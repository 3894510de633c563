"""Shards that are judged hours after the start are looked into before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union

ROOT = Path(__file__).parents[3]
@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


GOOD = {"jpg": b"not looked at", "txt": b"a cat", "json": b'{"label": 1, "text": "a cat"}'}
DAMAGE: dict[str, tuple[dict[str, bytes], str]] = {
    "no json": ({"json": b""} | {k: v for k, v in GOOD.items() if k != "json"}, "metadata is not JSON"),
    "no metadata": ({k: v for k, v in GOOD.items() if k != "json"}, "no field json; it has jpg, txt"),
    "a number": (GOOD | {"json": b"7"}, "metadata"),
}


def shards(folder: Path, fields: dict[str, bytes]) -> Path:
    pack([Item(f"k{i}", f"k{i}", lambda: fields) for i in range(2)], folder, name="x")
    return folder


def checked(*overrides: str) -> None:
    model = recipe_model(config_union(), evaluation_union())
    preflight.plan(load_recipe("launch/recipes/demo.yaml", ["out=no/run/there", *overrides], model), 1)


def error_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        checked(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_metadata_that_cannot_be_read_is_an_error_of_its_field(
    tmp_path: Path, damage: str
) -> None:
    fields, cause = DAMAGE[damage]
    folder = shards(tmp_path / "x", fields)
    for field in ("probe.knn.queries", "evaluate.names.captions"):
        message = error_of(f"{field}={folder}")
        assert f"{field}: value '{folder}': " in message and cause in message


def test_shards_that_cannot_be_read_are_an_error_of_their_field(
    tmp_path: Path
) -> None:
    folder = shards(tmp_path / "x", GOOD)
    (tar,) = folder.glob("*.tar")
    tar.write_bytes(tar.read_bytes().replace(b"a cat", b"a dog"))
    for field in ("probe.knn.queries", "evaluate.words.queries"):
        message = error_of(f"{field}={folder}")
        assert f"{field}: value '{folder}': shard " in message and "bigssl shards verify" in message
    tar.unlink()
    assert f"evaluate.captions.queries: value '{folder}': " in error_of(f"evaluate.captions.queries={folder}")


@pytest.mark.parametrize("field", ["evaluate.images.label", "evaluate.images.item", "evaluate.designs.view",
                                   "evaluate.class_mean.item", "probe.knn.label"])  # fmt: skip
def test_a_field_that_the_first_sample_lacks_is_refused(
    field: str, tmp_path: Path
) -> None:
    """Of the data that is judged, by each field that names one, also where later samples have it."""
    bare = {"png": b"not looked at", "txt": b"a cat"}
    names = dict.fromkeys(("category", "code", "design"), "x")
    bodies = [json.dumps(names).encode(), json.dumps(names | {"colour": "red"}).encode()]
    samples = [bare | {"json": body} for body in bodies]
    pack([Item(f"k{i}", f"k{i}", lambda i=i: samples[i]) for i in range(2)], tmp_path / "x", name="x")
    section = field.rpartition(".")[0]
    message = error_of(f"{section}.queries={tmp_path / 'x'}", f"{field}=colour")
    assert message.startswith(f"{field}: value 'colour' is not in the metadata of ") and "category, code, " in message
    if "label" not in field:  # which is looked for in the bank first
        assert f"of {tmp_path / 'x'} (sample k0); allowed: category, code, design" in message


def test_statistics_of_the_random_twin_need_samples_that_it_takes(tmp_path: Path) -> None:
    meta = json.dumps({"category": "x", "subcategory": "y", "code": "1"}).encode()
    folder = shards(tmp_path / "x", {"txt": b"a cat", "json": meta})
    names = {name: f"evaluate.{name}=null" for name in ("images", "designs", "class_mean")}
    changes = [f"evaluate.names.captions={folder}", *names.values()]
    message = error_of(*changes)
    assert message.startswith(f"evaluate.names.captions: value '{folder}': sample ")
    assert "BatchNorm of the random twin of 'image'" in message
    checked(*(each for each in changes if each != names["designs"]))  # its bank has pictures
