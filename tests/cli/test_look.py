"""A recipe that its data or its folders do not fit is refused before anything starts: by `config check`, `plan` and a
run alike, in one line that names the field."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from bigssl.cli.main import main
from bigssl.cli.recipes import model
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig, load_recipe
from bigssl.data.kinds import decode
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.loading.loader import make_loader
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine.plan import passes, preflight
from bigssl.engine.plan.look import Looked
from bigssl.nets.towers import Tower, check_backbone
from bigssl.objectives import base
from bigssl.objectives.base import Losses, Objective, ObjectiveConfig
from bigssl.objectives.mlm import Mlm
from bigssl.objectives.needs import Needs
from bigssl.objectives.simclr import Simclr

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "bigssl" / "demo"
RESNET = {"type": "resnet", "size": 16, "config": {
    "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}}  # fmt: skip
BERT = {"type": "bert", "tokenizer": str(DEMO / "tokenizer.json"), "length": 16, "config": {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}}  # fmt: skip
SERIES = {"type": "patchtst", "length": 16, "channels": 1, "config": {
    "d_model": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "patch_length": 4,
    "patch_stride": 4}}  # fmt: skip
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "simclr": ({"hidden": 16, "dim": 8}, {"image": RESNET}),
    "mlm": ({}, {"text": BERT}),
    "clip": ({"dim": 8}, {"image": RESNET, "text": BERT}),
    "forecast": ({}, {"net": SERIES}),
    "rotation": ({"all_turns": False}, {"image": RESNET | {"size": 8}}),  # whose map is one place
}
Fields = Mapping[str, bytes]
Refuse = Callable[..., list[str]]


class Forecast(Objective):
    """Over series: no task of ours has any yet."""

    class Config(ObjectiveConfig):
        backbone: str = "net"

    takes: ClassVar[dict[str, Takes]] = {"backbone": Needs("series")}
    preset: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Any, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")

    def sources(self) -> list[str]:
        return [self.config.source]

    def prepare(self, sample: Any, rng: Any, more: Any) -> dict[str, Any]:
        return {"series": decode.series(decode.field(sample, ("npy",)))}

    def forward(self, batch: Any, at: Any) -> Losses:
        return Losses(self.backbone.features(batch).square().mean(), 1.0)


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def deep_picture(number: int) -> bytes:
    """Of 12 bits in 16."""
    buffer, rng = io.BytesIO(), np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 4096, (20 + number, 40), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def series(steps: int, channels: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).standard_normal((steps, channels), np.float32))
    return buffer.getvalue()


CHINESE = "这家店的菜很好吃而且服务员态度也很热情下次还会再来希望价格能便宜一点".encode()
KINDS: dict[str, Callable[[int], Fields]] = {
    "pictures": lambda n: {"png": picture(n), "json": json.dumps({"label": "ab"[n % 2], "item": str(n)}).encode()},
    "texts": lambda n: {"txt": b"a cat sits on the mat and looks at a dog number %d" % n},
    "reviews": lambda n: {"json": json.dumps({"review": f"a cat {n}"}).encode()},
    "chinese": lambda n: {"txt": CHINESE},
    "half": lambda n: {"txt": b"the cat sits " + CHINESE[:30]},
    "captioned": lambda n: {"png": picture(n), "txt": b"a cat"},
    "narrow": lambda n: {"npy": series(16, 1)},
    "wide": lambda n: {"npy": series(16, 3)},
    "short": lambda n: {"npy": series(12, 1)},
    "damaged": lambda n: {"png": b"no picture"},
    "one damaged": lambda n: {"png": picture(n) if n else b"no picture"},
    "one sound": lambda n: {"png": picture(n) if n == 7 else b"no picture"},
    "deep": lambda n: {"png": deep_picture(n)},
    "several sizes": lambda n: {"npy": series(16 + n, 1)},
    "long": lambda n: {"npy": series(400, 1)},
    "minutes": lambda n: {"npy": series(16, 1), "json": b'{"step": 60}'},
    "hours": lambda n: {"npy": series(16, 1), "json": b'{"step": 3600}'},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight samples of each kind, in shards of two, by its name."""
    root = tmp_path_factory.mktemp("data")
    for kind, fields in KINDS.items():
        items = [Item(f"k{n}", f"k{n}", lambda n=n, fields=fields: fields(n)) for n in range(8)]  # type: ignore[misc]
        pack(items, root / kind, name="x", shard_size=2)
    return root


@pytest.fixture
def recipe(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`recipe(task, kind, **sections)` -> a file."""
    monkeypatch.chdir(ROOT)
    real = base.discover()
    monkeypatch.setattr(base, "discover", lambda: {**real, "forecast": Forecast})

    def make(task: str, kind: str, **sections: Any) -> Path:
        objective, backbones = TASKS[task]
        source = {"url": str(data / kind)}
        values: dict[str, Any] = {
            "name": "tiny", "steps": 4, "precision": "fp32", "out": str(tmp_path / "run"), "batch": {"size": 4},
            "objective": {"name": task, "source": "it", **objective}, "backbones": backbones,
            "optim": {"schedule": "constant"},
            "data": {"workers": 0, "sources": {"it": sections.pop("source", source)}, **sections.pop("data", {})},
        }  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | sections))
        return path

    return make


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """`refused(path)`: the lines with which all three refuse it (a run: those of `preflight.plan`)."""
    told: list[str] = []
    plan = preflight.plan

    def listening(*arguments: Any) -> preflight.Plan:
        try:
            return plan(*arguments)
        except ConfigError as error:
            told.append(str(error))
            raise

    monkeypatch.setattr(preflight, "plan", listening)

    def refuse(path: Path, *overrides: str) -> list[str]:
        told.clear()
        assert main(["config", "check", str(path), *overrides]) == 2
        out, err = capsys.readouterr()
        lines = [line.removeprefix("bigssl: ") for line in err.splitlines() if line.startswith("bigssl: ")]
        assert not out and "Traceback" not in err
        (of_a_run,) = told
        assert lines[0] in of_a_run and set(of_a_run.splitlines()) <= set(lines)
        assert main(["plan", "--config", str(path), "--world", "1", *overrides]) == 1
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].startswith(f"1 ranks on 1 nodes: would fail: {len(lines)} reasons")
        assert {line.removeprefix("FAILS: ") for line in shown[1 : 1 + len(lines)]} == set(lines)
        return lines

    return refuse


def fits(capsys: pytest.CaptureFixture[str], path: Path, *overrides: str) -> tuple[str, str]:
    """What `config check` says of one that all three take: stdout, stderr."""
    assert main(["plan", "--config", str(path), "--world", "1", *overrides]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.startswith("1 ranks on 1 nodes: passes")
    assert main(["config", "check", str(path), *overrides]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("fits: 1 ranks x 1 passes x ")
    assert all(line.startswith("note: backbones.") for line in out.splitlines()[1:])
    return out, err


OBSTACLES: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "pictures wanted": ("simclr", "texts", {}, ["data.sources.it.url: value '", "/texts': shard x-0", "sample 'k",
                        "no field jpg or jpeg", "it has txt; objective (simclr), which reads it, takes pictures"]),
    "texts wanted": ("mlm", "pictures", {}, ["data.sources.it.url: ", "json is no document but an object with item",
                     "objective (mlm), which reads it, takes tokens"]),
    "no caption": ("clip", "pictures", {}, ["data.sources.it.url: ", "neither a field txt, nor json with captions; it",
                                            "(clip), which reads it"]),
    "no picture": ("clip", "texts", {}, ["data.sources.it.url: ", "no field jpg", "takes pictures and tokens"]),
    "another field of the json": ("mlm", "reviews", {}, ["data.sources.it.url: ", "an object with review; allowed"]),
    "one channel": ("simclr", "pictures", {"backbones": {"image": RESNET | {
                    "config": {**RESNET["config"], "num_channels": 1}}}},  # type: ignore[dict-item]
                    ["backbones.image.channels: value 3 (the default); allowed: 1, as config.num_channels says"]),
    "a tokenizer of another language": ("mlm", "chinese", {}, ["backbones.text.tokenizer: value '", "tokenizer.json'",
                                        "are [UNK], unknown to it", "in data.sources.it.url", "`bigssl tokenizer"]),
    "more channels": ("forecast", "wide", {}, ["objective (forecast), over backbones.net: takes no series "
                      "float32[16, 3], as made of data.sources.it: ", "[16, 3]; this network takes [16, 1]"]),
    "fewer steps": ("forecast", "short", {}, ["backbones.net: takes no series float32[12, 1]", "data.sources.it"]),
    "as many shapes as samples": ("forecast", "several sizes", {}, ["data.sources.it: ", "it.series differs within"]),
    "one sample in a map of one place": ("rotation", "pictures", {"batch": {"size": 4, "accum": 4}}, [
        "backbones.image: takes no image uint8[3, 8, 8], as made of data.sources.it: ValueError: BatchNorm has one "
        "value of each channel", "allowed: 2 or more samples a pass (a larger batch, a smaller batch.accum)"]),
    "undecodable": ("simclr", "damaged", {}, ["data.sources.it.url: ", "undecodable image of 10 bytes"]),
    "all of them undecodable": ("simclr", "damaged", {"data": {"on_error": "skip"}}, ["undecodable image"]),
}  # fmt: skip


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_the_data_does_not_fit_is_refused_by_all_three(
    obstacle: str, recipe: Callable[..., Path], refused: Refuse
) -> None:
    task, kind, sections, words = OBSTACLES[obstacle]
    (line,) = refused(recipe(task, kind, **sections))
    for word in words:
        assert word in line, line


@pytest.mark.parametrize("task, kind, stage", [("simclr", "pictures", 1), ("mlm", "texts", 1), ("clip", "captioned", 3),
                                               ("mlm", "captioned", 0), ("forecast", "narrow", 3),
                                               ("rotation", "pictures", 0)])  # fmt: skip
def test_what_fits_is_taken(task: str, kind: str, stage: int, recipe: Callable[..., Path], capsys: Any) -> None:
    out, err = fits(capsys, recipe(task, kind), f"zero.stage={stage}")
    assert "samples a step: 4 of the 8 of it" in out and not err


def test_windows_of_long_series_are_samples(
    recipe: Callable[..., Path], refused: Refuse, data: Path, capsys: Any
) -> None:
    source = {"url": str(data / "long"), "windows": {"length": 16, "stride": 8}}
    out, err = fits(capsys, recipe("forecast", "", source=source))
    said = "data.sources.it: 392 windows of 16 rows, one every 8, from 8 series"
    assert "samples a step: 4 of the 392 of it" in out and set(err.splitlines()) == {said}
    (line,) = refused(recipe("forecast", "", source=source), "data.sources.it.windows.length=500")
    assert "data.sources.it.url: " in line and "8 of 8 series are shorter than a window of 500 rows" in line
    (line,) = refused(recipe("forecast", "", source={"url": str(data / "pictures"), "windows": {"length": 16}}))
    assert "no field 'npy', so no series to take windows of; it has json, png" in line


def test_a_source_of_two_rates_is_refused_unless_it_is_meant(
    recipe: Callable[..., Path], refused: Refuse, data: Path, capsys: Any
) -> None:
    mix = {"mix": {name: {"url": str(data / name), "weight": 1} for name in ("minutes", "hours")}}
    path = recipe("forecast", "", source=mix, steps=20)
    (line,) = refused(path)
    assert line.startswith("data.sources.it: mixed sampling rates: ") and "every 60 s" in line and "3600 s" in line
    assert "allowed: rates: mixed, where that is meant" in line
    fits(capsys, path, "data.sources.it.rates=mixed")


def test_every_dataset_of_a_mixture_is_looked_at(recipe: Callable[..., Path], refused: Refuse, data: Path) -> None:
    kinds = {"a": "pictures", "b": "texts", "c": "damaged"}
    mix = {"mix": {name: {"url": str(data / kind), "weight": 1} for name, kind in kinds.items()}}
    lines = refused(recipe("simclr", "", source=mix, steps=20))
    assert [line.partition(": ")[0] for line in lines] == ["data.sources.it.mix.b.url", "data.sources.it.mix.c.url"]


def test_the_part_of_a_joint_task_that_fails_is_named(recipe: Callable[..., Path], refused: Refuse, data: Path) -> None:
    parts = {"views": {"name": "simclr", "source": "it", "hidden": 16, "dim": 8},
             "words": {"name": "mlm", "source": "it"}, "others": {"name": "mlm", "source": "other"}}  # fmt: skip
    sources = {"it": {"url": str(data / "pictures")}, "other": {"url": str(data / "damaged")}}
    path = recipe("clip", "", objective={"name": "joint", "parts": parts}, data={"sources": sources})
    lines = refused(path)
    assert len(lines) == 2  # of both sources, at once
    assert "data.sources.it.url: " in lines[0] and "objective.parts.words (mlm), which reads it" in lines[0]
    assert "data.sources.other.url: " in lines[1] and "objective.parts.others (mlm)" in lines[1]


def test_a_bad_sample_is_passed_over_where_training_does(
    recipe: Callable[..., Path], refused: Refuse, capsys: Any
) -> None:
    """The bad one is looked at whatever the order: all eight samples are."""
    path = recipe("simclr", "one damaged", data={"on_error": "skip"})
    fits(capsys, path)
    looked = load_recipe(path, ["data.on_error=raise"], model())
    seeds = [seed for seed in range(20) if refuses(looked.model_copy(update={"seed": seed}))]
    assert 0 < len(seeds) < 20  # one sample in eight, four of which are looked at
    (line,) = refused(path, "data.on_error=raise", f"seed={seeds[0]}")
    assert "sample 'k0': undecodable image" in line


def test_bad_samples_and_shards_are_passed_over_where_others_are_sound(
    recipe: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    """A run would go on to the next ones: after all that is looked at first, and after a shard that is gone."""
    skipping = load_recipe(recipe("simclr", "one sound", data={"on_error": "skip"}), [], model())
    assert not [seed for seed in range(6) if refuses(skipping.model_copy(update={"seed": seed}))]
    shutil.copytree(data / "pictures", tmp_path / "gone")
    (tmp_path / "gone" / "x-000000.tar").write_bytes(b"")
    front = {"url": str(tmp_path / "gone"), "sequential": True, "samples": 8}
    path = recipe("simclr", "", data={"sources": {"it": front}, "on_error": "skip"})
    preflight.plan(load_recipe(path, [], model()), 1)


def refuses(recipe: Any) -> bool:
    try:
        preflight.plan(recipe, 1)
    except ConfigError:
        return True
    return False


def test_a_tokenizer_that_knows_some_words_is_warned_of(recipe: Callable[..., Path], capsys: Any) -> None:
    path = recipe("mlm", "half")
    _, err = fits(capsys, path)
    assert err.startswith("bigssl: warning: backbones.text.tokenizer: value ") and "are [UNK]" in err
    main(["plan", "--config", str(path), "--world", "1"])
    assert "\nwarning: backbones.text.tokenizer: value " in capsys.readouterr().out


def test_ids_have_rows_in_the_embedding(
    recipe: Callable[..., Path], refused: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a tokenizer with gaps, which has fewer tokens than its largest id says."""
    content = json.loads((DEMO / "tokenizer.json").read_text())
    content["model"]["vocab"]["cat"] = 12_345
    (tmp_path / "gaps.json").write_text(json.dumps(content))
    path = recipe("mlm", "texts", backbones={"text": BERT | {"tokenizer": str(tmp_path / "gaps.json")}})
    assert preflight.plan(load_recipe(path, [], model()), 1).backbones["text"].vocabulary == 12_346
    (line,) = refused(path, "backbones.text.config.vocab_size=9000")
    assert line == "backbones.text.config.vocab_size: value 9000; allowed: >= 12346 (the tokenizer's ids)"
    prepare = Mlm.prepare

    def beyond(self: Mlm, *arguments: Any) -> dict[str, Any]:
        found = prepare(self, *arguments)
        return found | {"input_ids": found["input_ids"] + 12_346}

    monkeypatch.setattr(Mlm, "prepare", beyond)
    (line,) = refused(path)
    assert "gives id 123" in line and "data.sources.it.url; allowed: 0 to 12345" in line


def test_a_task_that_raises_is_one_line(
    recipe: Callable[..., Path], refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forecast, "prepare", lambda *_: {}["nothing"])
    (line,) = refused(recipe("forecast", "narrow"))
    assert "data.sources.it.url: " in line and "KeyError: 'nothing' (test_look.py, line " in line


def test_what_shapes_cannot_tell_is_tried_with_numbers(
    recipe: Callable[..., Path], refused: Refuse, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def curious(self: Forecast, batch: Any, at: Any) -> Losses:
        assert self.backbone.features(batch).square().mean().item() > 0
        return Losses(torch.zeros([]), 1.0)

    monkeypatch.setattr(Forecast, "forward", curious)
    assert fits(capsys, recipe("forecast", "narrow"))[1] == ""
    (line,) = refused(recipe("forecast", "wide"))
    assert "this network takes [16, 1]" in line
    monkeypatch.setattr(passes, "NUMBERS", 0)
    _, err = fits(capsys, recipe("forecast", "wide"))
    assert "warning: backbones: no pass on shapes is possible" in err


def started(path: Path) -> tuple[dict[str, torch.Tensor], list[Any], dict[str, torch.Tensor]]:
    """Weights and statistics, generators, and the first batch, once a run is about to start."""
    random.seed(1)
    np.random.seed(1)
    plan = preflight.plan(load_recipe(path, [], model()), 1)
    generators = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
    loader = make_loader(
        plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, seed=0, rank=0, world=1, accum=1,
        workers=0, start_step=0, stop_step=1, device_pin=False,
    )  # fmt: skip
    return dict(plan.objective.state_dict()), generators, next(iter(loader)).data


@pytest.mark.parametrize("numbers", [False, True])
def test_a_look_leaves_nothing_behind(
    numbers: bool, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, BatchNorm's statistics, generators and the first batch are those of a run at which nobody looked, also
    of a task that draws where it should not."""
    path, calls, prepare = recipe("simclr", "pictures"), list[str](), Simclr.prepare

    def drawing(self: Simclr, *arguments: Any) -> dict[str, Any]:
        calls.append(f"{torch.rand(1)} {np.random.random()} {random.random()}")
        return prepare(self, *arguments)

    def spending(self: Simclr, *arguments: Any) -> Losses:
        torch.rand(1)
        np.random.random()
        random.random()
        return forward(self, *arguments)

    forward = Simclr.forward
    monkeypatch.setattr(Simclr, "prepare", drawing)
    monkeypatch.setattr(Simclr, "forward", spending)
    if numbers:
        monkeypatch.setattr(passes, "without_numbers", lambda *_: 1 / 0)
    seen, at_the_look = started(path), calls[:4]
    monkeypatch.setattr(passes, "look", lambda *_: Looked())
    calls.clear()
    unseen = started(path)
    assert at_the_look == calls[:4] and len(calls) == 4  # it did draw, and what is drawn now is what was drawn then
    assert seen[1] == unseen[1]
    for mine, theirs in ((seen[0], unseen[0]), (seen[2], unseen[2])):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_command_is_not_started(recipe: Callable[..., Path], data: Path, tmp_path: Path, capsys: Any) -> None:
    shard, mark = next((data / "pictures").glob("*.tar")), tmp_path / "started"
    source = {"url": f"pipe:touch {mark}; cat {shard}", "sequential": True, "samples": 2}
    _, err = fits(capsys, recipe("simclr", "", source=source, batch={"size": 2}))
    assert "data.sources.it.url: a command, which the run alone starts: nothing of what it gives was looked at" in err
    assert not mark.exists()


def test_tars_without_an_index_are_looked_at_from_the_front(
    recipe: Callable[..., Path], data: Path, refused: Refuse
) -> None:
    shard = next((data / "texts").glob("*.tar"))
    path = recipe("simclr", "", source={"url": str(shard), "sequential": True, "samples": 2}, batch={"size": 2})
    (line,) = refused(path)
    assert line.startswith("data.sources.it.url: ") and "no field jpg" in line


# --- folders


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/x/export/image` and `/text`, as a run leaves them."""
    root = tmp_path_factory.mktemp("exports")
    text = load_tokenizer(DEMO / "tokenizer.json")
    for name, section, tokenizer in (("image", RESNET, None), ("text", BERT, text)):
        network = Tower(name, BackboneConfig(**section), tokenizer)  # type: ignore[arg-type]
        network.model.save_pretrained(root / "runs" / "x" / "export" / name)
    text.save_pretrained(root / "runs" / "x" / "export" / "text")
    return root


def loaded(kind: str, folder: Path | str, **fields: Any) -> dict[str, Any]:
    name, section = {"image": ("image", RESNET), "text": ("text", BERT)}[kind]
    kept = {key: value for key, value in section.items() if key != "config"}
    return {"backbones": {name: kept | {"init_from": str(folder)} | fields}}


def test_a_folder_in_place_of_a_network_is_answered_with_those_there(
    recipe: Callable[..., Path], refused: Refuse, exported: Path, capsys: Any
) -> None:
    x = exported / "runs" / "x"
    both = f"; allowed: {x}/export/image, {x}/export/text"
    for wrong, why, answer in (
        (x / "export", "no config.json in it", both),
        (x, "no config.json in it", both),
        (x / "export" / "imagee", "no folder of this name", f"{both}; nearest: {x}/export/image"),
        (exported / "runs" / "y" / "export" / "image", "no folder of this name", f"{both}; nearest: {x}/export/image"),
        (x / "exports" / "text", "no folder of this name", f"{both}; nearest: {x}/export/text"),
        (x / "export" / "text" / "config.json", "no folder of this name", f"; allowed: {x}/export/text"),
    ):
        (line,) = refused(recipe("simclr", "pictures", **loaded("image", wrong)))
        assert line == f"backbones.image.init_from: value '{wrong}': {why}{answer}"
    fits(capsys, recipe("simclr", "pictures", **loaded("image", x / "export" / "image")))
    fits(capsys, recipe("mlm", "texts", **loaded("text", x / "export" / "text")))


def test_clip_begins_with_the_networks_of_two_other_runs(
    recipe: Callable[..., Path], exported: Path, tmp_path: Path, capsys: Any
) -> None:
    """Each tower with exactly the weights of another export, whatever its name there, and what was taken is said."""
    runs = {"image": tmp_path / "a" / "export" / "eye", "text": tmp_path / "b" / "export" / "text"}
    for name, folder in runs.items():
        shutil.copytree(exported / "runs" / "x" / "export" / name, folder)
        (folder.parent / "README.md").write_text("an export")
    sections = {"image": loaded("image", runs["image"].parent), "text": loaded("text", runs["text"].parents[1])}
    path = recipe("clip", "captioned", backbones={name: each["backbones"][name] for name, each in sections.items()})
    out, _ = fits(capsys, path)
    for name in runs:
        assert re.search(rf"note: backbones.{name}.init_from: .*/export/\w+: \d+ of \d+ tensors are taken", out), out
    _, towers = preflight.build_networks(load_recipe(path, [], model()))
    for name, folder in runs.items():
        there = load_file(folder / "model.safetensors")
        mine = towers[name].model.state_dict()
        assert there and all(torch.equal(mine[key], value) for key, value in there.items()), name


def test_what_a_network_makes_of_its_pictures_is_warned_of(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Enlarged ones, deep ones that would be black, a window for bytes; and nothing where all is well."""
    deep, flat = recipe("simclr", "deep"), "data.sources.it.url"
    _, said = fits(capsys, deep, "backbones.image.size=64")
    assert re.search(rf"backbones.image.size: value 64: 4 of 4 pictures looked at in {flat} are smaller than half "
                     r"of it \(one of 40×2\d\): enlarged, they", said)
    assert re.search(r"backbones.image.window: missing: of 4 pictures of 16 bits looked at in data.sources.it.url the "
                     r"upper 8 bits are seen, but no value is above 409\d: nearly black; give .*\[0, 409\d\]", said)
    window = ["backbones.image.size=16", "backbones.image.window=[0, 4095]", "backbones.image.channels=1"]
    assert "bigssl: warning: backbones" not in fits(capsys, deep, *window)[1]
    _, said = fits(capsys, recipe("simclr", "pictures"), *window)
    assert f"window: value [0.0, 4095.0]: 4 of 4 pictures looked at in {flat} have 8 bits: they stay as they" in said


def test_a_path_that_is_missing_asks_no_hub(
    recipe: Callable[..., Path], refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("asked"))
    for name in ("runs/gone/export/image", "./gone", "~/gone", "/gone", "a/b/c", "gone/", "bigssl/gone"):
        (line,) = refused(recipe("simclr", "pictures", **loaded("image", name)))
        assert line.startswith(f"backbones.image.init_from: value {name!r}: no folder of this name")


def test_a_name_of_a_hub_is_asked_of_it(
    recipe: Callable[..., Path], refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name, **_: asked.append(name) or 1 / 0)
    for name in ("resnet-18", "microsoft/resnet-18"):
        assert "division by zero" in refused(recipe("simclr", "pictures", **loaded("image", name)))[0]
        assert set(asked) == {name}
        asked.clear()


def test_what_a_folder_holds_has_to_be_what_the_recipe_says(
    recipe: Callable[..., Path], refused: Refuse, exported: Path, tmp_path: Path
) -> None:
    export = exported / "runs" / "x" / "export"
    for task, kind, section, said in (
        ("simclr", "pictures", loaded("image", export / "image", type="convnext"),
         f"backbones.image.type: value 'convnext'; allowed: resnet, which {export}/image holds"),
        ("simclr", "pictures", loaded("image", export / "text"),
         f"backbones.image.type: value 'resnet'; allowed: bert, which {export}/text holds"),
        ("mlm", "texts", loaded("text", export / "text", type="roberta"),
         f"backbones.text.type: value 'roberta'; allowed: bert, which {export}/text holds"),
        ("mlm", "texts", loaded("text", export / "text", tokenizer=str(DEMO / "tokenizer-prose.json")),
         "have other ids in it ('"),
        ("mlm", "texts", loaded("text", export / "text", tokenizer=str(DEMO / "tokenizer.jso")), "; nearest: "),
        ("mlm", "texts", {"backbones": {"text": BERT | {"tokenizer": str(DEMO / "tokenizre.json")}}},
         f"no such file or folder; allowed: {DEMO}/tokenizer-characters.json, {DEMO}/tokenizer-prose.json, "
         f"{DEMO}/tokenizer.json; nearest: {DEMO}/tokenizer.json; or train one with `bigssl tokenizer train`"),
    ):  # fmt: skip
        (line,) = refused(recipe(task, kind, **section))
        assert said in line
    for gone, said in (("model.safetensors", "it has a config.json, but no weights"),
                       ("config.json", "no config.json in it")):  # fmt: skip
        copy = tmp_path / gone
        shutil.copytree(export / "image", copy)
        (copy / gone).unlink()
        (line,) = refused(recipe("simclr", "pictures", **loaded("image", copy)))
        assert line.startswith(f"backbones.image.init_from: value '{copy}': {said}")


def test_a_network_of_sound_keeps_its_rate(tmp_path: Path) -> None:
    for name, value in (("config", {"model_type": "wav2vec2"}), ("preprocessor_config", {"sampling_rate": 16_000})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="backbones.ear.rate: value 8000; allowed: 16000, at which "):
        check_backbone("ear", BackboneConfig(type="wav2vec2", rate=8000, length=400, init_from=str(tmp_path)))


def test_a_parent_of_datasets_is_answered_with_them(
    recipe: Callable[..., Path], refused: Refuse, data: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    for part in ("train", "val"):
        shutil.copytree(data / "pictures", parent / part)
    both = f"; allowed: {parent}/train, {parent}/val"
    knn = {"task": "knn", "label": "label", "k": 1}
    for url, more in ((parent, ""), (parent / "trian", f"; nearest: {parent}/train"),
                      (parent / "tests" / "x", "; nearest: ")):  # fmt: skip
        (line,) = refused(recipe("simclr", "", source={"url": str(url)}))
        assert line.startswith(f"data.sources.it.url: value '{url}': ") and both + more in line
        section = {"near": knn | {"bank": str(url), "queries": str(parent / "val")}}
        (line,) = refused(recipe("simclr", "captioned", evaluate=section))
        assert line.startswith(f"evaluate.near.bank: value '{url}': ") and both + more in line


# --- what is judged


@pytest.mark.parametrize(("section", "kind", "field", "words"), [
    ("probe", "texts", "queries", ["near.queries: value '", "has txt; allowed: shards with jpg"]),
    ("evaluate", "texts", "bank", ["near.bank: value '", "has txt; allowed: shards with jpg"]),
    ("evaluate", "captioned", "queries", ["near.queries: value '", "no field json"]),
    ("evaluate", "labelled, damaged", "bank", ["near.bank: value '", "sample 'k6': undecodable image"]),
    ("evaluate", "unlabelled in part", "queries", ["near.label: value 'label' is not in the metadata", "(sample k4)"]),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused(
    section: str, kind: str, field: str, words: list[str], recipe: Callable[..., Path], refused: Refuse, data: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Of samples from all over the dataset, not of its first alone."""
    make = {"labelled, damaged": lambda n: KINDS["pictures"](n) | ({"png": b"no picture"} if n > 4 else {}),
            "unlabelled in part": lambda n: KINDS["pictures"](n) | ({"json": b"{}"} if n > 3 else {})}  # fmt: skip
    folder = data / kind
    if kind in make:
        folder = tmp_path / "made"
        pack([Item(f"k{n}", f"k{n}", lambda n=n: make[kind](n)) for n in range(8)], folder, name="y", shard_size=2)
    near = {"task": "knn", "label": "label", "k": 1, "bank": str(data / "pictures"), "queries": str(data / "pictures")}
    extra = {"every": 1} if section == "probe" else {}
    sections = {section: {"near": near | {field: str(folder)}, **extra}}
    (line,) = [each for each in refused(recipe("simclr", "one damaged", data={"on_error": "skip"}, **sections))
               if "trained on" not in each]  # fmt: skip
    for word in words:
        assert line.startswith(f"{section}.near.") and word in line, line
