"""Tokenizers, encoding to a fixed length or in pieces with the word of each token, random windows of long texts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.kinds.alphabet import COVERED, LONGEST, MANY, Alphabet
from bigssl.data.kinds.words import word_numbers
from bigssl.files import whole

SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_AT_ONCE = 1000  # words of a text that a tokenizer is trained on
_WORD_LENGTH = 5  # about
_WORD_START = re.compile(r"(?<=\s)\S")


@dataclass(frozen=True)
class Learnt:
    """A vocabulary as it was trained: its `entries`, and which characters are among them."""

    entries: int
    alphabet: Alphabet

    @property
    def sentence(self) -> str:
        """How many entries; which share of the text is unknown, and what size would do, where that is much."""
        said, alphabet = f"{self.entries:,} entries", self.alphabet
        if left_out := len(alphabet.ranked) - alphabet.count:
            said += f"; {left_out:,} of {len(alphabet.ranked):,} characters are not among them"
        if alphabet.unknown:
            said += f"; {100 * alphabet.unknown:.2g} % of the text becomes {SPECIALS['unk_token']}"
        if alphabet.unknown > MANY + alphabet.lost[-1]:
            least = len(SPECIALS) + alphabet.enough
            said += f": too small for this text; --vocab-size {least} or more would leave {100 * (1 - COVERED):.2g} %"
        if alphabet.lost[-1] > MANY:
            said += f"; {100 * alphabet.lost[-1]:.2g} % are words of more than {LONGEST} characters"
        return said


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str]) -> Learnt:
    """Trains a lower-case WordPiece vocabulary of at most `vocab_size` entries and writes it as a tokenizer.json.

    The same texts give the same bytes. [PAD] is 0; the others of SPECIALS follow. Encoding adds [CLS] and [SEP] (Devlin
    et al. 2019). Accents and marks stay: in Hindi, Thai and Japanese they are vowels and consonants. Characters that
    have no place become [UNK] (`bigssl.data.kinds.alphabet` says which). `texts` are read once; their words are held
    in memory, each once.

    Raises DataError for texts without characters, and a size that cannot hold one.
    """
    names, learner = list(SPECIALS.values()), _wordpiece({})
    counts = Counter(word for text in texts for word in _words_of(learner, text))
    everything = Alphabet.of(counts)
    if not everything.ranked:
        raise DataError("tokenizer: the texts hold no characters to learn from")
    if vocab_size < (least := len(names) + everything.costs[0]):
        raise DataError(f"tokenizer: vocab-size {vocab_size}; allowed: >= {least}, for the {len(names)} special tokens "
                        "and one character; thousands are usual")  # fmt: skip
    alphabet = everything.within(vocab_size - len(names))
    known = set(alphabet.ranked[: alphabet.count])
    # A word with another character is [UNK] whatever is learnt of it. The trainer numbers letters inside words in the
    # order of a hash table, which differs from run to run and decides ties between merges. As special tokens they have
    # a fixed place; the final tokenizer has them as plain entries.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=names + alphabet.entries, show_progress=False)
    learner.normalizer, learner.pre_tokenizer = normalizers.Sequence([]), pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_repeated({word: n for word, n in counts.items() if known.issuperset(word)}), trainer)
    vocabulary = learner.get_vocab()
    alphabet = alphabet.filled(vocab_size - len(vocabulary))
    for entry in alphabet.entries:
        vocabulary.setdefault(entry, len(vocabulary))
    tokenizer = _wordpiece(vocabulary)
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", names.index("[SEP]")), ("[CLS]", names.index("[CLS]"))
    )
    with whole(Path(path)) as staging:
        tokenizer.save(str(staging), pretty=False)
    return Learnt(len(vocabulary), alphabet)


def _repeated(counts: Mapping[str, int]) -> Iterator[str]:
    """Texts in which each word occurs so often: a trainer takes no counts."""
    for word, times in counts.items():
        for begin in range(0, times, _AT_ONCE):
            yield " ".join([word] * min(_AT_ONCE, times - begin))


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    model = models.WordPiece(vocabulary, unk_token=SPECIALS["unk_token"], max_input_chars_per_word=LONGEST)
    tokenizer = Tokenizer(model)
    lower = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), lower])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """A tokenizer from a tokenizer.json or from a folder as `save_pretrained` writes it, with those special tokens that
    its vocabulary has (`lacking` tells what is missing).

    Raises DataError when there is none.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"tokenizer {file}: no such file; train one with `bigssl tokenizer train SHARDS {file}`")
    if (file.parent / "tokenizer_config.json").is_file():
        named: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(file.parent)
        return named
    known = Tokenizer.from_file(str(file)).get_vocab()  # asked of the file: the class would add what is missing
    there = {name: token for name, token in SPECIALS.items() if token in known}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **there)


def lacking(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str]) -> str:
    """What a tokenizer lacks of the special tokens `tokens` (names as in SPECIALS), in words; "" where nothing. One
    that has to have cls and sep has to put them around a text."""
    missing = [name for name in tokens if getattr(tokenizer, name) is None]
    if missing:
        return f"its tokenizer has no {', '.join(missing)}"
    frame = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    if {"cls_token", "sep_token"} <= set(tokens) and (empty := tokenizer("")["input_ids"]) != frame:
        found = tokenizer.convert_ids_to_tokens(empty)
        ends = f"{tokenizer.cls_token} {tokenizer.sep_token}"
        return f"its tokenizer makes {found} of an empty text, not {ends}; set such a post_processor in it"
    return ""


def encode(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, attention_mask), both int64 [length]: [CLS] text [SEP], or what the tokenizer puts around a text in
    place of these, cut or padded (by 0 where it has no padding; the mask hides it).

    Raises DataError for a text of which a tokenizer without such a frame makes no token.
    """
    ids = tokenizer(text, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]
    if not ids:
        raise DataError(f"text of {len(text)} characters has no token; leave such samples out, or have the tokenizer's "
                        "post_processor begin each text with one")
    return padded(ids, length, tokenizer.pad_token_id or 0), (np.arange(length) < len(ids)).astype(np.int64)


def encode_words(
    tokenizer: PreTrainedTokenizerFast, text: str, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input_ids, attention_mask, words), int64 [length]: as `encode`, and the number of each token's word (see
    `bigssl.data.kinds.words`), -1 at special tokens and padding."""
    ids, words = next(encode_pieces(tokenizer, text, length))
    attention_mask = (np.arange(length) < len(ids)).astype(np.int64)
    return padded(ids, length, tokenizer.pad_token_id), attention_mask, padded(words, length, -1)


def encode_pieces(
    tokenizer: PreTrainedTokenizerFast, text: str, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(input_ids, words) as of `encode_words`, without padding, of each piece of a text: [CLS] piece [SEP].

    The text is cut every `length` - 2 tokens and none is left out; a text without tokens gives [CLS] [SEP].
    """
    (ids, words), inside = tokens_of(tokenizer, text), length - 2
    for begin in range(0, max(len(ids), 1), inside):
        piece = slice(begin, begin + inside)
        framed = [tokenizer.cls_token_id, *ids[piece], tokenizer.sep_token_id]
        yield np.array(framed, dtype=np.int64), np.concatenate([[-1], words[piece], [-1]])


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, words) of all of a text, int64, without special tokens around it."""
    encoding = tokenizer(
        text, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    ids = np.array(encoding["input_ids"], dtype=np.int64)
    return ids, _words(tokenizer, text, ids, encoding["offset_mapping"])


def padded(values: Sequence[int] | np.ndarray, length: int, fill: int) -> np.ndarray:
    """int64 [length]: `values`, then `fill`."""
    found = np.full(length, fill, dtype=np.int64)
    found[: len(values)] = values
    return found


def _words(
    tokenizer: PreTrainedTokenizerFast, text: str, ids: np.ndarray, offsets: list[tuple[int, int]]
) -> np.ndarray:
    """A special token that stands in the text is no word and must not be masked."""
    places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    words = word_numbers(text, places)
    return np.where(special_mask(tokenizer, ids), -1, words)


def special_mask(tokenizer: PreTrainedTokenizerFast, input_ids: np.ndarray) -> np.ndarray:
    """bool, same shape: True at [PAD], [CLS], [SEP] and [MASK], which masking must leave alone ([UNK] is a word)."""
    kept = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    return np.isin(input_ids, [token for token in kept if token is not None])


def random_window(text: str, rng: np.random.Generator, characters: int) -> str:
    """At most `characters` characters of `text`, from the beginning of a word on; all of a text that is shorter."""
    if len(text) <= characters:
        return text
    # the draw goes on to the next word, so places before the text give the first word its share
    begin = int(rng.integers(-_WORD_LENGTH, len(text) - characters + 1))
    start = _next_word(text, begin) if begin > 0 else 0
    return text[start : start + characters].rstrip()


def _next_word(text: str, begin: int) -> int:
    """Where the first word at or after `begin` begins; in the last word, where that one begins."""
    found = _WORD_START.search(text, begin)
    if found:
        return found.start()
    words = text.split()
    return text.rindex(words[-1]) if words else 0
