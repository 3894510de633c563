"""WordPiece, lower-case, as BERT's (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bigssl.data.kinds.text import SPECIALS
from bigssl.data.kinds.vocabularies.alphabet import LONGEST, Alphabet

_AT_ONCE = 1000  # words of a text that a tokenizer is trained on


def new_wordpiece(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """A tokenizer of these entries: lower-case, words cut at spaces, punctuation and CJK characters."""
    model = models.WordPiece(vocabulary or {}, unk_token=SPECIALS["unk_token"], max_input_chars_per_word=LONGEST)
    tokenizer = Tokenizer(model)
    lower = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), lower])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def learn_wordpiece(
    counts: Mapping[str, int], alphabet: Alphabet, size: int, names: list[str]
) -> tuple[Tokenizer, Alphabet]:
    """The tokenizer of these words, and the alphabet with those characters that found room besides.

    counts: how often each word occurs. names: the special tokens, which come first.
    """
    known = set(alphabet.ranked[: alphabet.count])
    # A word with another character is [UNK] whatever is learnt of it. The trainer numbers letters inside words in the
    # order of a hash table, which differs from run to run and decides ties between merges. As special tokens they have
    # a fixed place; the final tokenizer has them as plain entries.
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=names + alphabet.entries, show_progress=False)
    learner = Tokenizer(models.WordPiece(unk_token=SPECIALS["unk_token"], max_input_chars_per_word=LONGEST))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(as_texts({word: n for word, n in counts.items() if known.issuperset(word)}), trainer)
    vocabulary = learner.get_vocab()
    alphabet = alphabet.filled(size - len(vocabulary))
    for entry in alphabet.entries:
        vocabulary.setdefault(entry, len(vocabulary))
    return new_wordpiece(vocabulary), alphabet


def as_texts(counts: Mapping[str, int]) -> Iterator[str]:
    """Texts in which each word occurs so often: a trainer takes no counts."""
    for word, times in counts.items():
        for begin in range(0, times, _AT_ONCE):
            yield " ".join([word] * min(_AT_ONCE, times - begin))
