"""The demo data that the project carries: whole, small, split without leaks, attributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bigssl
from bigssl.data.kinds import decode
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.order.stream import read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.verify import verify

DEMO = Path(bigssl.__file__).parent / "demo"
PARTS = {
    "emoji/train": 3078,
    "emoji/val": 734,
    "speech/train": 960,
    "speech/val": 90,
    "speech/words": 160,
    "text/train": 71,
    "text/val": 8,
    "series/basic_motions/train": 40,
    "series/basic_motions/test": 40,
    "series/italy_power/train": 67,
    "series/italy_power/test": 1029,
}


def samples(part: str) -> list[Sample]:
    return list(read_in_order(DatasetIndex.load(DEMO / part)))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_sound(part: str) -> None:
    assert len(DatasetIndex.load(DEMO / part)) == PARTS[part]
    assert list(verify(str(DEMO / part))) == []


def test_the_demo_is_small_and_has_shards_for_ranks() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 12_000_000
    assert len(DatasetIndex.load(DEMO / "emoji/train").shards) >= 4


def test_emoji_have_two_designs_on_one_side() -> None:
    sides = {}
    for part in ("train", "val"):
        found = samples(f"emoji/{part}")
        designs: dict[str, set[str]] = {}
        for sample in found:
            facts = decode.meta(sample.fields["json"])
            assert sample.key == f"{facts['code']}-{facts['design']}"
            assert set(facts) == {"code", "design", "category", "subcategory", "caption_zh"}
            designs.setdefault(facts["code"], set()).add(facts["design"])
        assert set(map(frozenset, designs.values())) == {frozenset({"google", "twitter"})}
        sides[part] = set(designs)
    assert not sides["train"] & sides["val"]
    assert len(sides["train"] | sides["val"]) == 1906
    assert len(sides["val"]) / 1906 == pytest.approx(0.2, abs=0.02)


def test_emoji_pictures_and_captions() -> None:
    by_key = {sample.key: sample for sample in samples("emoji/train") + samples("emoji/val")}
    sample = by_key["1f600-google"]
    assert decode.text(sample.fields["txt"]).startswith("grinning face: ")
    assert {decode.image(s.fields["jpg"]).size for s in by_key.values()} == {(64, 64)}


def test_speech_holds_voices_and_emoji_out() -> None:
    """On the side of the split where the pictures are: nobody's emoji in val were ever seen or heard of."""
    heard: dict[str, set[tuple[str, str, str]]] = {}
    for part in ("train", "val", "words"):
        heard[part] = set()
        for sample in samples(f"speech/{part}"):
            facts = decode.meta(sample.fields["json"])
            assert set(facts) == {"code", "category", "subcategory", "voice"}
            assert sample.key == f"{facts['code']}-{facts['voice']}"
            values, rate = decode.audio(sample.fields["ogg"])
            assert rate == 16_000 and values.shape[1] == 1 and 0.1 < len(values) / rate < 1.5
            assert np.abs(values).max() > 0.05
            heard[part].add((facts["code"], facts["voice"], decode.text(sample.fields["txt"])))
            assert decode.image(sample.fields["webp"]).size == (64, 64)
    codes = {part: {code for code, _, _ in found} for part, found in heard.items()}
    voices = {part: {voice for _, voice, _ in found} for part, found in heard.items()}
    assert len(codes["train"]) == 320 and len(voices["train"]) == 3
    assert voices["val"] == voices["words"] and len(voices["val"]) == 1 and not voices["val"] & voices["train"]
    assert codes["words"] < codes["train"] and not codes["val"] & codes["train"]
    pictures = {part: {decode.meta(s.fields["json"])["code"] for s in samples(f"emoji/{part}")}
                for part in ("train", "val")}  # fmt: skip
    assert codes["train"] < pictures["train"] and codes["val"] < pictures["val"]
    said = {part: {text.lower() for _, _, text in found} for part, found in heard.items()}
    assert not said["val"] & said["train"] and len(said["train"]) == 320  # a caption means one emoji


def test_texts_and_series() -> None:
    texts = samples("text/train") + samples("text/val")
    assert {frozenset(decode.meta(s.fields["json"])) for s in texts} == {frozenset({"year", "name", "party"})}
    assert min(len(decode.text(s.fields["txt"])) for s in texts) > 5000
    shapes = {"basic_motions": (100, 6), "italy_power": (24, 1)}
    for name, shape in shapes.items():
        assert {decode.series(s.fields["npy"]).shape for s in samples(f"series/{name}/train")} == {shape}


@pytest.mark.parametrize(
    ("file", "size", "part"),
    [("tokenizer", 8192, "emoji/train"), ("tokenizer-prose", 1024, "text/train"),
     ("tokenizer-characters", 99, "text/train")],
)
def test_the_tokenizers_know_the_training_text(file: str, size: int, part: str) -> None:
    tokenizer = load_tokenizer(DEMO / f"{file}.json")
    assert len(tokenizer) == size
    ids = [tokenizer(decode.text(s.fields["txt"]))["input_ids"] for s in samples(part)[:300]]
    flat = [i for row in ids for i in row]
    assert flat.count(tokenizer.unk_token_id) < len(flat) / 100


def test_sources_are_attributed() -> None:
    text = (DEMO / "ATTRIBUTION.md").read_text()
    for name in ("Apache License 2.0", "CC BY 4.0", "MIT License", "public domain", "UEA & UCR", "Noto", "Twemoji",
                 "espeak-ng"):
        assert name in text
