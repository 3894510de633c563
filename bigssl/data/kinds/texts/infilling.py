"""Noise of BART (Lewis et al. 2019, arXiv 1910.13461): sentences in another order, spans behind one mask.

    target  [CLS] a1 a2 a3 . b1 b2 b3 b4 . [SEP]
    source  [CLS] b1 [MASK] . a1 a2 a3 [MASK] . [SEP]      b2 b3 b4 behind one mask, behind the other nothing

Spans have lengths ~ Poisson until they hold `ratio` of the tokens (rounded up or down by chance; the last is cut to
fit), and lie anywhere without overlapping, those of length 0 between any two tokens. So the source has no more tokens
than the target, masks that hide nothing apart, which stand there as far as there is room.
"""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerFast

from bigssl.data.kinds.text import special_mask
from bigssl.data.kinds.texts.pairs import split_sentences

FRAMED = 2  # special tokens around a text


def tokens_by_sentence(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a text without special ones around it, int64 [n], and the number of the sentence that each begins
    in, int64 [n], from 0 on and never falling. The text is tokenized whole: a token is the same in any order of the
    sentences."""
    encoded = tokenizer(
        text, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    begins = np.array([begin for begin, _ in encoded["offset_mapping"]], dtype=np.int64)
    ends = np.array([end for _, end in split_sentences(text).spans], dtype=np.int64)
    return np.array(encoded["input_ids"], dtype=np.int64), np.searchsorted(ends, begins, side="right")


def in_another_order(sentences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places int64 [n] of tokens whose sentences, int64 [n] and never falling, change places: each order is as likely
    as any other, tokens of a sentence stay together and in order."""
    known, number = np.unique(sentences, return_inverse=True)
    return np.argsort(rng.permutation(len(known))[number], kind="stable")


def infilled(
    ids: np.ndarray, free: np.ndarray, rng: np.random.Generator, *, ratio: float, span: float, mask_id: int, most: int
) -> np.ndarray:
    """Tokens int64 [n] with spans of them behind one `mask_id` each, and masks behind which is nothing.

    Args:
        free: bool [n], False at special tokens that stand in the text: these stay, and a span around one has two parts.
        ratio: share of the tokens that spans hold.
        span: mean of their lengths, before the last is cut.
        most: tokens of the result, at least n.
    """
    lengths = span_lengths(int(ratio * len(ids) + rng.random()), span, rng)
    spans = lengths[lengths > 0]
    between = len(ids) - spans.sum() + len(spans)  # spans among tokens that stay, in any order
    places = np.sort(rng.choice(between, len(spans), replace=False)) - np.arange(len(spans))
    begins = places + np.cumsum(spans) - spans
    hidden = np.zeros(len(ids), dtype=bool)
    hidden[np.repeat(begins, spans) + _counting(spans)] = True
    hidden &= free
    masks = hidden & ~np.concatenate([[False], hidden[:-1]])
    masks[begins] = hidden[begins]  # two spans side by side have two
    masks = np.flatnonzero(masks)
    found = np.insert(ids, masks, mask_id)[np.insert(~hidden, masks, True)]
    empty = min(len(lengths) - len(spans), most - len(found))
    return np.insert(found, np.sort(rng.integers(len(found) + 1, size=empty)), mask_id)


def _counting(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., length − 1 of each, after each other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def span_lengths(budget: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Lengths ~ Poisson(mean), int64 [k], up to the one with which they reach `budget`, which is cut to fit."""
    found = list[int]()
    while budget > 0:
        found.append(min(int(rng.poisson(mean)), budget))
        budget -= found[-1]
    return np.array(found, dtype=np.int64)


def noised(
    tokenizer: PreTrainedTokenizerFast, ids: np.ndarray, sentences: np.ndarray, rng: np.random.Generator, length: int,
    *, ratio: float, span: float, permute: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(source, target), int64 [at most length] each: [CLS] tokens [SEP], of the source with noise. Without a token both
    are [CLS] [SEP].

    Args:
        ids, sentences: as of `tokens_by_sentence`.
        length: tokens of the network; what is behind is left out.
        ratio, span: as of `infilled`. permute: whether sentences change places before that.
    """
    room = length - FRAMED
    ids, sentences = ids[:room], sentences[:room]
    mixed = ids[in_another_order(sentences, rng)] if permute else ids
    free = ~special_mask(tokenizer, mixed)
    shown = infilled(mixed, free, rng, ratio=ratio, span=span, mask_id=tokenizer.mask_token_id, most=room)
    begin, end = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    return np.concatenate([begin, shown, end]), np.concatenate([begin, ids, end])
