"""Vocabularies that know no words: byte-level BPE (Radford et al. 2019), and the unigram model of SentencePiece (Kudo
2018)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bigssl.data.kinds.vocabularies.alphabet import Alphabet
from bigssl.data.kinds.vocabularies.wordpiece import as_texts

DIGITS = 6  # of a score: the order of a hash table changes its 15th
_STEP = 0.0001  # between the scores that the trainer gives to characters which it has not learnt, in that order, too


def new_bpe() -> Tokenizer:
    """Without pieces: bytes of the text as it is, its words cut as GPT-2's are, a space in front of each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def bytes_alphabet(counts: Mapping[str, int]) -> Alphabet:
    """The 256 bytes: of any text nothing is lost."""
    return Alphabet.all_of(pre_tokenizers.ByteLevel.alphabet())


def learn_bpe(
    counts: Mapping[str, int], alphabet: Alphabet, size: int, names: list[str]
) -> tuple[Tokenizer, Alphabet]:
    """The tokenizer of these words. counts: how often each occurs. names: the special tokens, which come first."""
    tokenizer, learner = new_bpe(), Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=names, initial_alphabet=alphabet.ranked, show_progress=False)  # fmt: skip
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(as_texts(counts), trainer)
    tokenizer.model = learner.model
    return tokenizer, alphabet


def new_unigram() -> Tokenizer:
    """Without pieces: NFKC and single spaces, as SentencePiece's nmt_nfkc; a space is the ▁ of the word behind it."""
    tokenizer = Tokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    pieces = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def learn_unigram(
    counts: Mapping[str, int], alphabet: Alphabet, size: int, names: list[str]
) -> tuple[Tokenizer, Alphabet]:
    """The tokenizer of these words, and the alphabet with those characters that found room besides.

    counts: how often each word occurs; it is cut at characters that are not in `alphabet`. names: the special tokens,
    which come first, [UNK] among them.
    """
    unknown = names[1]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=names, unk_token=unknown, show_progress=False)
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(as_texts(_known(counts, alphabet.ranked[: alphabet.count])), trainer)
    scores = _repeatable(json.loads(learner.to_str())["model"]["vocab"])
    alphabet = alphabet.filled(size - len(scores))
    scores = dict.fromkeys(alphabet.entries, min(scores.values())) | scores
    learnt = sorted((piece for piece in scores if piece not in names), key=lambda piece: (-scores[piece], piece))
    longer = [piece for piece in learnt if len(piece) > 1]  # the trainer may give some too many
    left_out = set(longer[max(0, size - len(names) - len(learnt) + len(longer)) :])
    tokenizer = new_unigram()
    pairs = [(piece, 0.0) for piece in names]
    pairs += [(piece, scores[piece]) for piece in learnt if piece not in left_out]
    tokenizer.model = models.Unigram(pairs, unk_id=names.index(unknown))
    return tokenizer, alphabet


def _repeatable(vocabulary: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Scores by piece without what differs from run to run: characters that were not learnt all have the lowest."""
    scores = {piece: round(score, DIGITS) for piece, score in vocabulary}
    lowest = min(scores.values())
    band = lowest + _STEP * sum(len(piece) == 1 for piece in scores)
    return {piece: lowest if len(piece) == 1 and score < band else score for piece, score in scores.items()}


def _known(counts: Mapping[str, int], characters: Iterable[str]) -> Counter[str]:
    """The parts of the words between characters that are none of these."""
    others = re.compile(f"[^{''.join(map(re.escape, characters))}]+")
    parts: Counter[str] = Counter()
    for word, times in counts.items():
        for part in others.split(word):
            parts[part] += times * bool(part)
    return +parts
