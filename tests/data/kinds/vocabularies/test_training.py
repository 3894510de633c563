"""Vocabularies of each kind: their size, what is lost of a text, the same bytes from the same texts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bigssl.data.errors import DataError
from bigssl.data.kinds.text import SPECIALS, lacking, load_tokenizer
from bigssl.data.kinds.vocabularies.training import KINDS, train_tokenizer

WORDS = [
    "the state of the union",
    "The Union is strong",
    "a smiling face: cheerful, grin",
    "face with tears of joy",
] * 20
CHINESE = ["".join(chr(0x4E00 + int(i)) for i in np.random.default_rng(n).zipf(1.3, 40) % 4000) for n in range(300)]


MIXED = [f"Ｔhe {a} union, {b}\n\nof states" for a, b in zip(CHINESE[:60], WORDS * 2, strict=False)]


def test_the_same_texts_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Hash tables are seeded anew in each process, and a unigram model's sums differ with their order."""
    (tmp_path / "texts.json").write_text(json.dumps(MIXED))
    code = ("import json; from bigssl.data.kinds.vocabularies.training import KINDS, train_tokenizer as t; "
            "[t(json.load(open('texts.json')), 700, f'{kind}.there', kind) for kind in KINDS]")  # fmt: skip
    there = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    for kind in KINDS:
        train_tokenizer(MIXED, 700, tmp_path / f"{kind}.here", kind)
    assert there.wait() == 0
    for kind in KINDS:
        assert (tmp_path / f"{kind}.here").read_bytes() == (tmp_path / f"{kind}.there").read_bytes(), kind


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "characters"])
def test_each_kind_serves_masking_and_causal_models(kind: str, tmp_path: Path) -> None:
    learnt = train_tokenizer(MIXED, 900, tmp_path / "t.json", kind)
    tokenizer = load_tokenizer(tmp_path / "t.json")
    assert len(tokenizer) == learnt.entries <= 900
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIALS.values())
    assert lacking(tokenizer, [*SPECIALS, "eos_token", "bos_token"]) == ""
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (tokenizer.sep_token_id, tokenizer.cls_token_id)
    ids = tokenizer("the union 我")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    pair = tokenizer("the union", "of states", return_token_type_ids=True)
    assert pair["input_ids"].count(tokenizer.sep_token_id) == 2
    last = pair["input_ids"].index(tokenizer.sep_token_id)
    assert pair["token_type_ids"] == [0] * (last + 1) + [1] * (len(pair["input_ids"]) - last - 1)
    text = "The union, of states is strong"
    back = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert back.replace(" ,", ",") == (text.lower() if kind == "wordpiece" else text)


def test_bytes_know_every_text(tmp_path: Path) -> None:
    train_tokenizer(WORDS, 300, tmp_path / "t.json", "bpe")
    tokenizer, text = load_tokenizer(tmp_path / "t.json"), "漢字 🤗 Ünïon\r\n\t\x00 é"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    with pytest.raises(DataError, match="vocab-size 260; allowed: >= 261, for the 5 special tokens and 256 bytes"):
        train_tokenizer(WORDS, 260, tmp_path / "u.json", "bpe")


@pytest.mark.parametrize("size", [6, 50, 500, 2000])
def test_a_unigram_vocabulary_says_what_it_lacks(size: int, tmp_path: Path) -> None:
    learnt = train_tokenizer(MIXED, size, tmp_path / "t.json", "unigram")
    tokenizer = load_tokenizer(tmp_path / "t.json")
    vocabulary, backend = tokenizer.get_vocab(), tokenizer.backend_tokenizer
    assert len(vocabulary) == learnt.entries <= size
    words = [word for text in MIXED
             for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]
    lost = sum(character not in vocabulary for word in words for character in word)
    assert learnt.alphabet.unknown == pytest.approx(lost / sum(map(len, words)), abs=1e-9)
    assert (lost > 0) == (size < 2000) == ("becomes [UNK]" in learnt.sentence)
    assert size < 2000 or "▁state" in vocabulary


def unknown_share(path: Path, texts: list[str]) -> float:
    """By loops: the share of the characters that lie in words which became [UNK]."""
    tokenizer, lost, every = load_tokenizer(path), 0, 0
    backend = tokenizer.backend_tokenizer
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            every += len(word)
            lost += len(word) * (tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"])
    return lost / every


@pytest.mark.parametrize("size", [7, 50, 500, 2000, 8192])
@pytest.mark.parametrize("texts", [CHINESE, WORDS + CHINESE[:20], WORDS], ids=["chinese", "both", "english"])
def test_a_vocabulary_is_never_larger_than_asked_for_and_says_what_it_lacks(
    texts: list[str], size: int, tmp_path: Path
) -> None:
    learnt = train_tokenizer(texts, size, tmp_path / "t.json")
    vocabulary = load_tokenizer(tmp_path / "t.json").get_vocab()
    assert len(vocabulary) == learnt.entries <= size and sorted(vocabulary.values()) == list(range(len(vocabulary)))
    there = sum(character in vocabulary for character in learnt.alphabet.ranked)
    assert there == learnt.alphabet.count
    assert learnt.alphabet.unknown == pytest.approx(unknown_share(tmp_path / "t.json", texts), abs=1e-9)
    if there < len(learnt.alphabet.ranked):
        every = len(learnt.alphabet.ranked)
        assert f"; {every - there:,} of {every:,} characters are not among them; " in learnt.sentence
    else:
        assert learnt.sentence == f"{learnt.entries:,} entries"


def test_a_size_that_is_too_small_is_answered_with_one_that_will_do(tmp_path: Path) -> None:
    said = train_tokenizer(CHINESE, 500, tmp_path / "t.json").sentence
    found = re.search(r"of the text becomes \[UNK\]: too small for this text; --vocab-size (\d+) or more", said)
    assert found, said
    train_tokenizer(CHINESE, int(found[1]), tmp_path / "t.json")
    assert unknown_share(tmp_path / "t.json", CHINESE) <= 0.0005
    train_tokenizer(CHINESE, int(found[1]) - 50, tmp_path / "t.json")
    assert unknown_share(tmp_path / "t.json", CHINESE) > 0.0005
    for size, texts, words in ((6, WORDS, "vocab-size 6; allowed: >= 7, for the 5 special tokens and one character"),
                               (100, ["", " "], "no characters to learn from")):
        with pytest.raises(DataError, match=words):
            train_tokenizer(texts, size, tmp_path / "u.json")
    assert not (tmp_path / "u.json").exists()


def test_rare_characters_do_not_take_the_place_of_words(tmp_path: Path) -> None:
    """Of characters that are one in thousands of the text, few are kept: words are learnt all the same."""
    texts = WORDS * 200 + [chr(0x4E00 + i) for i in range(150)]
    learnt = train_tokenizer(texts, 120, tmp_path / "t.json")
    assert learnt.entries == 120 and 20 < learnt.alphabet.count < 70 < len(learnt.alphabet.ranked)
    assert load_tokenizer(tmp_path / "t.json").tokenize("the union") == ["the", "union"]


@pytest.mark.parametrize("word", ["हिन्दी", "がぎぐ", "한국어", "ภาษาไทย", "việt"])
def test_marks_that_are_letters_stay(word: str, tmp_path: Path) -> None:
    train_tokenizer([f"{word} {word}"] * 5, 200, tmp_path / "t.json")
    tokenizer = load_tokenizer(tmp_path / "t.json")
    assert tokenizer.decode(tokenizer(word)["input_ids"], skip_special_tokens=True) == word


def test_texts_are_not_held_in_memory(tmp_path: Path) -> None:
    """Held as words they would take some 30 MB."""
    texts = ("".join(chr(0x4E00 + (n * 31 + at) % 700) for at in range(1000)) for n in range(300))
    tracemalloc.start()
    try:
        assert train_tokenizer(texts, 1000, tmp_path / "tokenizer.json").entries == 705
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_characters_are_put_together_again(tmp_path: Path) -> None:
    texts = ["Two words,\nand a line.", "é and e\u0301 are one", "  spaces  "]
    learnt = train_tokenizer(texts, 100, tmp_path / "t.json", "characters")
    tokenizer = load_tokenizer(tmp_path / "t.json")
    assert learnt.entries == len(tokenizer) == 5 + len(set("".join(texts).replace("\u0301", "")))
    for text in (texts[0], texts[2]):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text) and tokenizer.decode(ids) == text
    assert tokenizer(texts[1])["input_ids"].count(tokenizer("é")["input_ids"][1]) == 2
    assert tokenizer("x~", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id] * 2
    train_tokenizer(texts, 10, tmp_path / "few.json", "characters")
    few = set(load_tokenizer(tmp_path / "few.json").get_vocab()) - set(SPECIALS.values())
    assert few == set(" aden"), "the most frequent"
