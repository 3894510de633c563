"""The scorecard of a tiny run: complete, repeatable, and right where it can be computed by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config import Evaluate
from bigssl.data.errors import DataError
from bigssl.data.index import DatasetIndex
from bigssl.report.html import write_report
from bigssl.transfer import scorecard
from bigssl.transfer.export import export_run
from bigssl.transfer.features import encode_images, raw_pixels
from bigssl.transfer.scorecard import format_table, score

Make = Callable[..., PreTrainedModel]
TASKS = ["images.knn", "images.retrieval", "text.knn", "zero_shot.names", "zero_shot.captions"]


def settings(shards: Path, **changes: Any) -> Evaluate:
    train, val = str(shards / "train"), str(shards / "val")
    values: dict[str, Any] = {
        "images": {"bank": train, "queries": val, "size": 32, "k": 5},
        "text": {"bank": train, "queries": val, "k": 5},
        "zero_shot": {"queries": val, "captions": train, "size": 32},
        "batch": 32,
    }
    return Evaluate.model_validate(values | changes)


@pytest.fixture
def run(tmp_path: Path, make_model: Make, tokenizer: PreTrainedTokenizerFast) -> Path:
    generator = torch.Generator().manual_seed(0)
    heads = {"clip": {"image_projection": torch.randn(8, 16, generator=generator), "logit_scale": torch.tensor(2.0),
                      "text_projection": torch.randn(8, 16, generator=generator)}}
    backbones = {"image": make_model("resnet"), "text": make_model("bert")}
    export_run(tmp_path, backbones, {"text": tokenizer}, heads, {})
    return tmp_path


def test_card_is_complete_and_repeatable(run: Path, shards: Path) -> None:
    card = score(run, settings(shards), seed=3)
    assert list(card["tasks"]) == TASKS == list(card["verdicts"])
    stored = json.loads((run / "scorecard.json").read_text())
    assert stored == card and not list(run.glob("*.tmp"))
    again = score(run, settings(shards), seed=3)
    assert again["tasks"] == card["tasks"] and again["health"] == card["health"]
    for name, task in card["tasks"].items():
        assert 0 <= task["trained"] <= 1 and 0 < task["chance"] < 1 and task["verdict"] and task["sentence"]
        assert (task["raw"] is None) == name.startswith("zero_shot")
        assert (task["majority"] is None) == (name == "images.retrieval")
    assert set(card["health"]) == {"image", "text"} and any("BatchNorm" in note for note in card["notes"])


def test_trained_and_raw_numbers_are_those_of_loops(run: Path, shards: Path, make_model: Make) -> None:
    card = score(run, settings(shards, text=None, zero_shot=None), seed=3)
    bank, queries = (DatasetIndex.load(shards / part) for part in ("train", "val"))
    features = {
        "trained": [encode_images(make_model("resnet"), i, size=32, batch=9, device="cpu") for i in (bank, queries)],
        "raw": [raw_pixels(index, 32) for index in (bank, queries)],
    }
    for name, (known, asked) in features.items():
        mean = known.vectors.mean(0)
        rows = [row / row.norm() for row in asked.vectors - mean]
        codes, designs = asked.column("code"), asked.column("design")
        found = 0
        for i, row in enumerate(rows):
            others = [j for j in range(len(rows)) if designs[j] != designs[i]]
            found += codes[max(others, key=lambda j: float(row @ rows[j]))] == codes[i]
        assert card["tasks"]["images.retrieval"][name] == pytest.approx(found / len(rows))
        assert card["tasks"]["images.retrieval"]["chance"] == pytest.approx(1 / 21)
        categories, wanted, right = known.column("category"), asked.column("category"), 0
        for row, category in zip(rows, wanted, strict=True):
            cosines = torch.nn.functional.normalize(known.vectors - mean, dim=1) @ row
            votes: dict[str, float] = {}
            for value, j in zip(*(part.tolist() for part in cosines.topk(5)), strict=True):
                votes[categories[j]] = votes.get(categories[j], 0.0) + float(torch.tensor(value / 0.07).exp())
            right += max(sorted(votes), key=lambda each: votes[each]) == category
        assert card["tasks"]["images.knn"][name] == pytest.approx(right / len(rows))


def test_colours_are_found_by_raw_pixels(run: Path, shards: Path) -> None:
    task = score(run, settings(shards, text=None, zero_shot=None), seed=0)["tasks"]["images.knn"]
    assert task["raw"] == 1.0 and task["majority"] == pytest.approx(1 / 3) == task["chance"]


def test_captions_that_name_their_class_are_found_by_words(run: Path, shards: Path) -> None:
    task = score(run, settings(shards, images=None, zero_shot=None), seed=0)["tasks"]["text.knn"]
    assert task["raw"] == 1.0 and task["queries"] == 21, "the two designs share a caption, which counts once"


def test_zero_shot_of_towers_that_agree(run: Path, shards: Path, tokenizer: PreTrainedTokenizerFast,
                                        make_model: Make) -> None:
    """With projections solved so that class means of images and names coincide, zero-shot finds the class."""
    from bigssl.transfer.features import encode_texts
    from bigssl.transfer.zero_shot import class_names

    image, words = make_model("resnet"), make_model("bert")
    seen = encode_images(image, DatasetIndex.load(shards / "train"), size=32, batch=64, device="cpu")
    texts, names = class_names(seen.meta, "category")
    classes = sorted(set(names))
    vectors = encode_texts(words, tokenizer, texts, length=32, batch=8, device="cpu")
    targets = torch.eye(3)
    image_targets = targets[[classes.index(each) for each in seen.column("category")]]
    text_targets = targets[[classes.index(each) for each in names]]
    head = {"image_projection": torch.linalg.lstsq(seen.vectors, image_targets, driver="gelsd").solution.T,
            "text_projection": torch.linalg.lstsq(vectors, text_targets, driver="gelsd").solution.T,
            "logit_scale": torch.tensor(1.0)}
    export_run(run, {"image": image, "text": words}, {"text": tokenizer}, {"clip": head}, {})
    task = score(run, settings(shards, images=None, text=None), seed=0)["tasks"]["zero_shot.names"]
    assert task["trained"] > 0.9 and task["passed"] and task["texts"] == 6


def test_table_has_one_row_per_task(run: Path, shards: Path) -> None:
    card = score(run, settings(shards), seed=3)
    lines = format_table(card).splitlines()
    assert len(lines) == 2 + len(TASKS) + len(card["notes"])
    assert lines[0].split()[:4] == ["task", "chance", "majority", "random"] and set(lines[1]) == {"-"}
    for line, task in zip(lines[2:], card["tasks"].values(), strict=False):
        assert line.startswith(task["title"]) and line.endswith(task["verdict"])


def test_report_shows_the_card(run: Path, shards: Path) -> None:
    card = score(run, settings(shards), seed=3)
    page = write_report(run).read_text()
    assert all(f"{100 * task['trained']:.1f} %" in page for task in card["tasks"].values())


def test_nothing_asked_gives_an_empty_card(run: Path) -> None:
    card = score(run, Evaluate(), seed=0)
    assert card["tasks"] == {} and format_table(card)


def test_crash_midway_leaves_the_older_card(run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score(run, settings(shards, text=None, zero_shot=None), seed=3)
    before = (run / "scorecard.json").read_bytes()

    def crash(*args: object, **kwargs: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(scorecard.Path, "replace", crash)
    with pytest.raises(OSError, match="gone"):
        score(run, settings(shards, text=None, zero_shot=None), seed=4)
    assert (run / "scorecard.json").read_bytes() == before


@pytest.mark.parametrize("changes, message", [
    ({"k": 121}, "evaluate.images.k: value 121, but the bank has 120"),
    ({"label": "colour"}, "no metadata field 'colour'"),
    ({"view": "code"}, "evaluate.images.pair: value 'code', but none occurs in two 'code's"),
    ({"backbone": "audio"}, "no export at .*there is: README.md, heads, image, text"),
])
def test_impossible_settings_are_named(run: Path, shards: Path, changes: dict, message: str) -> None:
    asked = settings(shards).model_dump()["images"] | changes
    with pytest.raises(DataError, match=message):
        score(run, settings(shards, images=asked, text=None, zero_shot=None), seed=0)
