"""The scorecard of a tiny run: complete, repeatable, and right where it can be computed by hand."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.evaluate import Evaluation
from bigssl.data.errors import DataError
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.heads.base import Head
from bigssl.report.health import collapse_said
from bigssl.report.html import write_report
from bigssl.transfer import scorecard, subjects
from bigssl.transfer.bench import Bench
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.features import column, encoder, text_batches, view_batches
from bigssl.transfer.inputs import ImageInput, TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.scorecard import format_table, score
from bigssl.transfer.scores import Score
from bigssl.transfer.subjects import Captions

Make = Callable[..., PreTrainedModel]
Ranks = Callable[..., list[Any]]
Sections = dict[str, Evaluation]
parse: Callable[[Any], Sections] = TypeAdapter(dict[str, evaluation_union()]).validate_python
NAMES = ["images", "designs", "captions", "names", "class_mean"]


def sections(shards: Path) -> dict[str, dict[str, Any]]:
    train, val = str(shards / "train"), str(shards / "val")
    knn = {"task": "knn", "bank": train, "queries": val, "label": "category", "k": 5, "batch": 32}
    texts = {"queries": val, "captions": train, "label": "category", "item": "code", "batch": 32}
    return {
        "images": knn | {"item": "code"},
        "designs": {"task": "retrieval", "bank": train, "queries": val, "pair": "code", "view": "design", "batch": 32},
        "captions": knn | {"backbone": "text"},
        "names": texts | {"task": "zero_shot"},
        "class_mean": texts | {"task": "class_mean"},
    }


def settings(shards: Path, *names: str, **changes: Any) -> Sections:
    """Those of `sections` with these names, or all; with changes in each."""
    return parse({name: each | changes for name, each in sections(shards).items() if name in (names or NAMES)})


def pictures(index: DatasetIndex, encode: Callable[[Any], torch.Tensor]
             ) -> tuple[torch.Tensor, list[str], list[dict[str, Any]]]:
    batches = list(view_batches(read_in_order(index), ImageInput(32), batch=9))
    return (torch.cat([encode(each.arrays) for each in batches]), [key for each in batches for key in each.keys],
            [meta for each in batches for meta in each.meta])


def raw(batch: Any) -> torch.Tensor:
    return ImageInput(32).raws(batch)["raw pixels"] / 255


def vectors_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """[N, D]"""
    encode = encoder(model, "cpu")
    return torch.cat([encode(each.arrays) for each in text_batches(texts, TextInput(tokenizer, 32), batch=9)])


def test_card_is_complete_and_repeatable(run: Path, shards: Path) -> None:
    card = score(run, settings(shards), seed=3)
    assert list(card["tasks"]) == NAMES == list(card["verdicts"])
    stored = json.loads((run / "scorecard.json").read_text())
    assert stored == card and sorted(path.name for path in run.iterdir()) == ["export", "scorecard.json"]
    again = score(run, settings(shards), seed=3)
    assert again["tasks"] == card["tasks"] and again["health"] == card["health"]
    for name, task in card["tasks"].items():
        assert 0 <= task["trained"] <= 1 and 0 < task["chance"] < 1 and task["verdict"] and task["sentence"]
        assert (task["raw"] is None) == (name == "names")
        assert (task["majority"] is None) == (name == "designs")
    assert set(card["health"]) == {"image", "text"} and any("BatchNorm" in note for note in card["notes"])


def test_trained_and_raw_numbers_are_those_of_loops(run: Path, shards: Path, make_model: Make) -> None:
    card = score(run, settings(shards, "images", "designs"), seed=3)
    bank, queries = (DatasetIndex.load(shards / part) for part in ("train", "val"))
    encoders = {"trained": encoder(make_model("resnet"), "cpu"), "raw": raw}
    for name, encode in encoders.items():
        (known, known_keys, known_meta), (asked, keys, meta) = (pictures(index, encode) for index in (bank, queries))
        mean = known.mean(0)
        rows = [row / row.norm() for row in asked - mean]
        codes, designs = column(keys, meta, "code"), column(keys, meta, "design")
        found = 0
        for i, row in enumerate(rows):
            others = [j for j in range(len(rows)) if designs[j] != designs[i]]
            found += codes[max(others, key=lambda j: float(row @ rows[j]))] == codes[i]
        assert card["tasks"]["designs"][name] == pytest.approx(found / len(rows))
        assert card["tasks"]["designs"]["chance"] == pytest.approx(1 / 21)
        categories, wanted, right = column(known_keys, known_meta, "category"), column(keys, meta, "category"), 0
        for row, category in zip(rows, wanted, strict=True):
            cosines = torch.nn.functional.normalize(known - mean, dim=1) @ row
            votes: dict[str, float] = {}
            for value, j in zip(*(part.tolist() for part in cosines.topk(5)), strict=True):
                votes[categories[j]] = votes.get(categories[j], 0.0) + float(torch.tensor(value / 0.07).exp())
            right += max(sorted(votes), key=lambda each: votes[each]) == category
        assert card["tasks"]["images"][name] == pytest.approx(right / len(rows))


def test_colours_are_found_by_raw_pixels(run: Path, shards: Path) -> None:
    task = score(run, settings(shards, "images", "designs"), seed=0)["tasks"]["images"]
    assert task["raw"] == 1.0 and task["majority"] == pytest.approx(1 / 3) == task["chance"]


def test_captions_that_name_their_class_are_found_by_words(run: Path, shards: Path) -> None:
    task = score(run, settings(shards, "captions"), seed=0)["tasks"]["captions"]
    assert task["raw"] == 1.0 and task["queries"] == 21, "the two designs share a caption, which counts once"


def test_texts_that_hold_nothing_have_no_raw_baseline(run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Bench.captions

    def signs(*args: Any, **kwargs: Any) -> Captions:
        found = read(*args, **kwargs)
        return replace(found, texts=["" for _ in found.texts])

    monkeypatch.setattr(Bench, "captions", signs)
    card = score(run, settings(shards, "captions"), seed=0)
    task = card["tasks"]["captions"]
    assert task["raw"] is None and "raw" not in task["gains"] and task["raws"] == {} and task["trained"] is not None
    assert sum("evaluate.captions.bank: nothing to compare with by TF-IDF of" in note for note in card["notes"]) == 2


def test_zero_shot_of_towers_that_agree(run: Path, shards: Path, tokenizer: PreTrainedTokenizerFast,
                                        make_model: Make) -> None:
    """With projections solved so that class means of images and names coincide, zero-shot finds the class."""
    from bigssl.transfer.zero_shot import class_names

    image, words = make_model("resnet"), make_model("bert")
    seen, keys, meta = pictures(DatasetIndex.load(shards / "train"), encoder(image, "cpu"))
    texts, names = class_names(meta, "category")
    classes = sorted(set(names))
    vectors = vectors_of(words, tokenizer, texts)
    targets = torch.eye(3)
    image_targets = targets[[classes.index(each) for each in column(keys, meta, "category")]]
    text_targets = targets[[classes.index(each) for each in names]]
    head = {"image_projection": torch.linalg.lstsq(seen, image_targets, driver="gelsd").solution.T,
            "text_projection": torch.linalg.lstsq(vectors, text_targets, driver="gelsd").solution.T,
            "logit_scale": torch.tensor(1.0)}
    inputs = {"image": ImageInput(32), "text": TextInput(tokenizer, 32)}
    heads = {"clip": Head("clip", {"image": "image", "text": "text"}, head)}
    export_run(run, {"image": image, "text": words}, inputs, heads, {})
    task = score(run, settings(shards, "names", "class_mean"), seed=0)["tasks"]["names"]
    assert task["trained"] > 0.9 and task["passed"] and task["texts"] == 6 and task["title"].startswith("zero-shot")


def test_captions_with_labels_are_called_a_class_mean_and_have_a_supervised_baseline(
    run: Path, shards: Path, tokenizer: PreTrainedTokenizerFast, make_model: Make
) -> None:
    """Against loops: class means of unit caption vectors; and of the raw pixels of the labelled pictures."""
    card = score(run, settings(shards, "names", "class_mean"), seed=0)
    task, head = card["tasks"]["class_mean"], load_file(run / "export/heads/clip.safetensors")
    assert "zero-shot" not in task["title"] + task["sentence"] and task["raw_name"] == "class means of raw pixels"
    seen = {}
    for sample in read_in_order(DatasetIndex.load(shards / "train")):
        seen[sample.fields["txt"].decode(), json.loads(sample.fields["json"])["category"]] = None
    sums: dict[str, torch.Tensor] = {}
    vectors = vectors_of(make_model("bert"), tokenizer, [text for text, _ in seen])
    for (_, name), each in zip(seen, vectors, strict=True):
        vector = head["text_projection"] @ each
        sums[name] = sums.get(name, torch.zeros(8)) + vector / vector.norm()
    asked, keys, meta = pictures(DatasetIndex.load(shards / "val"), encoder(make_model("resnet"), "cpu"))
    wanted = column(keys, meta, "category")

    def nearest(row: torch.Tensor, means: dict[str, torch.Tensor]) -> str:
        return max(sorted(means), key=lambda name: torch.cosine_similarity(row, means[name], dim=0).item())

    right = [nearest(head["image_projection"] @ row, sums) == name for row, name in zip(asked, wanted, strict=True)]
    assert task["trained"] == pytest.approx(sum(right) / len(right)) and task["texts"] == len(seen)
    (known, known_keys, known_meta), (asked, _, _) = (
        pictures(DatasetIndex.load(shards / part), raw) for part in ("train", "val")
    )
    labels = column(known_keys, known_meta, "category")
    means = {name: known[[i for i, each in enumerate(labels) if each == name]].mean(0) - known.mean(0)
             for name in set(labels)}
    right = [nearest(row - known.mean(0), means) == name for row, name in zip(asked, wanted, strict=True)]
    assert task["raw"] == pytest.approx(sum(right) / len(right)) and task["raw"] > task["majority"]


@pytest.mark.parametrize("names", [["images", "names"], ["class_mean"]])
def test_no_query_sets_the_statistics_of_the_random_network(
    names: list[str], run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def record(model: PreTrainedModel, batches: Any, device: str) -> int:
        seen.extend(batches)
        return calibrate(model, iter(seen), device)

    calibrate = subjects.calibrate_batch_norm
    monkeypatch.setattr(subjects, "calibrate_batch_norm", record)
    score(run, settings(shards, *names), seed=0)
    known, _, _ = pictures(DatasetIndex.load(shards / "train"), raw)
    found = torch.cat([raw(each) for each in seen])
    assert sorted(row.tolist() for row in found) == sorted(row.tolist() for row in known)


def test_sizes_and_lengths_are_those_of_the_export(
    run: Path, shards: Path, tokenizer: PreTrainedTokenizerFast, make_model: Make
) -> None:
    """Networks that take no other: pictures of 48 pixels, texts of 8 tokens."""
    backbones = {"image": make_model("vit", image_size=48), "text": make_model("bert", max_position_embeddings=8)}
    inputs = {"image": ImageInput(48), "text": TextInput(tokenizer, 8)}
    into = {name: torch.randn(8, 16) for name in ("image_projection", "text_projection")}
    heads = {"clip": Head("clip", {"image": "image", "text": "text"}, into)}
    export_run(run, backbones, inputs, heads, {})
    assert list(score(run, settings(shards), seed=0)["tasks"]) == NAMES


def test_limits_are_told_and_kept(run: Path, shards: Path) -> None:
    asked = sections(shards)
    asked["images"] |= {"bank_limit": 50, "query_limit": 20}
    asked["captions"] |= {"bank_limit": 30}
    asked["names"] |= {"query_limit": 10, "caption_limit": 90}
    card = score(run, parse({name: asked[name] for name in ("images", "captions", "names")}), seed=0)
    assert (card["tasks"]["images"]["bank"], card["tasks"]["images"]["queries"]) == (50, 20)
    assert card["tasks"]["captions"]["bank"] <= 30 and card["tasks"]["names"]["queries"] == 10
    for note in ("images.bank: 50 of 120 samples, drawn by a fixed seed", "images.queries: 20 of 42",
                 "captions.bank: 30 of 120", "names.queries: 10 of 42", "names.captions: 90 of 120"):  # fmt: skip
        assert sum(f"evaluate.{note}" in text for text in card["notes"]) == 1, card["notes"]


def test_what_several_evaluations_ask_for_is_encoded_once(
    run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bank and queries of the images, for all of four evaluations."""
    stored: list[int] = []
    store = Scratch.store

    def counted(self: Scratch, batches: Any) -> Any:
        stored.append(1)
        return store(self, batches)

    monkeypatch.setattr(Scratch, "store", counted)
    score(run, settings(shards, "images", "designs", "names", "class_mean"), seed=0)
    assert len(stored) == 2 + 2, "pictures of bank and queries; names and captions"


def joined_score(run: Path, asked: Sections) -> dict[str, Any] | str:
    torch.distributed.init_process_group("gloo")
    try:
        return score(run, asked, seed=3)
    except DataError as error:
        return str(error)


def further(shards: Path) -> Sections:
    """What learns from labels, looks across modalities and has templates; and, last but one, what cannot be done."""
    train, val = str(shards / "train"), str(shards / "val")
    return parse({
        "linear": {"task": "linear", "train": train, "queries": val, "label": "category", "item": "code", "seeds": 2,
                   "fractions": [0.2, 1.0]},
        "across": {"task": "retrieval", "heads": "clip", "bank": train, "queries": val, "pair": "code", "k": [1, 5]},
        "broken": {"task": "knn", "bank": train, "queries": val, "label": "category", "k": 121},
        "templates": {"task": "zero_shot", "captions": train, "queries": val, "label": "category",
                      "templates": ["a {} thing", "thing of {}"]},
    })  # fmt: skip


@pytest.mark.distributed
def test_two_ranks_give_the_card_of_one(exported: Callable[..., Path], shards: Path, ranks: Ranks) -> None:
    """An evaluation that fails is named, and does not lose the rows of the others. (Networks with small weights
    make nearly the same of all samples: which of them is nearest would be a matter of rounding.)"""
    run = exported("vit", initializer_range=1.0)
    asked = settings(shards, batch=7) | further(shards)
    alone = score(run, asked, seed=3)
    broken = "evaluate.broken.k: value 121, but the bank has 120 samples; allowed: 1 to 120"
    assert alone["failed"] == {"broken": broken} and alone["tasks"].keys() == {
        *NAMES, "linear", "templates", "templates/names",
        *(f"across/{way}{k}" for way in ("images_to_texts", "texts_to_images") for k in ("", "@5"))}  # fmt: skip
    for text in (format_table(alone), write_report(run).read_text()):
        assert f"broken failed:</b> {broken}" in text or f"failed: broken: {broken}" in text
    (run / "scorecard.json").unlink()
    cards = ranks(joined_score, 2, run, asked)
    assert cards[0]["tasks"] == cards[1]["tasks"] and json.loads((run / "scorecard.json").read_text()) == cards[0]
    for name, task in alone["tasks"].items():
        both = cards[0]["tasks"][name]
        if name.startswith("across/images_to_texts"):  # some of these texts are the same tokens, equally near
            continue
        assert both["sentence"] == task["sentence"] and both["gains"] == task["gains"], name
        assert (both["seeds"], both["curve"]) == (task["seeds"], task["curve"]) and bool(task["curve"]) == (
            name == "linear"), name  # fmt: skip
    for name, values in alone["health"].items():
        for contender, health in values.items():
            assert cards[0]["health"][name][contender] == pytest.approx(health, rel=1e-4)
    assert cards[0]["failed"] == alone["failed"]
    assert cards[0]["notes"] == alone["notes"] and not (run / ".scorecard").exists()


@pytest.mark.distributed
def test_ranks_without_a_query_of_their_own_do_no_harm(
    run: Path, shards: Path, tmp_path: Path, ranks: Ranks, make_shards: Callable[..., None]
) -> None:
    make_shards(tmp_path / "few", range(2), shards=1)
    asked = settings(shards, queries=str(tmp_path / "few"))
    alone = score(run, asked, seed=3)
    for card in ranks(joined_score, 5, run, asked):
        assert {name: task["sentence"] for name, task in card["tasks"].items()} == {
            name: task["sentence"] for name, task in alone["tasks"].items()
        }


@pytest.mark.distributed
def test_what_one_rank_cannot_read_ends_all(
    run: Path, shards: Path, tmp_path: Path, ranks: Ranks, make_shards: Callable[..., None]
) -> None:
    """The last samples, which only the last rank reads, have no label."""
    folder = tmp_path / "unlabelled"
    make_shards(folder, range(4), shards=1, lacking="category", of=range(3, 4))
    texts = ranks(joined_score, 2, run, settings(shards, "images", queries=str(folder)), timeout=60)
    assert texts[0] == texts[1] and "sample '0003-google': no metadata field 'category'" in texts[0]


def test_heads_of_other_backbones_are_refused(run: Path, shards: Path) -> None:
    file = run / "export/heads/clip.safetensors"
    for heads, said in (({"image_projection": torch.zeros(8, 16), "text_projection": torch.zeros(8, 4)},
                         r"text_projection \[any, 16\] is needed.* text_projection \[8, 4\]"),
                        ({"bias": torch.zeros(3)}, r"image_projection \[any, 16\] is needed.*there is: bias \[3\]")):
        save_file(heads, file)
        with pytest.raises(DataError, match=f"evaluate.names.heads: {said}"):
            score(run, settings(shards, "names", "class_mean"), seed=0)
    file.write_bytes(b"half")
    with pytest.raises(DataError, match="clip.safetensors: not whole"):
        score(run, settings(shards, "names", "class_mean"), seed=0)


def test_an_evaluation_that_was_killed_leaves_nothing_to_the_next(run: Path, shards: Path) -> None:
    (run / ".scorecard" / "rank-0").mkdir(parents=True)
    (run / ".scorecard" / "rank-0" / "1-raw").write_bytes(b"x" * 1000)
    score(run, settings(shards, "images", "designs"), seed=3)
    assert not (run / ".scorecard").exists()


def test_table_has_one_row_per_task(run: Path, shards: Path) -> None:
    card = score(run, settings(shards), seed=3)
    lines = format_table(card).splitlines()
    health = [f"features of {name}: RankMe " for name in ("image", "text")]
    collapsed = collapse_said(card["health"])  # the network's BatchNorm has statistics of no data
    assert len(lines) == 2 + len(NAMES) + len(health) + len(collapsed) + 1 + len(card["notes"])
    said = lines[2 + len(NAMES) :]
    assert all(line.startswith(words) for line, words in zip(said, health, strict=False))
    assert said[2 : 2 + len(collapsed)] == collapsed
    said = said[2 + len(collapsed) :]
    assert said[0].startswith("text kNN: category: raw input is TF-IDF of ") and "the best on these queries" in said[0]
    assert lines[0].split()[:4] == ["task", "chance", "blind", "random"] and set(lines[1]) == {"-"}
    for line, task in zip(lines[2:], card["tasks"].values(), strict=False):
        assert line.startswith(task["title"]) and line.endswith(task["verdict"])


def test_report_shows_the_card(run: Path, shards: Path) -> None:
    card = score(run, settings(shards), seed=3)
    page = write_report(run).read_text()
    assert all(f"{100 * task['trained']:.1f} %" in page for task in card["tasks"].values())


def test_one_bad_evaluation_or_row_does_not_lose_the_others(run: Path, shards: Path) -> None:
    """Weights that are NaN, an error that nobody foresaw, a number that json has no word for. The card is there, with
    what was found so far, before the last one begins."""
    weights = load_file(run / "export/text/model.safetensors")
    save_file({name: each * torch.nan if each.is_floating_point() else each for name, each in weights.items()},
              run / "export/text/model.safetensors", metadata={"format": "pt"})  # fmt: skip
    seen: list[dict[str, Any]] = []

    def asked(work: Callable[[], list[Score]]) -> Any:
        return SimpleNamespace(run=lambda bench: work(), batch=8, metadata=list, unlabelled=dict)

    def two_rows() -> list[Score]:
        values = {"trained": torch.tensor([1.0, 0.0]), "raw": torch.tensor([0.0, 0.0])}
        odd = replace(Score("odd", "of 2", values, ["a", "b"]), values=values | {"raw": torch.tensor([0.0, torch.nan])})
        return [replace(odd, row="odd"), Score("good", "of 2", values, ["a", "b"], row="good")]

    def last() -> list[Score]:
        seen.append(json.loads((run / "scorecard.json").read_text()))
        return []

    given = settings(shards, "images", "captions") | {
        "bug": asked(lambda: [1 // 0]), "rows": asked(two_rows), "last": asked(last)}  # type: ignore[list-item]
    card = score(run, given, seed=0)
    assert list(card["tasks"]) == ["images", "rows/good"] and json.loads((run / "scorecard.json").read_text()) == card
    failed = {
        "captions": r"evaluate.captions: features of text \(trained\) are not finite for 60 of 60 samples; .*",
        "bug": "ZeroDivisionError: integer division or modulo by zero",
        "rows/odd": r"evaluate.rows/odd: raw is nan \(odd\); a number that is not finite says nothing.*",
    }
    assert list(card["failed"]) == list(failed)
    assert all(re.fullmatch(said, card["failed"][name]) for name, said in failed.items()), card["failed"]
    assert seen[0]["tasks"] == card["tasks"] and seen[0]["failed"] == card["failed"] | {"last": "not evaluated yet"}


def test_nothing_asked_gives_an_empty_card(run: Path) -> None:
    card = score(run, {}, seed=0)
    assert card["tasks"] == {} and format_table(card)


def test_crash_midway_leaves_the_older_card(run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score(run, settings(shards, "images", "designs"), seed=3)
    before = (run / "scorecard.json").read_bytes()

    def crash(*args: object, **kwargs: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(scorecard, "write_atomic", crash)
    with pytest.raises(OSError, match="gone"):
        score(run, settings(shards, "images", "designs"), seed=4)
    assert (run / "scorecard.json").read_bytes() == before


@pytest.mark.parametrize("name, changes, message", [
    ("images", {"k": 121}, "evaluate.images.k: value 121, but the bank has 120"),
    ("images", {"label": "colour"}, "no metadata field 'colour' in its json; it has category, code, design"),
    ("captions", {"label": "colour"}, "no metadata field 'colour'"),
    ("designs", {"view": "code"}, "evaluate.designs.pair: value 'code', but none occurs in two 'code's"),
    ("images", {"backbone": "audio"}, "no export at .*there is: README.md, heads, image, text"),
    ("names", {"image_backbone": "text"}, "evaluate.names: backbone 'text' takes texts; allowed: one"),
])
def test_impossible_settings_are_named(run: Path, shards: Path, name: str, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(run, settings(shards, name, **changes), seed=0)


def test_rows_of_one_title_are_told_apart_by_their_names() -> None:
    """BYOL's network and its teacher, judged by one field, were two lines that nobody could tell."""
    given = {"knn_image": "image kNN: kind", "knn_image_teacher": "image kNN: kind", "words": "masked words"}
    rows = scorecard.told_apart({name: {"title": title, "queries": 3} for name, title in given.items()})
    titles = [row["title"] for row in rows.values()]
    assert titles == ["image kNN: kind (knn_image)", "image kNN: kind (knn_image_teacher)", "masked words"]
