"""A vocabulary of characters: each is a token, spaces and line ends too, so that a text can be put together again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bigssl.data.errors import DataError
from bigssl.data.kinds.text import SPECIALS
from bigssl.files import whole


def train_characters(texts: Iterable[str], path: str | os.PathLike[str]) -> int:
    """Writes a tokenizer.json of all characters of the texts, in NFC, and returns how many entries it has.

    [PAD] is 0; the others of SPECIALS follow, then the characters by their code. Encoding puts [CLS] before a text and
    nothing behind it; what ends one is [SEP]. Other characters are [UNK]. Raises DataError for texts without any.
    """
    normal = normalizers.NFC()
    known = sorted(set().union(*(normal.normalize_str(text) for text in texts)))
    if not known:
        raise DataError("tokenizer: the texts hold no characters to learn from")
    names = list(SPECIALS.values())
    vocabulary = {entry: number for number, entry in enumerate([*names, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS["unk_token"]))
    tokenizer.normalizer, tokenizer.decoder = normal, decoders.Fuse()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(names)
    first = SPECIALS["cls_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, vocabulary[first])]
    )
    with whole(Path(path)) as staging:
        tokenizer.save(str(staging), pretty=False)
    return len(vocabulary)
