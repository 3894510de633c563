"""Tokenizers, encoding, windows at words."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.kinds.text import (
    SPECIALS,
    encode,
    encode_pieces,
    encode_words,
    lacking,
    load_tokenizer,
    random_window,
    special_mask,
    train_tokenizer,
)

WORDS = [
    "the state of the union",
    "The Union is strong",
    "a smiling face: cheerful, grin",
    "face with tears of joy",
] * 20


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "sub" / "tokenizer.json"
    train_tokenizer(iter(WORDS), 200, path)
    return path


def test_training_is_deterministic(tokenizer_file: Path, tmp_path: Path) -> None:
    train_tokenizer(WORDS, 200, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == tokenizer_file.read_bytes()


def test_words_come_back_in_lower_case(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    assert len(tokenizer) <= 200
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
    assert [tokenizer.sep_token_id, tokenizer.mask_token_id] == [3, 4]
    ids, attention = encode(tokenizer, "The UNION grin", 16)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the union grin"
    assert encode(tokenizer, "漢", 4)[0].tolist() == [2, 1, 3, 0]
    assert attention.sum() == (ids != 0).sum()


@pytest.mark.parametrize("length", [2, 3, 5, 64])
def test_encode_cuts_and_pads(tokenizer_file: Path, length: int) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    ids, attention = encode(tokenizer, "the state of the union is strong", length)
    used = int(attention.sum())
    assert ids.shape == attention.shape == (length,)
    assert ids.dtype == attention.dtype == np.int64
    assert (ids[0], ids[used - 1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert attention.tolist() == [1] * used + [0] * (length - used)
    assert (ids[used:] == 0).all()
    assert used == min(length, 9)


def test_words_are_numbered(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    ids, attention, words = encode_words(tokenizer, "the stateunion [MASK] 漢 face:", 16)
    plain = encode(tokenizer, "the stateunion [MASK] 漢 face:", 16)
    assert (ids.tolist(), attention.tolist()) == (plain[0].tolist(), plain[1].tolist())
    tokens = tokenizer.convert_ids_to_tokens(ids)
    for place, (token, word) in enumerate(zip(tokens, words.tolist(), strict=True)):
        if token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"):
            assert word == -1
        else:
            assert (word == words[place - 1]) == token.startswith("##")
    assert sum(token.startswith("##") for token in tokens) >= 1 and "[UNK]" in tokens


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "strong", "漢", "[SEP]", ""]), max_size=12), st.integers(3, 20))
def test_pieces_hold_the_whole_text(tokenizer_file: Path, parts: list[str], length: int) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    text = " ".join(parts)
    pieces = list(encode_pieces(tokenizer, text, length))
    assert all(len(ids) == length for ids, _ in pieces[:-1]) and 2 <= len(pieces[-1][0]) <= length
    assert all((ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) for ids, _ in pieces)
    inside = [token for ids, _ in pieces for token in ids[1:-1].tolist()]
    assert inside == tokenizer(text, add_special_tokens=False)["input_ids"]
    for ids, words in pieces:
        assert (words.dtype, words.shape) == (np.int64, ids.shape)
        assert ((words == -1) == special_mask(tokenizer, ids)).all()
    first, words = pieces[0]
    expected = encode_words(tokenizer, text, length)
    assert first.tolist() == expected[0][: len(first)].tolist() and words.tolist() == expected[2][: len(first)].tolist()


def test_saved_tokenizers_load_from_their_folder(tokenizer_file: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert encode(again, WORDS[1], 12)[0].tolist() == encode(tokenizer, WORDS[1], 12)[0].tolist()
    assert load_tokenizer(tokenizer_file.parent).get_vocab() == tokenizer.get_vocab()


def test_what_is_no_tokenizer_and_what_one_lacks(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(DataError, match=r"x\.json: no such file; train one with `bigssl tokenizer train"):
        load_tokenizer(tmp_path / "x.json")
    Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]")).save(str(tmp_path / "y.json"))
    found = load_tokenizer(tmp_path / "y.json")
    assert (found.unk_token, found.pad_token_id, found.mask_token, len(found)) == ("[UNK]", 1, None, 2)
    assert lacking(found, ["mask_token", "pad_token", "cls_token"]) == "its tokenizer has no mask_token, cls_token"
    assert lacking(found, ["pad_token"]) == ""
    bare = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIALS.values())}, unk_token="[UNK]"))
    bare.save(str(tmp_path / "z.json"))
    said = lacking(load_tokenizer(tmp_path / "z.json"), ["cls_token", "sep_token"])
    assert said == "its tokenizer makes [] of an empty text, not [CLS] [SEP]; set such a post_processor in it"
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "bytes.json"))
    ids, mask = encode(load_tokenizer(tmp_path / "bytes.json"), "ba", 4)  # padded by some id, which the mask hides
    assert (ids.tolist()[:2], mask.tolist()) == ([1, 0], [1, 1, 0, 0])
    with pytest.raises(DataError, match="text of 0 characters has no token"):
        encode(load_tokenizer(tmp_path / "bytes.json"), "", 4)


def test_special_mask(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    assert special_mask(tokenizer, np.array([0, 1, 2, 3, 4, 5])).tolist() == [True, False, True, True, True, False]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab é\n.", max_size=80), st.integers(1, 40), st.integers(0, 1000))
def test_windows_begin_at_words(text: str, characters: int, seed: int) -> None:
    window = random_window(text, np.random.default_rng(seed), characters)
    assert len(window) <= characters or window == text
    if len(text) <= characters:
        assert window == text
    else:
        assert window in text
        starts = {0} | {found.start() for found in re.finditer(r"(?<=\s)\S", text)}
        assert any(text.startswith(window, start) for start in starts)


def test_windows_cover_a_text() -> None:
    text = " ".join(f"w{i}" for i in range(500))
    windows = [random_window(text, np.random.default_rng(seed), 60) for seed in range(3000)]
    seen = {word for window in windows for word in window.split()}
    assert seen >= {f"w{i}" for i in range(500)}
    assert min(map(len, windows)) > 40


CHINESE = ["".join(chr(0x4E00 + int(i)) for i in np.random.default_rng(n).zipf(1.3, 40) % 4000) for n in range(300)]


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
