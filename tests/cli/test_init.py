"""`bigssl init`: for any data and any objective, a recipe that is accepted as it is, or an early no that helps."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import bigssl
from bigssl import objectives, train
from bigssl.cli.main import main
from bigssl.cli.recipes import model
from bigssl.config.recipe import load_recipe
from bigssl.data.kinds import decode
from bigssl.data.kinds.text import encode_words, load_tokenizer
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.remaking.base import discover_remakers
from bigssl.objectives.base import discover

DEMO = Path(__file__).parents[2] / "bigssl" / "demo"
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the collector
SIMPLE = sorted(name for name, kind in discover().items() if not kind.__dict__.get("composite"))
SENTENCES = ["房间很干净，服务好。", "交通方便，早餐差。", "太吵，不会再来。", "The room was clean. ", "never again! "]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of one's own; `sys.argv` of nobody."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(number: int, side: int = 24, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side + number % 9, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "PNG")
    return out.getvalue()


def class_folders(folder: Path, each: int = 12, classes: str = "abc", side: int = 24) -> str:
    """Of mixed sizes, some of them grey."""
    for number in range(each * len(classes)):
        path = folder / classes[number % len(classes)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, side, "L" if number % 5 == 0 else "RGB"))
    return folder.name


def captioned(folder: Path) -> str:
    name = class_folders(folder)
    for number, path in enumerate(sorted(folder.glob("*/*.png"))):
        path.with_suffix(".txt").write_text(f"{SENTENCES[number % 5]}{number}")
    return name


def reviews(folder: Path) -> str:
    lines = [json.dumps({"text": SENTENCES[n % 5] * (n % 7 + 1) + str(n), "label": n % 2}) for n in range(60)]
    (folder.parent / f"{folder.name}.jsonl").write_text("\n".join(lines))
    return f"{folder.name}.jsonl"


def sensors(folder: Path) -> str:
    folder.mkdir()
    for file in "xy":
        rows = [f"2024-01-{1 + n // 24:02d} {n % 24}:00,{n / 7:.3f},{n % 5}" for n in range(240)]
        (folder / f"{file}.csv").write_text("\n".join(["time,load,temperature", *rows]))
    return folder.name


DATA: dict[str, Callable[[Path], str]] = {
    "photos": class_folders, "captioned": captioned, "reviews": reviews, "sensors": sensors,
}  # fmt: skip


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", DATA)
def test_each_objective_gets_a_recipe_or_a_no_that_helps(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever lies in bigssl/objectives; the file needs no edit before it is trained, and reads back as it is. (What
    it holds was planned before it was written; that the file says the same is checked once for what tasks take.)"""
    data, made, refused, checked = DATA[kind](here / kind), [], [], set()
    takes = {name: frozenset(each.modality for each in discover()[name].takes.values()) for name in SIMPLE}
    for name in SIMPLE:
        code = main(["init", name, data])
        shown, errors = capsys.readouterr()
        file = here / f"{kind}-{name}.yaml"
        if code:
            refused.append(name)
            assert code == 2 and not file.exists() and errors.count("\n") == 1, errors
            then = "allowed with these data: |no objective takes|remove these"
            helps = rf"bigssl: init {name}: {data} has .*, but no .*; ({then})"
            assert re.match(helps, errors)
            continue
        made.append(name)
        assert f"next: bigssl train {kind}-{name}.yaml" in shown
        text = file.read_text()
        assert [line.split()[1] for line in text.splitlines()[:3]] == ["Command:", "Time:", "Expect:"]
        assert max(map(len, text.splitlines())) <= 140
        values = yaml.safe_load(text)
        assert load_recipe(file, [], model()).model_dump(include=set(values))["steps"] == values["steps"]
        if takes[name] not in checked:
            checked.add(takes[name])
            assert main(["config", "check", str(file)]) == 0, said(capsys)
        judged = values.get("evaluate", {})
        assert bool(judged) == ("probe" in values) == (kind != "sensors"), "labels and held-out samples are there"
        assert ("reconstruction" in judged) == (name in discover_remakers()), "of what draws pictures"
    capsys.readouterr()
    there = {"photos": {"image"}, "captioned": {"image", "text"}, "reviews": {"text"}, "sensors": {"series"}}[kind]
    assert made == [name for name in SIMPLE if takes[name] <= there]
    if made and refused:
        main(["init", refused[0], data])
        assert said(capsys).strip().endswith(f"allowed with these data: {', '.join(made)}")


def test_nothing_is_made_before_a_no(here: Path) -> None:
    data = class_folders(here / "photos")
    assert main(["init", "clip", data]) == 2
    assert [path.name for path in here.iterdir()] == ["photos"]


SERIES = '''
"""Reconstruct a series from its features."""

from torch import nn

from bigssl import distributed
from bigssl.data.kinds import decode
from bigssl.objectives.base import Losses, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs


class Foretell(Objective):
    """Say how a series goes on."""

    class Config(ObjectiveConfig):
        backbone: str = "motion"
        hidden: int

    takes = {"backbone": Needs("series")}
    starts = {"hidden": 8}

    def __init__(self, config, towers):
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.head = nn.Linear(self.backbone.dim, config.hidden)

    def sources(self):
        return [self.config.source]

    def prepare(self, sample, rng, more):
        return {"series": decode.series(decode.field(sample, ("npy",)))[: self.backbone.length]}

    def forward(self, batch, at):
        return Losses(self.head(self.backbone.features(batch)).square().mean(), 1.0)
'''


def test_an_objective_that_nobody_knows_is_served_by_what_it_says(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new file of another modality, with a field that has no default, over shards that are parted already."""
    (here / "new").mkdir()
    (here / "new" / "foretell.py").write_text(SERIES)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(here / "new")])
    discover.cache_clear()
    try:
        data = str(DEMO / "series" / "basic_motions")
        assert main(["init", "foretell", data]) == 0, said(capsys)
        values = yaml.safe_load((here / "basic_motions-foretell.yaml").read_text())
        assert main(["config", "check", "basic_motions-foretell.yaml"]) == 0, said(capsys)
    finally:
        discover.cache_clear()
        sys.modules.pop("bigssl.objectives.foretell")
    network = values["backbones"]["motion"]
    assert (network["type"], network["channels"], network["length"]) == ("patchtst", 6, 100)
    assert values["objective"] == {"name": "foretell", "source": "data", "hidden": 8}
    judged = values["evaluate"]["knn"]
    assert (judged["queries"], judged["bank"], judged["backbone"]) == (f"{data}/test", f"{data}/train", "motion")


def test_five_pictures_are_a_run_without_a_verdict_on_what_is_held_out(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = class_folders(here / "few", each=5, classes="a", side=9)
    assert main(["init", "simclr", data]) == 0, said(capsys)
    text = (here / "few-simclr.yaml").read_text()
    values = yaml.safe_load(text)
    assert values["batch"] == {"size": 4} and values["backbones"]["image"]["size"] == 16
    assert values["data"]["sources"]["data"]["url"] == "few-shards" and "evaluate" not in values
    assert "# Nothing is judged at the end: 5 samples are too few to hold some out." in text
    (here / "few" / "a" / "1.png").write_bytes(b"")
    assert main(["init", "mae", data]) == 2
    assert re.match(r"bigssl: sample '\S+': undecodable image of 0 bytes .*\n$", said(capsys))


def test_one_class_is_no_label_and_other_fields_are_offered(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(40):
        (here / "one" / f"{number}.png").parent.mkdir(exist_ok=True)
        (here / "one" / f"{number}.png").write_bytes(picture(number))
        facts = {"label": "same", "kind": "xyz"[number % 3], "id": number, "box": [1, 2]}
        (here / "one" / f"{number}.json").write_text(json.dumps(facts))
    assert main(["init", "simclr", "one"]) == 0, said(capsys)
    assert "one label for all samples" in capsys.readouterr().out
    text = (here / "one-simclr.yaml").read_text()
    offered = "# bigssl init simclr one --label kind --overwrite"
    assert "# Fields of the json that may be labels: kind (3 values). To judge by one:" in text and offered in text
    assert "evaluate" not in yaml.safe_load(text)
    assert main(["init", "simclr", "one"]) == 2 and "one-simclr.yaml exists; allowed: --out" in said(capsys)
    assert main(offered.split()[2:]) == 0, said(capsys)
    assert yaml.safe_load((here / "one-simclr.yaml").read_text())["evaluate"]["knn"]["label"] == "kind"
    assert main(["init", "simclr", "one", "--label", "colour", "--out", "x.yaml"]) == 2
    assert "--label: value 'colour' is not in the json of each sample; allowed: id, kind, label" in said(capsys)


def test_texts_may_be_empty_or_huge(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "t").mkdir()
    for number in range(30):
        text = "" if number % 10 == 0 else SENTENCES[number % 5] * (20_000 if number == 1 else 2)
        (here / "t" / f"{number}.txt").write_text(text)
    assert main(["init", "mlm", "t"]) == 0, said(capsys)
    values = yaml.safe_load((here / "t-mlm.yaml").read_text())
    assert values["backbones"]["text"]["length"] <= 64 and set(values["evaluate"]) == {"language"}
    assert main(["config", "check", "t-mlm.yaml"]) == 0, said(capsys)
    (here / "e").mkdir()
    for number in range(3):
        (here / "e" / f"{number}.txt").write_text(" ")
    assert main(["init", "mlm", "e"]) == 2
    no = r"e has texts \(characters 1\), but all of its texts are empty; [\w, ]*\bmlm\b.* would take text, but not as"
    assert re.search(no, said(capsys))


def test_pictures_of_which_some_lack_a_caption_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = captioned(here / "pairs")
    (here / "pairs" / "a" / "0.txt").unlink()
    assert main(["init", "clip", data]) == 2
    assert "but no texts (txt) in 1 of 36 samples, such as 'a/0'; remove these samples, or add" in said(capsys)


def test_shards_without_parts_are_split_and_foreign_ones_are_not_touched(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folders(here / "photos")
    assert main(["shards", "pack", "photos", "mine", "--jobs", "1"]) == 0
    assert main(["init", "simclr", "mine"]) == 0, said(capsys)
    assert "bigssl shards split mine mine-split --part val=0.2 --equal-together" in capsys.readouterr().out
    both = [len(DatasetIndex.load(f"mine-split/{part}")) for part in ("train", "val")]
    assert sum(both) == 36 and min(both) > 0
    assert main(["init", "simclr", "photos"]) == 0
    (here / "photos" / "a" / "more.png").write_bytes(picture(99))
    assert main(["init", "byol", "photos"]) == 2
    assert "photos-shards is there already and holds 36 samples of another state of photos" in said(capsys)
    assert main(["init", "byol", "mine", "--window", "3"]) == 2 and "--window has no effect on mine" in said(capsys)
    assert main(["init", "barlow_twins", "mine", "--tokenizer", "t.json"]) == 2
    assert "--tokenizer t.json has no effect: barlow_twins takes no text" in said(capsys)


def test_folders_that_are_parts_stay_parts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "set").mkdir()
    class_folders(here / "set" / "train"), class_folders(here / "set" / "test", each=3)
    assert main(["init", "byol", "set"]) == 0, said(capsys)
    values = yaml.safe_load((here / "set-byol.yaml").read_text())
    assert values["data"]["sources"]["data"]["url"] == "set-shards/train"
    assert {section["queries"] for section in values["evaluate"].values()} == {"set-shards/test"}


def test_what_is_no_objective_for_init_is_answered(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "simclear", "photos"]) == 2
    assert f"no objective 'simclear'; allowed: {', '.join(SIMPLE)}; nearest: simclr" in said(capsys)
    assert main(["init", "photos", "simclr"]) == 2
    assert "the objective comes first: `bigssl init simclr photos`" in said(capsys)
    assert main(["init", "SimCLR", "photos"]) == 2 and said(capsys).endswith("; nearest: simclr\n")
    for name in set(discover()) - set(SIMPLE):
        assert main(["init", name, "photos"]) == 2 and "begin with one of them" in said(capsys)
    assert main(["init", "simclr", "nowhere"]) == 2 and "nowhere: no such file or folder" in said(capsys)


def test_from_a_folder_of_chinese_texts_to_whole_characters_that_are_masked(here: Path, ranks: Any) -> None:
    """All of 1,500 different characters are in the vocabulary, each a word; two steps of a run."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(0x4E00 + int(n)) for n in rng.integers(0, 1500, int(rng.integers(1, 4)))) for _ in range(1200)]
    (here / "新闻").mkdir()
    for number in range(40):
        said = "，".join("".join(words[n] for n in rng.integers(0, 1200, 9)) for _ in range(14))
        (here / "新闻" / f"文{number}.txt").write_text("" if number == 7 else f"{said}。")
    assert main(["init", "mlm", "新闻", "--out", "news.yaml"]) == 0
    tokenizer = load_tokenizer(here / "news-tokenizer.json")
    train_texts = [decode.running_text(sample) for sample in read_in_order(DatasetIndex.load("新闻-shards/train"))]
    ids, attention, words_of = encode_words(tokenizer, max(train_texts), 64)
    assert (ids == tokenizer.unk_token_id).sum() == 0 and attention.all()
    assert (np.diff(words_of[1:-1]) == 1).all()  # each character, and each comma, is a word
    some = ["--config", "news.yaml", "steps=2", "optim.warmup=0", "objective.masking=word", "batch.size=16",
            "evaluate={}", "probe=null"]  # fmt: skip
    assert ranks(train.main, 1, some) == [0]
    records = [json.loads(line) for line in (here / "runs/news/metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 2 and np.isfinite(records[-1]["loss"])
    assert records[-1]["stats/unmaskable"] <= 1 / 16  # the empty text, where it is on this side


def scans(folder: Path, each: int) -> str:
    """Pictures of 12 bits in 16, of two classes that are told apart by a bright square."""
    for number in range(2 * each):
        values = np.random.default_rng(number).integers(200, 1200, (24, 24)).astype(np.uint16)
        values[4:12, 4:12] += 2800 * (number % 2)
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return folder.name


def test_from_folders_of_deep_grey_pictures_to_a_first_step_a_scorecard_and_vectors(here: Path, ranks: Any) -> None:
    """One channel and the window are read off the data, and what is exported says them again."""
    data = scans(here / "pictures", each=150)
    assert main(["init", "simclr", data]) == 0
    section = yaml.safe_load((here / "pictures-simclr.yaml").read_text())["backbones"]["image"]
    low, high = section["window"]
    assert section["channels"] == 1 and 150 < low < 260 and 3800 < high < 4000
    first = ["--config", "pictures-simclr.yaml", "steps=1", "optim.warmup=0"]
    assert ranks(train.main, 1, first) == [0]
    records = [json.loads(line) for line in (here / "runs/pictures-simclr/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1] and np.isfinite(records[0]["loss"])
    assert list(json.loads((here / "runs/pictures-simclr/scorecard.json").read_text())["tasks"]) == ["knn", "linear"]
    network = bigssl.load(here / "runs/pictures-simclr")
    assert network.model.config.num_channels == 1 and network.takes.window == (low, high)  # type: ignore[attr-defined]
    values = np.asarray(Image.open(here / "pictures" / "b" / "1.png"))
    shown = np.clip(np.floor((values - float(low)) * (255 / (high - low)) + 0.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(network.embed([here / "pictures" / "b" / "1.png"]), network.embed([shown]))
