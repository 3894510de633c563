"""Tokenizers, encoding, windows at words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

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
)
from bigssl.data.kinds.vocabularies.training import train_tokenizer

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
    with pytest.raises(DataError, match=r"x\.json: no such file; train one with `bigssl tokenizer train"):
        load_tokenizer(tmp_path / "x.json")
    Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]")).save(str(tmp_path / "y.json"))
    found = load_tokenizer(tmp_path / "y.json")
    assert (found.unk_token, found.pad_token_id, found.mask_token, len(found)) == ("[UNK]", 1, None, 2)
    assert lacking(found, ["mask_token", "pad_token", "cls_token"]) == (
        "its tokenizer has no mask_token, cls_token (transformers' add_special_tokens({\"mask_token\": \"[MASK]\", "
        "\"cls_token\": \"[CLS]\"}) and save_pretrained add what lacks; one of `bigssl tokenizer train` has all)"
    )
    (tmp_path / "w.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"w\.json cannot be read \(.+\); allowed: a tokenizer.json of `tokenizers`"):
        load_tokenizer(tmp_path / "w.json")
    assert lacking(found, ["pad_token"]) == ""
    bare = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIALS.values())}, unk_token="[UNK]"))
    bare.save(str(tmp_path / "z.json"))
    said = lacking(load_tokenizer(tmp_path / "z.json"), ["cls_token", "sep_token"])
    assert said.startswith("its tokenizer makes [] of an empty text, not [CLS] [SEP] (tokenizer.backend_tokenizer.")
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "bytes.json"))
    ids, mask = encode(load_tokenizer(tmp_path / "bytes.json"), "ba", 4)  # padded by some id, which the mask hides
    assert (ids.tolist()[:2], mask.tolist()) == ([1, 0], [1, 1, 0, 0])
    with pytest.raises(DataError, match="text of 0 characters has no token"):
        encode(load_tokenizer(tmp_path / "bytes.json"), "", 4)


def hub_folder(folder: Path, names: list[str], model: Any) -> Path:
    """A folder as many on the hub are: the special tokens are in tokenizer.json, which of them is which in no file."""
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([AddedToken(name, special=True, lstrip=name == "<mask>") for name in names])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    return folder


def test_folders_that_do_not_name_their_special_tokens(tmp_path: Path) -> None:
    bytes_ = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    gpt2 = load_tokenizer(hub_folder(tmp_path / "gpt2", ["<|endoftext|>"], models.BPE(bytes_, [])))
    assert (gpt2.eos_token_id, gpt2.bos_token_id, gpt2.pad_token, gpt2.mask_token) == (256, 256, None, None)
    assert lacking(gpt2, ["eos_token"]) == "" and special_mask(gpt2, np.array([255, 256])).tolist() == [False, True]
    assert lacking(gpt2, ["mask_token", "pad_token"]).startswith("its tokenizer has no mask_token, pad_token (")
    # what the message says to do, done: it then serves
    gpt2.add_special_tokens({"mask_token": "[MASK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"})
    found = re.search(r"post_processor = tokenizers\.(processors\..*) and save", lacking(gpt2, list(SPECIALS)[2:]))
    assert found
    gpt2.backend_tokenizer.post_processor = eval(found[1], {"processors": processors})
    gpt2.save_pretrained(tmp_path / "more")
    more = load_tokenizer(tmp_path / "more")
    assert lacking(more, ["mask_token", "pad_token", "cls_token", "sep_token", "eos_token"]) == ""
    assert more("ab")["input_ids"] == [more.cls_token_id, bytes_["a"], bytes_["b"], more.sep_token_id]

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    roberta = load_tokenizer(hub_folder(tmp_path / "roberta", names, models.BPE(bytes_, [])))
    assert (roberta.cls_token, roberta.sep_token, roberta.mask_token, roberta.bos_token, roberta.eos_token) == (
        "<s>", "</s>", "<mask>", "<s>", "</s>")  # fmt: skip
    html = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1}, unk_token="[UNK]"))
    html.save(str(tmp_path / "html.json"))
    assert load_tokenizer(tmp_path / "html.json").bos_token is None  # there it is a word like others
    assert len(roberta) == 261 and roberta("a <mask>", add_special_tokens=False)["input_ids"] == [bytes_["a"], 260]


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


def test_windows_begin_anywhere_in_a_text_without_spaces() -> None:
    """They would all begin at its first character; a mark stays with its letter."""
    chinese = "".join(chr(0x4E00 + n) for n in range(2000))
    begins = {chinese.index(random_window(chinese, np.random.default_rng(seed), 100)[:1]) for seed in range(600)}
    assert len(begins) > 400 and min(begins) == 0 and max(begins) > 1800
    dna = "".join(np.random.default_rng(0).choice(list("ACGT"), 5000))
    assert len({dna.index(random_window(dna, np.random.default_rng(seed), 300)) for seed in range(100)}) > 80
    accents = "e\u0301" * 3000
    assert all(random_window(accents, np.random.default_rng(seed), 300)[0] == "e" for seed in range(50))


def test_windows_cover_a_text() -> None:
    text = " ".join(f"w{i}" for i in range(500))
    windows = [random_window(text, np.random.default_rng(seed), 60) for seed in range(3000)]
    seen = {word for window in windows for word in window.split()}
    assert seen >= {f"w{i}" for i in range(500)}
    assert min(map(len, windows)) > 40
