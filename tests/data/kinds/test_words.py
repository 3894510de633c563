"""Words are those of the text, whatever a tokenizer makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bigssl.data.kinds.masking import select
from bigssl.data.kinds.text import SPECIALS, encode_pieces, encode_words, load_tokenizer
from bigssl.data.kinds.words import LONGEST, word_numbers

ENGLISH = "The unbelievable café, well-known; don't stop (42nd) now"
WORDS = [
    "The", "unbelievable", "café", ",", "well", "-", "known", ";", "don", "'", "t", "stop", "(", "42nd", ")", "now",
]  # fmt: skip
CHINESE = "我们在北京看到了很多漂亮的花。" * 20
THAI = "ภาษาไทยไม่มีช่องว่างระหว่างคำ" * 8
LEARNT = [  # in any order, so that whole sentences do not become tokens
    " ".join(np.random.default_rng(seed).permutation([*ENGLISH.split(), "我们的", "北京", "很多花", "ไทย", "stopping"]))
    for seed in range(60)
]

BPE, UNIGRAM = trainers.BpeTrainer, trainers.UnigramTrainer
KINDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "wordpiece": (
        models.WordPiece(unk_token="[UNK]"), normalizers.BertNormalizer(strip_accents=False, lowercase=False),
        pre_tokenizers.BertPreTokenizer(), trainers.WordPieceTrainer,
    ),
    "byte-level": (models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=False), BPE),
    "byte-level, whole texts": (models.BPE(), None, pre_tokenizers.ByteLevel(use_regex=False), BPE),
    "sentencepiece": (models.Unigram(), normalizers.NFKC(), pre_tokenizers.Metaspace(), UNIGRAM),
    "sentencepiece, whole texts": (
        models.BPE(unk_token="[UNK]"), normalizers.NFC(), pre_tokenizers.Metaspace(split=False), BPE,
    ),
    "characters": (models.BPE(unk_token="[UNK]"), None, pre_tokenizers.Split("", "isolated"), BPE),
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    model, normalizer, pre_tokenizer, trainer = KINDS[request.param]
    made, names = Tokenizer(model), list(SPECIALS.values())
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer
    options: dict[str, Any] = {"vocab_size": 400, "special_tokens": names, "show_progress": False}
    if "byte" in request.param:
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
        made.decoder = decoders.ByteLevel()
    if trainer is UNIGRAM:
        options["unk_token"] = "[UNK]"
    made.train_from_iterator(LEARNT, trainer(**options))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(n, names.index(n)) for n in ("[CLS]", "[SEP]")]
    )
    file: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(file))
    return load_tokenizer(file)


def spoken(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """What each word covers in the text, found token by token."""
    encoding = tokenizer(text, return_offsets_mapping=True)
    _, _, words = encode_words(tokenizer, text, len(encoding["input_ids"]))
    covered: dict[int, tuple[int, int]] = {}
    for (begin, end), word in zip(encoding["offset_mapping"], words.tolist(), strict=True):
        if word >= 0:
            first, last = covered.get(word, (begin, end))
            covered[word] = min(first, begin), max(last, end)
    return [text[begin:end].strip() for begin, end in covered.values() if text[begin:end].strip()]


def joined(tokenizer: PreTrainedTokenizerFast, text: str, words: list[str]) -> list[str]:
    """`words`, but those that a token covers together: they can only be masked as one."""
    spans, place = [], 0
    for word in words:
        place = text.index(word, place)
        spans.append([place, place + len(word)])
        place += len(word)
    for begin, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]:
        touched = [span for span in spans if span[0] < end and begin < span[1]]
        if len(touched) > 1:
            spans = [span for span in spans if span not in touched[1:]]
            touched[0][1] = touched[-1][1]
    return [text[begin:end] for begin, end in spans]


def test_words_of_english(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = joined(tokenizer, ENGLISH, WORDS)
    assert spoken(tokenizer, ENGLISH) == expected and len(expected) >= 5


def test_special_tokens_are_no_words(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, attention, words = encode_words(tokenizer, "stop [MASK] now", 40)
    special = np.isin(ids, [tokenizer.convert_tokens_to_ids(t) for t in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")])
    assert special.sum() == 3 + (attention == 0).sum() and ((words == -1) == special).all()


@pytest.mark.parametrize("text", [CHINESE, THAI, "ACGTTGCA" * 100, "ab" * 300])
@pytest.mark.parametrize("unit", ["word", "span"])
def test_a_text_without_borders_is_not_masked_as_a_whole(
    tokenizer: PreTrainedTokenizerFast, text: str, unit: Any
) -> None:
    """Its share of the tokens is masked, as of any text, and no more than a few at once."""
    (_, words), *_ = encode_pieces(tokenizer, text, 4000)
    count, rng = (words >= 0).sum(), np.random.default_rng(0)
    if count < 20:  # one [UNK]
        return
    masked = np.array([(select(unit, words, rng, 0.15) >= 0).sum() for _ in range(200)])
    assert abs(masked.mean() / count - 0.15) < 0.03 and masked.max() < 0.6 * count


def test_a_character_is_never_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    """Byte-level tokens may share one; a mark belongs to the letter before it, also in a long run."""
    for text in ("我们", "日本語🤗漢字", "cafe\u0301 e\u0301e\u0301", "e\u0301" * 60, "ไม่มี"):
        encoding = tokenizer(text, return_offsets_mapping=True)
        _, _, words = encode_words(tokenizer, text, len(encoding["input_ids"]))
        owner: dict[int, int] = {}
        for (begin, end), word in zip(encoding["offset_mapping"], words.tolist(), strict=True):
            for place in range(begin, end if word >= 0 else begin):
                assert owner.setdefault(place, word) == word, (text, place)
                if text[place] == "\u0301" and place - 1 in owner:
                    assert owner[place - 1] == word


def test_the_longest_word_and_the_shortest_run() -> None:
    for letters in (LONGEST, LONGEST + 1):
        offsets = np.array([(i, i + 1) for i in range(letters)])
        assert word_numbers("q" * letters, offsets).max() == (0 if letters == LONGEST else letters - 1)


def test_pieces_and_rows_agree(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, _, words = encode_words(tokenizer, ENGLISH, 12)
    first_ids, first_words = next(iter(encode_pieces(tokenizer, ENGLISH, 12)))
    used = len(first_ids)
    assert (ids[:used].tolist(), words[:used].tolist()) == (first_ids.tolist(), first_words.tolist())
    assert used == 12 or (ids[used:] == tokenizer.pad_token_id).all()
