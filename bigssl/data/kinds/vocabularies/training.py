"""Tokenizers trained on texts: WordPiece, byte-level BPE, unigram, characters; each a tokenizer.json with the same
special tokens.

             a word is cut off at          pieces are learnt by               what is not among them
wordpiece    spaces, punctuation, CJK      merges of letters (BERT)           makes the word [UNK]
bpe          as GPT-2's expression says    merges of bytes (GPT-2)            nothing: any text is bytes
unigram      spaces (▁), punctuation       a unigram model (SentencePiece)    is [UNK], the character alone
characters   every character               (they are the pieces)              is [UNK], the character alone
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, processors

from bigssl.data.errors import DataError
from bigssl.data.kinds.text import SPECIALS
from bigssl.data.kinds.vocabularies import characters, subwords, wordpiece
from bigssl.data.kinds.vocabularies.alphabet import COVERED, LONGEST, MANY, Alphabet
from bigssl.files import whole

Counts = Mapping[str, int]
NAMES = list(SPECIALS.values())


class _Way(NamedTuple):
    """One kind of vocabulary.

    Attributes:
        untrained: a tokenizer with its normalizer and pre-tokenizer.
        alphabet: which characters of these words cost what.
        learn: (words, alphabet within the size, size, special tokens) -> tokenizer with its pieces, and the alphabet as
            it was filled up.
    """

    untrained: Callable[[], Tokenizer]
    alphabet: Callable[[Counts], Alphabet]
    learn: Callable[[Counts, Alphabet, int, list[str]], tuple[Tokenizer, Alphabet]]


KINDS = {
    "wordpiece": _Way(wordpiece.new_wordpiece, Alphabet.of, wordpiece.learn_wordpiece),
    "bpe": _Way(subwords.new_bpe, subwords.bytes_alphabet, subwords.learn_bpe),
    "unigram": _Way(subwords.new_unigram, Alphabet.apart, subwords.learn_unigram),
    "characters": _Way(characters.new_characters, Alphabet.apart, characters.learn_characters),
}


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


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str], kind: str = "wordpiece"
) -> Learnt:
    """Trains a vocabulary of at most `vocab_size` entries and writes it as a tokenizer.json.

    The same texts give the same bytes. [PAD] is 0; the others of SPECIALS follow. Encoding adds [CLS] and [SEP] (Devlin
    et al. 2019), which begin and end a text for a causal model, too. Accents and marks stay: in Hindi, Thai and
    Japanese they are vowels and consonants; WordPiece is lower-case, the others keep the case. Characters that have no
    place become [UNK] (`bigssl.data.kinds.vocabularies.alphabet` says which). `texts` are read once; their words are
    held in memory, each once (for `bpe` and `unigram` in scripts without spaces: their clauses).

    Args:
        kind: a name in KINDS.
    Raises:
        DataError: texts without characters, and a size that cannot hold one (or, of `bpe`, all bytes).
    """
    way = KINDS[kind]
    learner = way.untrained()
    counts = Counter(word for text in texts for word in _words_of(learner, text))
    everything = way.alphabet(counts)
    if not counts:
        raise DataError("tokenizer: the texts hold no characters to learn from")
    if vocab_size < (least := len(NAMES) + everything.least):
        raise DataError(f"tokenizer: vocab-size {vocab_size}; allowed: >= {least}, for the {len(NAMES)} special tokens "
                        f"and {everything.least_is}; thousands are usual")  # fmt: skip
    tokenizer, alphabet = way.learn(counts, everything.within(vocab_size - len(NAMES)), vocab_size, NAMES)
    tokenizer.add_special_tokens(NAMES)
    tokenizer.post_processor = _framed(tokenizer)
    with whole(Path(path)) as staging:
        tokenizer.save(str(staging), pretty=False)
    return Learnt(tokenizer.get_vocab_size(), alphabet)


def least_entries(texts: Iterable[str]) -> int:
    """Entries of a WordPiece vocabulary in which the characters of these texts have room, but for the rarest."""
    learner = KINDS["wordpiece"].untrained()
    return len(NAMES) + Alphabet.of(Counter(word for text in texts for word in _words_of(learner, text))).enough


def _framed(tokenizer: Tokenizer) -> processors.PostProcessor:
    """[CLS] text [SEP], and of pairs [CLS] first [SEP] second [SEP] with segments 0 and 1."""
    sep, cls = ((token, NAMES.index(token)) for token in (SPECIALS["sep_token"], SPECIALS["cls_token"]))
    frame = processors.BertProcessing(sep, cls)
    return processors.Sequence([tokenizer.post_processor, frame]) if tokenizer.post_processor else frame


def _words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
