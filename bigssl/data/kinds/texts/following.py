"""Running text for models that predict each token from those before it.

    begin  t0  t1  t2     t3  t4          what is shown
    t0     t1  t2  t3     t4  end         what is asked, at the same place: the next token

A text that is longer than the context is cut into pieces. Each begins as a text does, and goes on with the token that
the piece before it was asked last, so that every token is asked once, whatever stands before it in its piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedTokenizerFast

from bigssl.data.kinds.masking import IGNORE


def frame_of(tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray]:
    """int64 each: what the tokenizer puts before a text, and behind it."""
    found = tokenizer("a", return_special_tokens_mask=True, return_attention_mask=False)
    special, ids = found["special_tokens_mask"], np.array(found["input_ids"], dtype=np.int64)
    if 0 not in special:
        return ids[:0], ids[:0]
    return ids[: special.index(0)], ids[len(special) - special[::-1].index(0) :]


def following_pieces(
    ids: np.ndarray, begin: np.ndarray, end: np.ndarray, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(shown, asked), int64 [n], n <= length, of each piece of a text; IGNORE where nothing is asked.

    Args:
        ids: int64 [T], its tokens; without any, there is no piece.
        begin: what each piece begins with; without, the first token of the text is not asked.
        end: what is asked behind the last token.
        length: tokens that the network takes; more than `begin` has.
    """
    if not len(ids):
        return
    text = np.concatenate([ids, end])
    inside = length - len(begin)
    for start in range(0, max(len(text) - 1, min(len(begin), 1)), inside):
        asked = np.full(len(begin), IGNORE)
        if start == 0:
            asked[-1:] = text[0]
        shown, behind = text[:-1][start : start + inside], text[1:][start : start + inside]
        yield np.concatenate([begin, shown]), np.concatenate([asked, behind])
