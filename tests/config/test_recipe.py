"""Recipes: what is read, and that every mistake is one line with field, value, choices and nearest match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BatchConfig, Recipe, dump_recipe, load_recipe, recipe_model
from bigssl.config.yaml import apply_override, filled_in, read_mapping
from bigssl.engine.plan import preflight, sources
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "launch" / "recipes" / "demo.yaml"
MODEL = recipe_model(config_union(), evaluation_union())


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def load(*overrides: str) -> Recipe:
    return load_recipe(DEMO, list(overrides), MODEL)


def error_of(*overrides: str, world: int = 1) -> str:
    with pytest.raises(ConfigError) as caught:
        preflight.plan(load("out=no/run/there", *overrides), world)
    message = str(caught.value)
    assert "\n" not in message
    return message




def test_the_resolved_recipe_loads_to_itself(tmp_path: Path) -> None:
    recipe = load("optim.lr=1e-3", "zero.stage=2")
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path, [], MODEL) == recipe
    assert recipe.optim.lr == 0.001 and recipe.zero.stage == 2
    probe = recipe.probe.sections["knn"]
    assert (probe.bank_limit, probe.query_limit) == (1024, 512) and recipe.evaluate["images"].query_limit is None


def test_an_evaluation_is_left_out_by_null() -> None:
    recipe = load("evaluate.images=null", "probe.more={task: language, bank: a, queries: b, bank_limit: 7}")
    assert list(recipe.evaluate) == ["designs", "captions", "words", "names", "class_mean"]
    more = recipe.probe.sections["more"]
    assert list(recipe.probe.sections) == ["knn", "more"] and (more.bank_limit, more.query_limit) == (7, 512)


def test_overrides_are_yaml_and_make_sections() -> None:
    recipe = load("checkpoint.keep_every=10", "zero.options.reduce_bucket_size=1000", "optim.betas=[0.8, 0.9]")
    assert recipe.checkpoint.keep_every == 10
    assert recipe.zero.options == {"reduce_bucket_size": 1000}
    assert recipe.optim.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", ["optim.lrr", "unknown key", "value 1", "warmup", "nearest: lr"]),
        ("stepps=1", ["stepps", "nearest: steps"]),
        ("steps=many", ["steps", "'many'", "integer", ">= 1"]),
        ("steps=0", ["steps", "value 0", ">= 1", "allowed"]),
        ("optim.lr=-1", ["optim.lr", "-1", "> 0"]),
        ("optim.name=adamm", ["optim.name", "'adamm'", "adamw, lamb, lars, muon", "nearest: adamw"]),
        ("objective.name=joynt", ["objective", "'joynt'", "nearest: joint"]),
        ("objective.parts.views.name=simclear", ["objective.parts.views", "'simclear'", "nearest: simclr"]),
        ("objective.parts.views.temprature=1", ["objective.parts.views.temprature", "nearest: temperature"]),
        ("objective.parts.views.temperature=0", ["objective.parts.views.temperature", "value 0", "> 0"]),
        ("objective.parts.views.source=emojis", ["'emojis'", "emoji, text", "nearest: emoji"]),
        ("objective.parts.views.backbone=text", ["objective", "'text'", "image backbone"]),
        ("zero.stage=4", ["zero.stage", "value 4", "0, 1, 2, 3"]),
        ("zero.options.overlap_com=true", ["zero.options.overlap_com", "nearest: overlap_comm"]),
        ("batch.micro=100", ["batch.size", "256", "micro 100", "128"]),
        ("backbones.image.config.hiden_sizes=[8]", ["backbones.image.config.hiden_sizes", "hidden_sizes"]),
        ("data.sources.emoji.url=bigssl/demo/emoji/trian",
         ["data.sources.emoji.url", "trian", "nearest: bigssl/demo/emoji/train"]),
        ("data.sources.emoji.min_shards=99", ["data.sources.emoji.url", "7 shards", ">= 99"]),
        ("data.sources.text.batch=80", ["data.sources.text.batch", "value 80", "71 samples"]),
        ("data.sources.emoji={batch: 8}", ["data.sources.emoji", "exactly one of url and mix", "neither"]),
        ("data.sources.emoji={url: x, mix: {a: {url: x, weight: 1}}}", ["exactly one of url and mix", "both"]),
        ("data.sources.emoji={mix: {}}", ["data.sources.emoji.mix", "at least 1"]),
        ("data.sources.emoji={mix: {a/b: {url: x, weight: 1}}}", ["data.sources.emoji", "'a/b'", "letters"]),
        ("data.sources.emoji={mix: {a: {url: x, weight: 0}}}", ["data.sources.emoji.mix.a.weight", "value 0", "> 0"]),
        ("data.sources.emoji={url: x, power: 0.5}", ["data.sources.emoji", "power 0.5", "no effect with url"]),
        ("data.sources.emoji={mix: {a: {url: demo/trian, weight: 1}}}", ["data.sources.emoji.mix.a.url", "demo/trian"]),
        (
            "data.sources.text={mix: {a: {url: bigssl/demo/text/train, weight: 0.123456789012}}, batch: 80}",
            ["data.sources.text.mix.a", "80 samples", "holds 71", "data.sources.text.batch <= 71"],
        ),
        (
            "data.sources.text={mix: {a: {url: bigssl/demo/text/train, weight: 0.123456789012}, "
            "b: {url: bigssl/demo/text/train, weight: 1}}}",
            ["data.sources.text.mix", "0.123456789012", "fewer digits"],
        ),
        ("evaluate.images.bank=nowhere", ["evaluate.images.bank", "nowhere"]),
        ("evaluate.images.backbone=imag", ["evaluate.images.backbone", "'imag'", "nearest: image"]),
        ("probe.knn.backbone=imag", ["probe.knn.backbone", "'imag'", "nearest: image"]),
        ("evaluate.designs.backbone=txt", ["evaluate.designs.backbone", "no backbone 'txt'", "image, prose, text"]),
        ("evaluate.designs.queries=bigssl/demo/text/val", ["evaluate.designs.queries", "allowed: shards with jpg"]),
        ("evaluate.words.backbone=image", ["evaluate.words.backbone", "no text backbone 'image'", "prose, text"]),
        ("evaluate.images.k=5000", ["evaluate.images.k", "5000", "3078"]),
        ("evaluate.images.label=categori", ["evaluate.images.label", "'categori'", "nearest: category"]),
        ("evaluate.images.item=cod", ["evaluate.images.item", "'cod'", "nearest: code"]),
        ("evaluate.names.heads=clap", ["evaluate.names.heads", "'clap'", "allowed: clip", "nearest: clip"]),
        ("evaluate.names.heads=mlm", ["evaluate.names.heads", "'mlm'", "allowed: clip"]),
        ("evaluate.words.head=clip", ["evaluate.words.head", "'clip'", "allowed: mlm"]),
        ("evaluate.words.backbone=text",
         ["evaluate.words.backbone", "'text'", "allowed: prose", "on which head 'mlm' is trained"]),
        ("evaluate.class_mean.text_backbone=prose", ["evaluate.class_mean.text_backbone", "'prose'", "allowed: text"]),
        ("evaluate.captions.length=32", ["evaluate.captions.length", "unknown key"]),
        ("evaluate.images.task=knm", ["evaluate.images", "'knm'", "class_mean, ctc, detect", "nearest: knn"]),
        ("evaluate.captions={task: knn, queries: y}", ["evaluate.captions.bank", "missing"]),
        ("evaluate.designs.view=null", ["evaluate.designs", "pair and view are needed"]),
        ("evaluate.designs.view=colour", ["evaluate.designs.view", "'colour'", "category, code, design"]),
        ("evaluate.images.bank_limit=19", ["evaluate.images.k", "value 20", "<= bank_limit, 19"]),
        ("evaluate.images.queries=bigssl/demo/emoji/train",
         ["evaluate.images.queries", "7 of 7 shards are trained on", "data.sources.", "bigssl shards split"]),
        ("probe.knn.queries=bigssl/demo/emoji/train", ["probe.knn.queries", "shards are trained on"]),
        ("evaluate.images.bank=bigssl/demo/text/train", ["evaluate.images.bank", "allowed: shards with jpg or jpeg"]),
        ("evaluate={text: {bank: x, queries: y, label: z}, batch: 64}",  # the form of old
         ["evaluate.text: no section with a task", "allowed: evaluate: {NAME: {task: knn, bank: DIR"]),
        ("evaluate.batch=64", ["evaluate.batch: no section with a task", "NAME: {task: knn"]),
        ("probe={every: 10, bank: x, queries: y, label: z}",
         ["probe.bank: no section with a task", "allowed: probe: {every: 100, NAME: {task: knn, bank: DIR"]),
        ("probe={every: 10}", ["probe", "nothing is probed", "NAME: {task: knn"]),
        ("probe={every: 10, a/b: {task: knn}}", ["probe: name 'a/b'", "letters, digits, _ and -"]),
        (
            "data.sources.emoji={url: bigssl/demo/emoji/val, sequential: true, samples: 738}",
            ["probe.knn.queries", "2 of 2 shards are trained on", "data.sources.emoji"],  # no checksum: by place
        ),
        ("probe.knn.label=kind", ["probe.knn.label", "'kind'", "category"]),
        ("zero.options.reduce_bucket_size=many", ["zero.options", "reduce_bucket_size", "'many'"]),
        ("optim.warmup=1.5", ["optim.warmup", "1.5"]),
        ("optim.warmup=9999", ["demo.yaml: optim.warmup 9999 does not end within steps"]),
        ("optim.momentum=0.5", ["demo.yaml: optim: momentum 0.5 has no effect with adamw"]),
        ("optim={schedule: wsd, warmup: 300, decay: 0.5}", ["optim.warmup 300", "optim.decay 0.5", "<= 185"]),
        ("optim.groups=[{pattern: x, lrr: 2}]", ["optim.groups.0.lrr", "unknown key", "weight_decay", "nearest: lr"]),
        ("optim.groups=[{pattern: x, betas: [0.9, 1.0]}]", ["optim.groups.0.betas.1", "value 1.0", "less than 1"]),
        ("optim.groups=[{pattern: 'a(b'}]", ["optim.groups.0.pattern", "'a(b'", "no regular expression"]),
        ("optim.no_decay=['a(b']", ["optim.no_decay", "no regular expression"]),
        ("optim.betas=[0.9, 1.0]", ["optim.betas.1", "value 1.0", "less than 1"]),
        ("optim={name: lars, momentum: 1.0}", ["optim.momentum", "value 1.0", "< 1"]),
        ("optim={schedule: constant, final: 0.1}", ["optim: final 0.1 has no effect with adamw and constant"]),
        ("optim={lr: 30, weight_decay: 0.1}", ["optim.lr 30", "optim.weight_decay 0.1", "a product < 1"]),
        ("optim={name: muon, clip: 0, adam_lr: 9, weight_decay: 0.2}", ["optim.adam_lr 9", "optim.weight_decay 0.2"]),
        ("checkpoint={every: 200, keep_every: 300}", ["checkpoint.keep_every 300", "checkpoint.every 200"]),
        ("data.max_errors=3", ["data.max_errors 3", "data.on_error raise"]),
        ("probe.knn.k=2000", ["probe.knn.k", "value 2000", "<= bank_limit, 1024"]),
        ("data.remote={timeout: 700}", ["data.remote.timeout 700", "data.remote.deadline 600"]),
        ("data.remote.cache_gb=3", ["data.remote.cache_gb 3", "without data.remote.cache"]),
        ("backbones.text.length=2", ["backbones.text.length: value 2", ">= 3"]),
        ("backbones={}", ["backbones", "at least 1"]),
        ("data.sources.spare={url: bigssl/demo/text/train}", ["data.sources.spare", "captions, emoji, text"]),
        ("data.sources.emoji.url=''", ["data.sources.emoji.url", "at least 1"]),
        ("objective={name: joint, parts: {w: {name: mlm, source: text, weight: 0}}}", ["every weight is 0"]),
        ("zero.options={stage: 2}", ["zero.options.stage"]),
        ("seed=99999999999999999999", ["seed", "9223372036854775808"]),
        ("optim..lr=1", ["'optim..lr=1'", "a.b=c"]),
        ("out=/proc/x", ["out", "/proc", "cannot be written"]),
        ("name=..", ["name", "'..'"]),
        ("data.sources.emoji.url=s3://bucket/x", ["data.sources.emoji.url", "s3"]),
        ("optim={name: muon}", ["optim.clip", "allowed: 0"]),
        ("steps", ["'steps'", "a.b=c"]),
        ("name.first=1", ["name.first", "name is a value"]),
    ],
)
def test_mistakes_are_one_line(override: str, words: list[str]) -> None:
    message = error_of(override)
    for word in words:
        assert word in message, message


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    assert "batch.size: value 256" in error_of(world=3)
    assert "data.sources.text.batch: value 64; allowed: a multiple of accum × world = 128" in error_of(world=128)


def test_a_pass_with_nothing_to_compare_is_refused() -> None:
    message = error_of("batch.size=128", "data.sources.captions.batch=32", "batch.accum=32")
    assert "data.sources.captions.batch: 32 samples a step in 32 passes are 1 a pass" in message
    assert "clip learns nothing; allowed: >= 64" in message


def test_each_mistake_is_a_line_of_its_own() -> None:
    with pytest.raises(ConfigError) as caught:
        load("optim.warmup=9999", "checkpoint.keep_every=300", "data.max_errors=3")
    assert [line.split()[1] for line in str(caught.value).splitlines()] == [
        "optim.warmup", "checkpoint.keep_every", "data.max_errors",
    ]  # fmt: skip


def test_the_nearest_batches_that_fit_are_named() -> None:
    assert "allowed: batch.size 255, 258; or a world of 2, 4" in error_of(world=3)
    assert "allowed: batch.size 200, 300; or batch.micro 32, 64, 128" in error_of("batch.micro=100")
    assert "allowed: batch.size 96; or batch.micro 128" in error_of("batch.micro=48", "batch.accum=2")


def test_missing_objective_and_missing_file() -> None:
    with pytest.raises(ConfigError, match="demo.yml.*nearest: demo.yaml"):
        load_recipe(DEMO.with_name("demo.yml"), [], MODEL)
    assert "objective" in error_of("objective={parts: {}}")


def test_several_mistakes_are_a_line_each() -> None:
    with pytest.raises(ConfigError) as caught:
        load("steps=0", "optim.lrr=1")
    assert len(str(caught.value).splitlines()) == 2


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nsteps: 1\nname: b\n")
    with pytest.raises(ConfigError, match="'name' stands twice, again at line 3"):
        load_recipe(path, [], MODEL)


def test_a_folder_of_another_recipe_is_refused_naming_the_fields(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_recipe(load(f"out={tmp_path}")))
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    preflight.plan(load(f"out={tmp_path}", "data.workers=0", "checkpoint.every=7"), 1)
    message = error_of(f"out={tmp_path}", "optim.lr=0.5", "seed=3")
    assert "optim.lr: 0.002 before, 0.5 now" in message and "seed: 0 before, 3 now" in message


def test_a_backbone_that_nothing_trains_is_refused() -> None:
    part: dict[str, Any] = {"name": "simclr", "source": "emoji"}
    assert "backbones.text: not used" in error_of(f"objective={yaml.safe_dump(part, default_flow_style=True)}")


@pytest.mark.parametrize(
    ("size", "micro", "accum", "world", "want"),
    [(8, None, None, 1, (8, 1)), (8, None, None, 2, (4, 1)), (8, 2, None, 2, (2, 2)), (8, None, 4, 2, (1, 4))],
)
def test_micro_and_accum_are_derived(size: int, micro: Any, accum: Any, world: int, want: tuple[int, int]) -> None:
    batch = {"size": size, "micro": micro, "accum": accum}
    recipe = load().model_copy(update={"batch": BatchConfig(**batch)})
    assert sources.split_batch(recipe, world) == want


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_many_tasks_that_are_not_ranks_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert preflight.announced_world() == 1
    monkeypatch.setenv(name, "4")
    with pytest.raises(ConfigError, match=f"{name}: value 4.*RANK.*deepspeed or torchrun"):
        preflight.announced_world()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert preflight.announced_world() == 4


def test_one_override_moves_a_recipe_to_other_data(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = "fill: {root: a/b, item: code}\nname: x\ns: {url: '{root}/train', item: '{item}', l: [1, '{root}']}\n"
    path.write_text(text)
    values = read_mapping(path)
    assert filled_in(values, "r") == {"name": "x", "s": {"url": "a/b/train", "item": "code", "l": [1, "a/b"]}}
    apply_override(values, "fill={root: /c, item: null}", "r")
    assert filled_in(values, "r") == {"name": "x", "s": {"url": "/c/train", "item": None, "l": [1, "/c"]}}
    apply_override(values, "fill={item: null}", "r")
    with pytest.raises(ConfigError, match=r"r: s\.url: value '\{root\}/train' needs fill\.root"):
        filled_in(values, "r")
