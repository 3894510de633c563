"""WordPiece tokenizers, fixed-length encoding, BERT's masking, random windows of long texts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError

SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
IGNORE = -100  # the label of a position that has no loss
_WORD_START = re.compile(r"(?<=\s)\S")


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str]) -> None:
    """Trains a lower-case WordPiece vocabulary of at most `vocab_size` entries and writes it as a tokenizer.json.

    Deterministic for the same texts in the same order. [PAD] is 0; the others of SPECIALS follow. Encoding adds [CLS]
    and [SEP] (Devlin et al. 2019).
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIALS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = list(SPECIALS.values())
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=names, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(SPECIALS["sep_token"], names.index("[SEP]")), (SPECIALS["cls_token"], names.index("[CLS]"))]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(os.fspath(path), pretty=False)


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
    vocabulary = tokenizer.get_vocab()
    missing = [name for name in SPECIALS if getattr(tokenizer, name) not in vocabulary]
    if missing:
        raise DataError(f"tokenizer {file}: no {', '.join(missing)} in its vocabulary; masking and padding need them")
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, attention_mask), both int64 [length]: [CLS] text [SEP], cut or padded."""
    ids = tokenizer(text, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]
    input_ids = np.full(length, tokenizer.pad_token_id, dtype=np.int64)
    input_ids[: len(ids)] = ids
    return input_ids, (np.arange(length) < len(ids)).astype(np.int64)


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
    free = ~special_mask
    selected = free & (rng.random(input_ids.shape) < ratio)
    places = np.flatnonzero(free)
    if places.size and not selected.any():
        selected.flat[places[rng.integers(places.size)]] = True
    fate = rng.random(input_ids.shape)
    masked = np.where(selected & (fate < 0.8), mask_id, input_ids)
    swapped = selected & (fate >= 0.8) & (fate < 0.9)
    masked[swapped] = rng.integers(vocab_size, size=int(swapped.sum()))
    return masked, np.where(selected, input_ids, IGNORE)


def random_window(text: str, rng: np.random.Generator, characters: int) -> str:
    """At most `characters` characters of `text`, from the beginning of a word on; all of a text that is short
    enough."""
    if len(text) <= characters:
        return text
    begin = int(rng.integers(len(text) - characters + 1))
    word = _WORD_START.search(text, max(begin - 1, 0)) if begin else None
    begin = word.start() if word and begin else 0 if begin == 0 else begin
    return text[begin : begin + characters].rstrip()
