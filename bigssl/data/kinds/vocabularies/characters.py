"""A vocabulary of characters: each is a token, spaces and line ends too, so that a text can be put together again."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bigssl.data.kinds.vocabularies.alphabet import Alphabet


def new_characters() -> Tokenizer:
    """Without characters: NFC, and each for itself."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=""))
    tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), decoders.Fuse()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return tokenizer


def learn_characters(
    counts: Mapping[str, int], alphabet: Alphabet, size: int, names: list[str]
) -> tuple[Tokenizer, Alphabet]:
    """The tokenizer of the most frequent characters that `size` holds, and these. names: the special tokens, which come
    first, [UNK] among them; then characters by their code."""
    tokenizer, alphabet = new_characters(), alphabet.filled(size - len(names) - alphabet.count)
    vocabulary = {entry: number for number, entry in enumerate([*names, *alphabet.entries])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=names[1])
    return tokenizer, alphabet
