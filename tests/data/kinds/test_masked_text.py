"""Masks over a million tokens of each kind of tokenizer, of prose and of Chinese: BERT's rates, whole words, never a
special token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from bigssl.data.kinds import decode
from bigssl.data.kinds.masking import IGNORE, Unit, corrupt, select
from bigssl.data.kinds.text import encode_words, load_tokenizer
from bigssl.data.kinds.vocabularies.training import KINDS, train_tokenizer
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex

TEXTS = Path(__file__).parents[3] / "bigssl/demo/text/train"
LENGTH, TOKENS, RATIO = 256, 1_000_000, 0.15
CHINESE = re.compile("[\u4e00-\u9fff]")
WORD = re.compile(r"[^\W_\u4e00-\u9fff]+|[\u4e00-\u9fff]")  # letters and digits in a row, or a Chinese character


def documents() -> list[str]:
    """Prose and Chinese, some of them short; a few have special tokens inside."""
    prose = [decode.running_text(sample)[:2500] for sample in read_in_order(DatasetIndex.load(str(TEXTS)))][:70]
    rng = np.random.default_rng(0)
    chinese = ["".join(chr(0x4E00 + int(n) % 800) for n in rng.zipf(1.2, 400)) for _ in range(80)]
    clauses = [re.sub("(.{7,17})", r"\1，", text) + "。" for text in chinese]
    return prose + clauses + [f"{text[:60]} [MASK] {text[60:90]}[SEP]" for text in prose[:20]]


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(documents(), 1500, file, request.param)
    return load_tokenizer(file)


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, words) of each text."""
    return [(ids, words) for ids, _, words in (encode_words(tokenizer, text, LENGTH) for text in documents())]


def masked(
    tokenizer: PreTrainedTokenizerFast, rows: list[tuple[np.ndarray, np.ndarray]], unit: Unit
) -> Iterator[tuple[np.ndarray, ...]]:
    """(ids, words, selection, masked ids, labels) of rows, again and again, till a third of TOKENS may be masked."""
    rng, seen = np.random.default_rng(1), 0
    while seen < TOKENS // 3:  # three units
        for ids, words in rows:
            selection = select(unit, words, rng, RATIO)
            mask = {"vocab_size": len(tokenizer), "mask_id": tokenizer.mask_token_id}
            yield ids, words, selection, *corrupt(ids, selection, rng, **mask)
            seen += int((words >= 0).sum())


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_tokens_are_masked_at_berts_rates(
    tokenizer: PreTrainedTokenizerFast, rows: list[tuple[np.ndarray, np.ndarray]], unit: Unit
) -> None:
    free = chosen = texts = squares = longest = 0
    fates, units = np.zeros(3), 0
    special = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    for ids, words, selection, changed, labels in masked(tokenizer, rows, unit):
        inside, selected = words >= 0, selection >= 0
        assert (inside == ~np.isin(ids, special)).all() and not (selected & ~inside).any()
        np.testing.assert_array_equal(labels, np.where(selected, ids, IGNORE))
        np.testing.assert_array_equal(changed[~selected], ids[~selected])
        sizes = np.bincount(words[inside])
        if unit != "token":
            some = np.bincount(words[selected], minlength=len(sizes))
            assert ((some == 0) | (some == sizes)).all()
        firsts = np.unique(selection[selected])
        to_mask, kept = changed[firsts] == tokenizer.mask_token_id, changed[firsts] == ids[firsts]
        fates += [to_mask.sum(), (~to_mask & ~kept).sum(), kept.sum()]
        free, chosen, texts, units = free + inside.sum(), chosen + selected.sum(), texts + 1, units + len(firsts)
        squares += (sizes**2).sum() if unit == "word" else len(sizes) if unit == "span" else inside.sum()
        longest = max(longest, sizes.max())
    off, sigma = chosen / free - RATIO, np.sqrt(RATIO * (1 - RATIO) * squares) / free
    most = 3 * sigma + (longest * texts / free if unit == "span" else 0)  # a span ends with the word that is too much
    assert -3 * sigma < off < most, (off, sigma)
    size = len(tokenizer)  # a random token may be the mask or the true one
    for found, share in zip(fates / units, (0.8 + 0.1 / size, 0.1 - 0.2 / size, 0.1 + 0.1 / size), strict=True):
        assert abs(found - share) < 3 * np.sqrt(share * (1 - share) / units)


def test_words_are_those_that_a_reader_sees(tokenizer: PreTrainedTokenizerFast) -> None:
    """Found in the text by an expression: no token of a word is selected without the others, and each Chinese character
    (or the token that holds several) is a word of its own."""
    rng = np.random.default_rng(2)
    for text in documents()[::9]:
        encoding = tokenizer(text, truncation=True, max_length=LENGTH, return_offsets_mapping=True)
        ids, _, words = encode_words(tokenizer, text, LENGTH)
        chosen = select("word", words, rng, 0.3) >= 0
        places = encoding["offset_mapping"]
        for begin, end in (found.span() for found in WORD.finditer(text)):
            inside = [n for n, (b, e) in enumerate(places) if b < end and begin < e and words[n] >= 0]
            assert len({(int(words[n]), bool(chosen[n])) for n in inside}) <= 1, text[begin:end]
        for n, ((_, end), (begin, _)) in enumerate(pairwise(places)):
            if end <= begin and CHINESE.match(text, end - 1) and CHINESE.match(text, begin):
                assert words[n] != words[n + 1], tokenizer.convert_ids_to_tokens(ids)[n : n + 2]
