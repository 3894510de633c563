"""WordPiece tokenizers, encoding to a fixed length or in pieces of it, BERT's masking, random windows of long texts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.masking import corrupt, select_tokens

SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_WORD_LENGTH = 5  # about
_WORD_START = re.compile(r"(?<=\s)\S")


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str]) -> None:
    """Trains a lower-case WordPiece vocabulary of at most `vocab_size` entries and writes it as a tokenizer.json.

    The same texts give the same bytes. [PAD] is 0; the others of SPECIALS follow. Encoding adds [CLS] and [SEP] (Devlin
    et al. 2019). `texts` are held in memory.
    """
    texts, names = list(texts), list(SPECIALS.values())
    learner = _wordpiece({})
    # The trainer numbers letters inside words in the order of a hash table, which differs from run to run and decides
    # ties between merges. As special tokens they have a fixed place; the final tokenizer has them as plain entries.
    fixed = names + sorted(_letters_inside_words(learner, texts))
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    tokenizer = _wordpiece(learner.get_vocab())
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", names.index("[SEP]")), ("[CLS]", names.index("[CLS]"))
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(os.fspath(path), pretty=False)


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIALS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _letters_inside_words(tokenizer: Tokenizer, texts: Iterable[str]) -> set[str]:
    normal = (tokenizer.normalizer.normalize_str(text) for text in texts)
    words = {word for text in normal for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    return {f"##{letter}" for word in words for letter in word[1:]}


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """A tokenizer from a tokenizer.json or from a folder as `save_pretrained` writes it.

    Raises DataError when there is none, or when it lacks one of the pad, unk, cls, sep and mask tokens.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"tokenizer {file}: no such file; train one with `bigssl tokenizer train SHARDS {file}`")
    if (file.parent / "tokenizer_config.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **SPECIALS)
    # asked of the file: the class above has by now added what was missing
    known = Tokenizer.from_file(str(file)).get_vocab()
    missing = [name for name in SPECIALS if getattr(tokenizer, name) not in known]
    if missing:
        raise DataError(f"tokenizer {file}: no {', '.join(missing)} in its vocabulary; masking and padding need them")
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, attention_mask), both int64 [length]: [CLS] text [SEP], cut or padded."""
    input_ids, attention_mask, _ = encode_words(tokenizer, text, length)
    return input_ids, attention_mask


def encode_words(
    tokenizer: PreTrainedTokenizerFast, text: str, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input_ids, attention_mask, words), int64 [length]: as `encode`, and the number of each token's word, -1 at
    special tokens and padding."""
    encoding = tokenizer(text, truncation=True, max_length=length, return_attention_mask=False)
    ids = encoding["input_ids"]
    input_ids = np.full(length, tokenizer.pad_token_id, dtype=np.int64)
    input_ids[: len(ids)] = ids
    words = np.full(length, -1, dtype=np.int64)
    words[: len(ids)] = _words(tokenizer, ids, encoding.word_ids())
    return input_ids, (np.arange(length) < len(ids)).astype(np.int64), words


def encode_pieces(
    tokenizer: PreTrainedTokenizerFast, text: str, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(input_ids, words) as of `encode_words`, without padding, of each piece of a text: [CLS] piece [SEP].

    The text is cut every `length` - 2 tokens and none is left out; a text without tokens gives [CLS] [SEP].
    """
    encoding = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids, numbers, inside = encoding["input_ids"], encoding.word_ids(), length - 2
    for begin in range(0, max(len(ids), 1), inside):
        piece = slice(begin, begin + inside)
        framed = [tokenizer.cls_token_id, *ids[piece], tokenizer.sep_token_id]
        yield np.array(framed, dtype=np.int64), _words(tokenizer, framed, [None, *numbers[piece], None])


def _words(tokenizer: PreTrainedTokenizerFast, ids: list[int], numbers: list[int | None]) -> np.ndarray:
    """A special token that stands in the text has a number as well; it must not be masked."""
    words = np.array([-1 if number is None else number for number in numbers], dtype=np.int64)
    return np.where(special_mask(tokenizer, np.array(ids, dtype=np.int64)), -1, words)


def special_mask(tokenizer: PreTrainedTokenizerFast, input_ids: np.ndarray) -> np.ndarray:
    """bool, same shape: True at [PAD], [CLS], [SEP] and [MASK], which masking must leave alone ([UNK] is a word)."""
    kept = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    return np.isin(input_ids, kept)


def mask_tokens(
    input_ids: np.ndarray,
    special_mask: np.ndarray,
    rng: np.random.Generator,
    *,
    vocab_size: int,
    mask_id: int,
    ratio: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking (Devlin et al. 2019, 3.1): (masked ids, labels), int64, shape of `input_ids`.

    Each position outside `special_mask` (bool) is selected with probability `ratio`, one at least if there is any. Of
    those 80 % become `mask_id`, 10 % a random entry of the vocabulary, 10 % stay. Labels are the true ids there, -100
    elsewhere.
    """
    selection = select_tokens(~special_mask, rng, ratio)
    return corrupt(input_ids, selection, rng, vocab_size=vocab_size, mask_id=mask_id)


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
