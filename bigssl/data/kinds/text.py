"""Tokenizers, encoding to a fixed length or in pieces with the word of each token, random windows of long texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.kinds.words import begins_word, joins_before, word_numbers

SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
NAMED = {
    "pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"), "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"), "mask_token": ("[MASK]", "<mask>"), "bos_token": ("<s>", "[CLS]", "<|endoftext|>"),
    "eos_token": ("</s>", "[SEP]", "<|endoftext|>"),
}  # fmt: skip
"""Special tokens, and what BERT, RoBERTa, T5, ALBERT, XLM-R, Llama and GPT-2 call them: the first there is. Where only
one of [CLS] and [SEP] are there, they begin and end a text for a causal model as well."""
CHARACTERS_PER_TOKEN = 8  # generous: a window cut from a long document must fill the sequence
_WORD_LENGTH = 5  # about
_FAR = 100  # characters: where no word begins within so many, a window begins inside


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """A tokenizer from a tokenizer.json or from a folder as `save_pretrained` writes it. Its special tokens are those
    that its files name; what they leave open (those of a hub often say nothing, the class of transformers knew it) is
    taken by name from those it has (`NAMED`). `lacking` tells what is missing.

    Raises DataError when there is none.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"tokenizer {file}: no such file; train one with `bigssl tokenizer train SHARDS {file}`")
    try:  # asked of the file: the class would add what is missing
        raw = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        why = " ".join(str(error).split())[:200]
        raise DataError(f"tokenizer {file} cannot be read ({why}); allowed: a tokenizer.json of `tokenizers`") from None
    known, added = raw.get_vocab(), {str(token): token for token in raw.get_added_tokens_decoder().values()}
    if (file.parent / "tokenizer_config.json").is_file():
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(file.parent)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    sure = added.keys() | {token for token in SPECIALS.values() if token in known}  # "<s>" may be a piece of HTML
    there = {name: next((each for each in names if each in sure), None) for name, names in NAMED.items()}
    tokenizer.add_special_tokens({
        name: added.get(token, AddedToken(token, special=True))
        for name, token in there.items() if token is not None and getattr(tokenizer, name) is None
    })  # fmt: skip
    return tokenizer


def lacking(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str]) -> str:
    """What a tokenizer lacks of the special tokens `tokens` (names as in SPECIALS), in words, and what adds it; ""
    where nothing. One that has to have cls and sep has to put them around a text."""
    missing = [name for name in tokens if getattr(tokenizer, name) is None]
    if missing:
        given = ", ".join(f'"{name}": "{SPECIALS.get(name, NAMED[name][0])}"' for name in missing)
        return (f"its tokenizer has no {', '.join(missing)} (transformers' add_special_tokens({{{given}}}) and "
                "save_pretrained add what lacks; one of `bigssl tokenizer train` has all)")  # fmt: skip
    frame = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    if {"cls_token", "sep_token"} <= set(tokens) and (empty := tokenizer("")["input_ids"]) != frame:
        found = tokenizer.convert_ids_to_tokens(empty)
        cls, sep = (tokenizer.cls_token, frame[0]), (tokenizer.sep_token, frame[1])
        return (f"its tokenizer makes {found} of an empty text, not {cls[0]} {sep[0]} "
                f"(tokenizer.backend_tokenizer.post_processor = tokenizers.processors.BertProcessing({sep}, {cls}) and "
                "save_pretrained set them around it)")  # fmt: skip
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
    (ids, words), inside = ids_and_words(tokenizer, text), length - 2
    for begin in range(0, max(len(ids), 1), inside):
        piece = slice(begin, begin + inside)
        framed = [tokenizer.cls_token_id, *ids[piece], tokenizer.sep_token_id]
        yield np.array(framed, dtype=np.int64), np.concatenate([[-1], words[piece], [-1]])


def ids_and_words(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[np.ndarray, np.ndarray]:
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
    """bool, same shape: True at [PAD], [CLS], [SEP], [MASK] and what begins or ends a text, which masking must leave
    alone ([UNK] is a word)."""
    return np.isin(input_ids, frame_ids(tokenizer))


def frame_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the special tokens that stand for nothing in a text; of [UNK] only where it is one of them (GPT-2's)."""
    kept = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id,
            tokenizer.bos_token_id, tokenizer.eos_token_id)  # fmt: skip
    return [token for token in kept if token is not None]


def random_window(text: str, rng: np.random.Generator, characters: int) -> str:
    """At most `characters` characters of `text`, from the beginning of a word on; all of a text that is shorter. In
    scripts without spaces a word begins at each character; in a run without words (DNA) a window begins anywhere."""
    if len(text) <= characters:
        return text
    # the draw goes on to the next word, so places before the text give the first word its share
    begin = int(rng.integers(-_WORD_LENGTH, len(text) - characters + 1))
    start = _next_word(text, begin) if begin > 0 else 0
    return text[start : start + characters].rstrip()


def window_for(text: str, rng: np.random.Generator, length: int) -> str:
    """A random window of a text that fills `length` tokens, or all of a shorter one."""
    return random_window(text, rng, length * CHARACTERS_PER_TOKEN)


def _next_word(text: str, begin: int) -> int:
    """Where the first word at or after `begin` begins; in the last word, where that one begins."""
    near = range(begin, min(begin + _FAR, len(text)))
    for place in near:
        if begins_word(text, place):
            return place
    if near.stop < len(text):
        return next((place for place in near if not joins_before(text, place)), begin)
    words = text.split()
    return text.rindex(words[-1]) if words else 0
